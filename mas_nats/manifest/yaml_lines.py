"""YAML that remembers on which line each value stands, and refuses a key that is given twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mas_nats.errors import ConfigurationError

_INTEGER = "tag:yaml.org,2002:int"
_SURELY_SMALL = 15  # characters of an integer
_LARGEST = (1 << 63) - 1
_MOST_REPEATED = 100_000
"""Values that anchors may add to what is written: a few lines could add more than any memory holds."""


class YamlFile:
    """One document: its ``content``, and where in the file things stand."""

    def __init__(self, path: Path, content: Any, root: Node | None) -> None:
        self.path = path
        self.content = content
        self._root = root

    @classmethod
    def read(cls, path: Path) -> YamlFile:
        """Read a file that holds one document, or none: then its ``content`` is None.

        Raises:
            ConfigurationError: it cannot be read, is no YAML, has a key twice in one mapping, or holds
                several documents.

        """
        found = cls.read_all(path)
        if len(found) > 1:
            second = f"the second begins on line {found[1].line(())}"
            raise ConfigurationError(f"{path} holds {len(found)} documents where one is read: {second}")
        return found[0] if found else cls(path, None, None)

    @classmethod
    def read_all(cls, path: Path) -> list[YamlFile]:
        """Read every document of a file but the empty ones. Errors as ``read``."""
        try:
            loader = yaml.SafeLoader(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
        found, twice = [], list[str]()
        try:
            while loader.check_node():
                root: Node = loader.get_node()  # type: ignore[assignment]
                twice += [f"line {line}: {key} is given twice" for line, key in _repeated(root)]
                _require_small(root)
                found.append(cls(path, loader.construct_document(root), root))
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
        except (AttributeError, LookupError, ArithmeticError) as error:  # by PyYAML, as for "!!int ''"
            text = f"{path} is not valid YAML: a value does not fit the tag (!!) that is set before it"
            raise ConfigurationError(text) from error
        finally:
            loader.dispose()
        if twice:
            raise ConfigurationError("\n- ".join((f"{path} is ambiguous:", *twice)))
        return [each for each in found if each.content is not None]

    def fields(self) -> dict[str, Any] | None:
        """The content by its keys as texts; None where it is no mapping."""
        if not isinstance(self.content, dict):
            return None
        return {_text(key): value for key, value in self.content.items()}

    def line(self, path: Sequence[str | int]) -> int:
        """The line, from 1, of the value at ``path``, or of the nearest thing around it that is there.

        Parts of ``path`` that stand for no key, as the tag of a union does, are passed over.
        """
        node = self._root
        line = 1 if node is None else node.start_mark.line + 1
        for part in path:
            if isinstance(node, MappingNode):
                for key, value in node.value:
                    if isinstance(key, ScalarNode) and key.value == str(part):
                        node, line = value, key.start_mark.line + 1
                        break
            elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
        return line


def _text(key: Any) -> str:
    try:
        return str(key)
    except ValueError:  # Python writes out no integer of more than 4300 digits
        return "a very large number"


def _repeated(root: Node) -> Iterator[tuple[int, str]]:
    """Line and name of every key that its mapping had before."""
    seen, waiting = set[int](), [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            waiting += node.value
        elif isinstance(node, MappingNode):
            keys = set[str]()
            for key, value in node.value:
                waiting.append(value)
                if isinstance(key, ScalarNode):
                    if key.value in keys:
                        yield key.start_mark.line + 1, key.value
                    keys.add(key.value)


def _require_small(root: Node) -> None:
    """Refuse what holds itself, becomes far more than is written, or what JSON has no number for.

    Raises:
        ValueError: it does.

    """
    sizes: dict[int, int] = {}
    under_way = object()

    def size(node: Node) -> int:
        known: Any = sizes.get(id(node))
        if known is under_way:
            raise ValueError(f"line {node.start_mark.line + 1}: this holds itself")
        if known is None:
            sizes[id(node)] = under_way  # type: ignore[assignment]
            if isinstance(node, ScalarNode) and node.tag == _INTEGER and len(node.value) > _SURELY_SMALL:
                number = SafeConstructor().construct_yaml_int(node)
                if not -_LARGEST - 1 <= number <= _LARGEST:
                    raise ValueError(f"line {node.start_mark.line + 1}: a number of more than 64 bits")
            children = node.value if isinstance(node, SequenceNode) else ()
            if isinstance(node, MappingNode):
                children = [each for pair in node.value for each in pair]
            known = sizes[id(node)] = 1 + sum(map(size, children))
        return int(known)

    if size(root) - len(sizes) > _MOST_REPEATED:
        raise ValueError("its anchors repeat too much: write it out")
