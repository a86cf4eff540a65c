"""Policy tests: YAML files beside the manifest that say what policy must decide.

A file names cases, and where it is not the nearest one the manifest::

    tests:
      - name: the router may ask the help desk
        sender: router
        target: helpdesk
        type: ask
        data: {question: "Where is my order?"}
        expect: {decision: ALLOWED, rule: allowed_targets}

Only what ``expect`` says is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from broker_policy.pipeline.explain import Explanation, explain, message
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents, mas_yaml
from mas_nats.manifest.mistakes import mistakes
from mas_nats.manifest.yaml_lines import YamlFile
from mas_nats.policy.table import Table
from mas_nats.wire.identity import DEFAULT_NAMESPACE
from mas_nats.wire.verdict import Decision

FOLDER = "policy-tests"
_PATTERNS = (f"{FOLDER}/*.yaml", "*_test.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Expected(_Strict):
    """What must come out; what is not said is not compared. ``types``: what data-loss prevention finds."""

    decision: Decision
    rule: str | None = None
    types: tuple[str, ...] | None = None


class Case(_Strict):
    """One message and what must become of it."""

    name: str = Field(min_length=1)
    sender: str
    target: str
    type: str = "test"
    data: dict[str, JsonValue] = Field(default_factory=dict)
    expect: Expected


class CaseFile(_Strict):
    """One file. ``manifest`` is relative to it; ``namespace`` matters where it declares several."""

    manifest: Path | None = None
    namespace: str = DEFAULT_NAMESPACE
    tests: tuple[Case, ...]

    @field_validator("tests")
    @classmethod
    def _some(cls, tests: tuple[Case, ...]) -> tuple[Case, ...]:
        if not tests:
            raise ValueError("there are none")
        return tests


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one case. ``differences`` are lines for people; none: as expected."""

    file: Path
    case: Case
    got: Explanation
    differences: tuple[str, ...]


def discover(named: Sequence[Path], here: Path) -> list[Path]:
    """The files to run: those named, those in named folders; none named: those beside the nearest manifest.

    Raises:
        ConfigurationError: a named file does not exist, or nothing was found.

    """
    if not named:
        manifest = mas_yaml.find(here)
        named = [manifest.parent if manifest else here]
    found: list[Path] = []
    for path in named:
        if path.is_dir():
            patterns = ("*.yaml",) if path.name == FOLDER else _PATTERNS
            found += sorted(each for pattern in patterns for each in path.glob(pattern))
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigurationError(f"{path} does not exist")
    if not found:
        looked = " or ".join(str(path) for path in named)
        raise ConfigurationError(
            f"there are no policy tests in {looked}: write {FOLDER}/<name>.yaml beside the manifest"
        )
    return found


def load(path: Path) -> CaseFile:
    """Read one file.

    Raises:
        ConfigurationError: it cannot be read, or something in it is wrong; the text names the line.

    """
    file = YamlFile.read(path)
    try:
        return CaseFile.model_validate(file.content)
    except ValidationError as error:
        found = mistakes(error, CaseFile, lambda place: f"line {file.line(place)}")
        raise ConfigurationError("\n- ".join((f"{path} is no file of policy tests:", *found))) from error


def run(paths: Iterable[Path], manifest: Path | None = None) -> Iterator[Result]:
    """Run the cases of all files, under ``manifest`` where one is given.

    Raises:
        ConfigurationError: a file or its manifest is wrong.

    """
    tables: dict[tuple[Path, str], Table] = {}
    for path in paths:
        file = load(path)
        judged_by = manifest or _manifest(path, file)
        key = (judged_by, file.namespace)
        if key not in tables:
            tables[key] = Table.compile(documents.load(judged_by).of(file.namespace).wanted.document(), 0)
        for case in file.tests:
            call = message(case.sender, case.target, case.type, orjson.dumps(case.data))
            got = explain(call, tables[key])
            yield Result(path, case, got, tuple(_differences(case.expect, got)))


def _manifest(path: Path, file: CaseFile) -> Path:
    if file.manifest is not None:
        return path.parent / file.manifest
    found = mas_yaml.find(path.absolute().parent)
    if found is None:
        raise ConfigurationError(
            f"{path}: there is no {mas_yaml.FILE_NAME} beside or above it: say manifest:"
        )
    return found


def _differences(expected: Expected, got: Explanation) -> Iterator[str]:
    if got.decision != expected.decision:
        yield f"decision: expected {expected.decision}, got {got.decision}"
    if expected.rule is not None and got.rule != expected.rule:
        yield f"rule: expected {expected.rule}, got {got.rule or 'none'}"
    if expected.types is not None and set(got.types) != set(expected.types):
        yield f"types: expected {_listed(expected.types)}, got {_listed(got.types)}"


def _listed(types: Sequence[str]) -> str:
    return ", ".join(sorted(types)) or "none"
