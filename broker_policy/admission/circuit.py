"""The circuit of one target: what it becomes by what happens. Pure, so that every store of it agrees.

*Closed*: messages pass, failures are counted, each message once however often it fails. *Open*: messages are
refused. *Half open*, from ``until`` on: some probes at a time pass. The handled ones close it; one that
fails, or as many other failures as had opened it, open it again. A circuit that nobody tries for a window
after it could have been tried is closed: what had opened it is too long ago to count.

Messages are named by their dedup ids. Times are unix milliseconds. (M. Nygard, Release It!, 2007.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import orjson

from mas_nats.policy.governance import CircuitBreaker


class State(StrEnum):
    """Whether messages pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Failure(NamedTuple):
    """A message that failed; ``at``: the last time."""

    id: str
    at: int


class Probe(NamedTuple):
    """A message that was let through to see what becomes of it."""

    id: str
    at: int


@dataclass(frozen=True, slots=True)
class Circuit:
    """One circuit. ``until`` 0: closed."""

    until: int = 0
    failures: tuple[Failure, ...] = ()
    probes: tuple[Probe, ...] = ()
    handled: int = 0

    def state(self, now: int) -> State:
        """What it is at ``now``."""
        if not self.until:
            return State.CLOSED
        return State.OPEN if now < self.until else State.HALF_OPEN

    def encode(self) -> bytes:
        """As it is stored; empty where there is nothing to remember."""
        if self == Circuit():
            return b""
        failures, probes = [list(each) for each in self.failures], [list(each) for each in self.probes]
        return orjson.dumps([self.until, failures, probes, self.handled])

    @classmethod
    def decode(cls, raw: bytes) -> Circuit:
        """Read what ``encode`` wrote.

        Raises:
            ValueError: it is none.

        """
        if not raw:
            return cls()
        try:
            until, failures, probes, handled = orjson.loads(raw)
            failed, probed = [Failure(*each) for each in failures], [Probe(*each) for each in probes]
            return cls(until, tuple(failed), tuple(probed), handled)
        except TypeError as error:
            raise ValueError(f"not a circuit: {error}") from error

    def life(self, settings: CircuitBreaker, now: int) -> int:
        """Milliseconds after which it says nothing any more."""
        window, timeout = _milliseconds(settings.window_seconds), _milliseconds(settings.timeout_seconds)
        return window + (max(self.until - now, 0) + timeout if self.until else 0)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def current(circuit: Circuit, settings: CircuitBreaker, now: int) -> Circuit:
    """Without what is too long ago."""
    window, timeout = _milliseconds(settings.window_seconds), _milliseconds(settings.timeout_seconds)
    fresh = tuple(each for each in circuit.failures if each.at > now - window)
    if circuit.until and now >= circuit.until + window and not _in_flight(circuit, now - timeout):
        return Circuit(failures=fresh)
    return circuit if len(fresh) == len(circuit.failures) else replace(circuit, failures=fresh)


def failed(circuit: Circuit, settings: CircuitBreaker, now: int, id: str) -> Circuit:  # noqa: A002
    """The target failed to handle a message."""
    circuit = current(circuit, settings, now)
    if circuit.state(now) is State.OPEN:
        return circuit
    others = tuple(each for each in circuit.failures if each.id != id)
    failures = (*others, Failure(id, now))[-settings.failure_threshold :]
    if _probed(circuit, id) or len(failures) >= settings.failure_threshold:
        return Circuit(until=now + _milliseconds(settings.timeout_seconds))
    return replace(circuit, failures=failures)


def probe(
    circuit: Circuit, settings: CircuitBreaker, now: int, ids: Sequence[str]
) -> tuple[Circuit, frozenset[str]]:
    """Which of the messages ``ids`` may pass, the first ones first; for one that is closed all of them.

    A probe of which nothing was heard for ``timeout_seconds`` makes room for another; what becomes of it
    counts all the same.
    """
    circuit = current(circuit, settings, now)
    match circuit.state(now):
        case State.CLOSED:
            return circuit, frozenset(ids)
        case State.OPEN:
            return circuit, frozenset()
    let = {probe.id for probe in circuit.probes} & set(ids)
    room = settings.success_threshold - _in_flight(circuit, now - _milliseconds(settings.timeout_seconds))
    new = [each for each in dict.fromkeys(ids) if each not in let][: max(0, room)]
    if not new:
        return circuit, frozenset(let)
    probes = (*circuit.probes, *(Probe(each, now) for each in new))[-4 * settings.success_threshold :]
    return replace(circuit, probes=probes), frozenset(let | set(new))


def handled(circuit: Circuit, settings: CircuitBreaker, id: str) -> Circuit:  # noqa: A002
    """The target has handled a message."""
    if not _probed(circuit, id):
        return circuit
    if circuit.handled + 1 >= settings.success_threshold:
        return Circuit()
    return replace(inconclusive(circuit, id), handled=circuit.handled + 1)


def inconclusive(circuit: Circuit, id: str) -> Circuit:  # noqa: A002
    """Nothing will be known of a message: it was not stored, it expired, or it did not fit."""
    return replace(circuit, probes=tuple(each for each in circuit.probes if each.id != id))


def _probed(circuit: Circuit, id: str) -> bool:  # noqa: A002
    return any(each.id == id for each in circuit.probes)


def _in_flight(circuit: Circuit, since: int) -> int:
    return sum(each.at > since for each in circuit.probes)
