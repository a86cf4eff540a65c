"""``module:Class`` in a manifest: found, looked at without being called, and made into an agent."""

from __future__ import annotations

import difflib
import importlib
import inspect
import operator
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mas_nats.agent import Agent
from mas_nats.errors import ConfigurationError

GIVEN = ("agent_id", "server_addr", "tls", "capabilities", "metadata", "transport")
"""What the runner gives, or what would take its place."""
_FORM = "write module:Class, such as agents:HelpDesk for the class HelpDesk in agents.py beside the manifest"
_BOUND = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Misfit:
    """Something of an agent's entry that its class cannot take; ``field`` is its place below the entry."""

    field: tuple[str, ...]
    text: str


def import_from(folder: Path) -> None:
    """Make the modules of ``folder`` importable, before installed ones of the same name."""
    sys.path.insert(0, str(folder))


def load(class_path: str) -> type[Agent[Any]]:
    """The class that a ``class_path`` names.

    Raises:
        ConfigurationError: there is none, its module cannot be imported, or it is no ``Agent``.

    """
    name, colon, attribute = class_path.partition(":")
    if not (colon and name and attribute):
        raise ConfigurationError(f"{class_path!r} is no class path: {_FORM}")
    module = _import(name)
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError:
        there = sorted(key for key, value in vars(module).items() if _is_agent(value) and value is not Agent)
        near = difflib.get_close_matches(attribute, there, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"its agents are: {', '.join(there) or 'none'}"
        raise ConfigurationError(f"there is no {attribute!r} in module {name!r}; {hint}") from None
    if not _is_agent(found):
        kind = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise ConfigurationError(f"{class_path} is {kind}, not a subclass of mas_nats.Agent: {_FORM}")
    agent: type[Agent[Any]] = found
    return agent


def misfits(cls: type[Agent[Any]], given: Sequence[str], init_kwargs: Sequence[str]) -> list[Misfit]:
    """Why ``cls`` cannot be made with ``init_kwargs`` and what the runner gives, which are names.

    Nothing of it is called, and values are not looked at: only the class itself knows which are good.
    """
    constructors = [[each for each in parameters if each.kind in _BOUND] for parameters in _constructors(cls)]
    accepted = {each.name for parameters in constructors for each in parameters}
    required = {each.name for each in constructors[0] if each.default is inspect.Parameter.empty}
    found = []
    if refused := [name for name in given if name not in accepted]:
        text = f"{cls.__name__}() takes no {' and no '.join(refused)}, which the runner gives it"
        found.append(Misfit(("class_path",), f"{text}: accept **kwargs and pass them to super().__init__"))
    for name in init_kwargs:
        if name in GIVEN:
            text = f"the runner gives {name} itself: leave it out here"
        elif name not in accepted:
            known = sorted(accepted.difference(GIVEN))
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            text = f"{cls.__name__}() takes no {name!r}; {hint}"
        else:
            continue
        found.append(Misfit(("init_kwargs", name), text))
    missing = sorted(required.difference(GIVEN, init_kwargs, _first(cls)))
    return found + [
        Misfit(("init_kwargs",), f"{cls.__name__}() needs {name!r}, which is not given") for name in missing
    ]


def make(cls: type[Agent[Any]], agent_id: str, options: Mapping[str, Any]) -> Agent[Any]:
    """The agent, with its id wherever the constructor takes it."""
    if _first(cls):
        return cls(agent_id, **options)
    return cls(**{"agent_id": agent_id, **options})


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module {error.name!r}, neither beside the manifest nor installed: {_FORM}"
            ) from None
        raise ConfigurationError(_failed(name, error)) from error
    except (Exception, SystemExit) as error:  # what a module does when it is imported is its own affair
        raise ConfigurationError(_failed(name, error)) from error


def _failed(name: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        file, line, text = error.filename, error.lineno, error.msg
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line, text = last.filename, last.lineno, str(error)
    where = f" ({file}, line {line})" if file and not file.startswith("<") else ""
    return f"module {name!r} cannot be imported: {type(error).__name__}: {text}{where}"


def _is_agent(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Agent)


def _constructors(cls: type[Agent[Any]]) -> Iterator[list[inspect.Parameter]]:
    """The parameters of each constructor that gets the options: up to one that passes none on."""
    for each in cls.__mro__:
        if (constructor := vars(each).get("__init__")) is None:
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        if each is Agent:  # its **unknown is for the error text
            yield [one for one in parameters if one.kind in _BOUND]
            return
        yield parameters
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters):
            return


def _first(cls: type[Agent[Any]]) -> tuple[str, ...]:
    """The constructor's first parameter by position, which takes the id, if it has one."""
    for parameters in _constructors(cls):
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return tuple(each.name for each in parameters[:1] if each.kind in positional)
    return ()
