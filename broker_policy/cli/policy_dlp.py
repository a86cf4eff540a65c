"""``mas policy dlp-test`` and ``dlp-eval``: what is found in a file, and how well the rules do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import ExitCode, Json, Namespace, Output, command
from broker_policy.cli.policy import policy_app
from broker_policy.dlp import corpus, ruleset
from broker_policy.dlp.judging import places
from broker_policy.dlp.ruleset import Ruleset
from broker_policy.dlp.scanning import Place, TooDeep, strictness
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents
from mas_nats.policy.governance import Dlp, DlpAction
from mas_nats.wire.identity import DEFAULT_NAMESPACE

Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest", help="Take the settings of this manifest; else the built-in rules as they are."
    ),
]


@command("dlp-test", group=policy_app, example="mas policy dlp-test message.json --manifest mas.yaml")
def dlp_test(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON, or any text.")],
    *,
    manifest: Manifest = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json: Json = False,
) -> None:
    """Say what would be found in a file: which class, where, and what becomes of it. Never what it is.

    Exits with 1 when a message like it would be blocked.
    """
    rules = _rules(manifest, namespace)
    raw = file.read_bytes()
    try:
        found = places(rules, raw)
    except TooDeep:
        raise ConfigurationError(f"{file} is nested too deeply; as a message it would be blocked") from None
    text = raw.decode(errors="replace")
    rows = [{"type": each.type, "action": each.action, **_where(each, text)} for each in found]
    action = max((each.action for each in found), key=strictness, default=None)
    document = {"file": str(file), "action": action, "found": rows}
    lines = [f"{row['action']:<7} {row['type']:<18} {row['at']}" for row in rows]
    lines.append(
        {None: "nothing found", DlpAction.BLOCK: "it would be blocked"}.get(action, f"action: {action}")
    )
    Output(json=json).result(document, "\n".join(lines))
    if action is DlpAction.BLOCK:
        raise typer.Exit(ExitCode.FAILED)


@command("dlp-eval", group=policy_app, example="mas policy dlp-eval own-cases.jsonl --json")
def dlp_eval(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="Labelled cases, a JSON object a line; else those that come with it."
        ),
    ] = None,
    *,
    manifest: Manifest = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json: Json = False,
) -> None:
    """Measure precision and recall of every class on labelled cases.

    A case is a line such as {"types": ["ssn"], "body": {"text": "..."}}; "types" is [] for a clean one.
    """
    rules = _rules(manifest, namespace)
    cases = corpus.read(file)
    scores, misses = corpus.evaluate(rules, cases)
    actions = {rule.type: rule.action for rule in rules.rules}
    document = {
        "cases": len(cases),
        "classes": {
            name: {
                "action": actions.get(name),
                "precision": round(score.precision, 4),
                "recall": round(score.recall, 4),
                "n": score.n,
            }
            for name, score in sorted(scores.items())
        },
        "misjudged": [
            {"id": each.id, "missed": each.missed, "found_wrongly": each.wrongly} for each in misses
        ],
    }
    Output(json=json).result(document, _table(scores, actions, misses, len(cases)))


def _rules(manifest: Path | None, namespace: str) -> Ruleset:
    if manifest is None:
        return ruleset(Dlp())
    return ruleset(documents.load(manifest).of(namespace).wanted.governance.dlp)


def _where(place: Place, text: str) -> dict[str, object]:
    if place.path != "$":
        return {"at": f"{place.path} [{place.start}:{place.end}]", "path": place.path}
    before = text[: place.start]
    line, column = before.count("\n") + 1, place.start - (before.rfind("\n") + 1) + 1
    return {"at": f"line {line}, column {column}", "line": line, "column": column}


def _table(
    scores: dict[str, corpus.Score], actions: dict[str, DlpAction], misses: list[corpus.Miss], count: int
) -> str:
    lines = [f"{'class':<18} {'action':<7} {'cases':>5} {'precision':>9} {'recall':>7}"]
    lines += [
        f"{name:<18} {actions.get(name, '-'):<7} {score.n:>5} {score.precision:>9.3f} {score.recall:>7.3f}"
        for name, score in sorted(scores.items())
    ]
    lines.append(f"{count} cases, {len(misses)} judged otherwise than labelled")
    for each in misses:
        said = [*(f"missed {name}" for name in each.missed), *(f"found {name}" for name in each.wrongly)]
        lines.append(f"  {each.id}: {', '.join(said)}")
    return "\n".join(lines)
