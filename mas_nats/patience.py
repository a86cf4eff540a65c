"""How long to wait for an answer before asking again, as TCP finds it out.

Asking again too early is what turns a stall into a collapse: each repetition is work for a service that is
behind already, so that more answers come too late. Source: RFC 6298, with Karn's algorithm: an answer to a
call that was repeated says nothing about how long answers take.
"""

from __future__ import annotations

FIRST_TRY = 2.0
"""Seconds to wait for the first answer at least."""
LONGEST_TRY = 20.0
"""Seconds to wait for the first answer at most."""


class Patience:
    """What one agent has learned from its calls."""

    def __init__(self, least: float = FIRST_TRY, most: float = LONGEST_TRY) -> None:
        self._least = least
        self._most = most
        self._mean = 0.0
        self._spread = 0.0
        self._backed_off = 0.0

    @property
    def wait(self) -> float:
        """Seconds to wait for the first answer."""
        return min(max(self._least, self._backed_off, self._mean + 4 * self._spread), self._most)

    def answered(self, seconds: float) -> None:
        """A first try was answered after ``seconds``."""
        if self._mean:
            self._spread += (abs(self._mean - seconds) - self._spread) / 4
            self._mean += (seconds - self._mean) / 8
        else:
            self._mean, self._spread = seconds, seconds / 2
        self._backed_off = 0.0

    def unanswered(self, waited: float) -> None:
        """A try was not answered within ``waited`` seconds: the next calls wait longer, until one is."""
        self._backed_off = max(self._backed_off, 2 * waited)
