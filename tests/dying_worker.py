"""A policy worker that kills itself at a named point of a message to another namespace, or of a batch.

``python -m tests.dying_worker POINT --folder .mas --name w1``; the rest of the command line is the worker's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from broker_policy import worker
from broker_policy.calls.arriving import Arriving
from broker_policy.calls.crossing import Crossing
from broker_policy.calls.replies import Replies
from broker_policy.commit.answers import Answers
from broker_policy.commit.behind import Behind
from broker_policy.commit.lone import Lone
from broker_policy.service import NamespaceService


def die(*_: object) -> None:
    """As ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: type, name: str, concerned: Callable[..., bool] = lambda *_: True) -> Callable[[], None]:
    """Die when ``name`` of ``owner`` is called about what is ``concerned``."""

    def patch() -> None:
        original = getattr(owner, name)

        def dying(self: Any, *arguments: Any, **options: Any) -> Any:
            if concerned(*arguments):
                die()
            return original(self, *arguments, **options)

        setattr(owner, name, dying)

    return patch


def other_side_is_recorded() -> None:
    """Die when the other side's record is written and its message is not; none goes right behind it."""

    async def nothing(*_: object) -> None:
        pass

    Behind.publish = nothing  # type: ignore[method-assign, assignment]
    before(Lone, "each", lambda _, items, *__: bool(items[0].call.origin))()


def reply_is_published() -> None:
    """Die when the reply to a request from elsewhere is in the reply stream."""
    publish, reply = Replies.publish, Arriving.reply

    async def dying(self: Replies, *arguments: Any) -> Any:
        ack = await publish(self, *arguments)
        die()
        return ack

    async def noticed(self: Arriving, *arguments: Any) -> Any:
        Replies.publish = dying  # type: ignore[method-assign]
        return await reply(self, *arguments)

    Arriving.reply = noticed  # type: ignore[method-assign]


def handed_over_unrecorded() -> None:
    """Not a point but a fault, to see that it would be found: the other side first, and no record here."""

    def put(self: Crossing, lane: Any, call: Any, act: Any, line: Any) -> None:
        import asyncio  # noqa: PLC0415 - a fault needs no order

        task = asyncio.ensure_future(act("x.1.0"))
        self._tasks = [*getattr(self, "_tasks", ()), task]  # type: ignore[attr-defined]

    Crossing._put = put  # type: ignore[method-assign]


BATCHES: dict[str, Callable[[], None]] = {
    "batch stored": before(Answers, "recorded", lambda _, judged: len(judged) > 1),
}
POINTS: dict[str, Callable[[], None]] = {
    "nothing recorded": before(Crossing, "_put"),
    "own side recorded": before(Crossing, "_deliver"),
    "other side recorded": other_side_is_recorded,
    "stored": before(Answers, "stored", lambda judged, *_: bool(judged.call.origin)),
    "not answered": before(NamespaceService, "_answer", lambda call, _: call.crosses),
    "reply recorded": before(Arriving, "reply"),
    "reply published": reply_is_published,
    "unrecorded": handed_over_unrecorded,
}


if __name__ == "__main__":
    {**POINTS, **BATCHES}[sys.argv.pop(1)]()
    worker.main()
