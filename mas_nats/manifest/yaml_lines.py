"""YAML that remembers on which line each value stands, and refuses a key that is given twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mas_nats.errors import ConfigurationError


class YamlFile:
    """One document: its ``content``, and where in the file things stand."""

    def __init__(self, path: Path, content: Any, root: Node | None) -> None:
        self.path = path
        self.content = content
        self._root = root

    @classmethod
    def read(cls, path: Path) -> YamlFile:
        """Read a file.

        Raises:
            ConfigurationError: it cannot be read, is no YAML, or has a key twice in one mapping.

        """
        try:
            loader = yaml.SafeLoader(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
        try:
            root = loader.get_single_node()
            if root is None:
                return cls(path, None, None)
            twice = [f"line {line}: {key} is given twice" for line, key in _repeated(root)]
            content = loader.construct_document(root)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
        finally:
            loader.dispose()
        if twice:
            raise ConfigurationError("\n- ".join((f"{path} is ambiguous:", *twice)))
        return cls(path, content, root)

    def line(self, path: Sequence[str | int]) -> int:
        """The line, from 1, of the value at ``path``, or of the nearest thing around it that is there.

        Parts of ``path`` that stand for no key, as the tag of a union does, are passed over.
        """
        node, line = self._root, 1
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
