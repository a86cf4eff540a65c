"""Children that do not outlive their parent, whatever ends it.

On Linux the kernel does it: ``prctl(PR_SET_PDEATHSIG, SIGKILL)`` in the child. SIGKILL, since a stopped or
a busy child could outlive any other signal, and whatever is started so is safe to kill at any time: servers
have on disk what they acknowledged, and what agents have not acknowledged is delivered again. The signal
comes when the *thread* ends that started the child, so start children from a thread that stays. It reaches
the child alone, not what that has started.

Elsewhere there is no such call: a parent killed with -9 leaves its children running there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def dies_with_parent() -> Callable[[], None] | None:
    """What a child calls between fork and exec (``preexec_fn``); None where the system has no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange
