"""What one instance knows of its agent's inbox from the deliveries it gets, and from nothing else."""

from __future__ import annotations


class Streak:
    """Deliveries that came to this instance one right after the other, of messages not acknowledged yet.

    A consumer numbers its deliveries, whichever instance they go to, and delivers the messages of its inbox
    for the first time in the order in which they lie there. So between two messages whose deliveries came
    without a gap in the numbers there is none that another instance has, and none that nobody has seen.
    Whatever does not fit (a number that is missing, a message older than one before it, one that comes
    again and is not known) begins a new streak.
    """

    def __init__(self) -> None:
        self.since = 0
        """The sequence with which the streak began: of what lies from there to the last one it knows all."""
        self.alone = 0
        """How many messages of the streak, at most, are acknowledged each by itself."""
        self._number = 0  # of the last delivery
        self._newest = 0  # the sequence of the last message that was delivered for the first time
        self._handled: dict[int, bool] = {}  # by sequence, in the order of the inbox

    def delivered(self, sequence: int, attempt: int, number: int) -> None:
        """The consumer's delivery ``number`` is the ``attempt``-th one of the message at ``sequence``."""
        first = attempt == 1
        fits = sequence > self._newest if first else sequence in self._handled
        if number != self._number + 1 or not fits:
            self.end()
        self._number = number
        if first:
            self._handled[sequence] = False
            self._newest = sequence
            self.since = self.since or sequence

    def handled(self, sequence: int) -> bool:
        """The message may be acknowledged; whether it is of this streak."""
        known = sequence in self._handled
        if known:
            self._handled[sequence] = True
        return known

    def forget(self, sequence: int) -> None:
        """It is acknowledged by itself."""
        self.alone += self._handled.pop(sequence, None) is not None

    def ready(self) -> int:
        """How many handled messages there are before which none of the streak is unhandled."""
        return next(
            (count for count, handled in enumerate(self._handled.values()) if not handled), len(self._handled)
        )

    def take(self) -> list[int]:
        """The handled messages before which none of the streak is unhandled.

        They leave the streak, and so do those that are handled and lie behind one that is not: they have to
        be acknowledged each by itself.
        """
        front: list[int] = []
        for sequence, handled in self._handled.items():
            if not handled:
                break
            front.append(sequence)
        before = len(self._handled)
        self._handled = {sequence: False for sequence, handled in self._handled.items() if not handled}
        self.alone += before - len(front) - len(self._handled)
        return front

    def end(self) -> None:
        """Whatever is delivered next begins a new one."""
        self._handled.clear()
        self._newest = self.since = self.alone = 0
