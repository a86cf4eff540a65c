"""The process that searches content for a worker: ``python -m broker_policy.dlp.searching SECONDS``.

It reads from its input and ends with it. What it is given it writes nowhere but into its answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any, BinaryIO

import orjson

from broker_policy.dlp.framing import LENGTHS, framed, opened
from broker_policy.dlp.judging import COST, Judgement, judge
from broker_policy.dlp.ruleset import Ruleset
from broker_policy.dlp.stream import screened
from mas_nats.policy.governance import Dlp
from mas_nats.wire.verdict import Decision

_TOO_COSTLY = Judgement(Decision.DLP_BLOCKED, (COST,), b"")


class _TooLong(BaseException):
    """The time is over. No ``Exception``, so that nothing on the way takes it for its own."""


def main(seconds: float) -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker's, which ends this one
    signal.signal(signal.SIGVTALRM, _too_long)
    with contextlib.suppress(OSError):
        os.nice(5)  # the worker, which everybody waits for, goes first
    rules = Ruleset(Dlp())
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (asked := _read(source)) is not None:
        header, payload = asked
        try:
            if "settings" in header:
                rules = Ruleset(Dlp.model_validate_json(header["settings"]))
            answer = _answered(rules, header["kind"], payload, seconds)
        except ValueError:
            answer = framed({"unfit": True})
        except Exception as error:  # noqa: BLE001 - told by name: a text may hold what was searched
            answer = framed({"failed": type(error).__name__})
        sink.write(answer)
        sink.flush()


def _read(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    lengths = source.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    return opened(lengths, source.read(sum(LENGTHS.unpack(lengths))))


def _answered(rules: Ruleset, kind: str, payload: bytes, seconds: float) -> bytes:
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            return _body(rules, payload) if kind == "body" else _stream(rules, payload)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except _TooLong:
        return _judged(_TOO_COSTLY)


def _too_long(*_: object) -> None:
    raise _TooLong


def _body(rules: Ruleset, payload: bytes) -> bytes:
    judgement = judge(rules, payload)
    return framed({}) if judgement is None else _judged(judgement)


def _stream(rules: Ruleset, payload: bytes) -> bytes:
    asked = orjson.loads(payload)
    out, held, judgement, finding = screened(rules, asked["held"], asked["new"], final=asked["final"])
    if judgement is not None:
        return _judged(judgement)
    header = {"finding": (finding.decision, finding.types)} if finding is not None else {}
    return framed(header, orjson.dumps({"out": out, "held": held}))


def _judged(judgement: Judgement) -> bytes:
    return framed({"decision": judgement.decision, "types": judgement.types}, judgement.body)


if __name__ == "__main__":
    main(float(sys.argv[1]))
