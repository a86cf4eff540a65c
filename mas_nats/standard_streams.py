"""Standard input, output and error of a program, also where they were closed before it began."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO


def open_closed() -> None:
    """Put the null device where one of them is closed.

    Python leaves ``None`` there, which nobody can ask or write to, and the next file or connection that the
    program opens would get its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115 - as long as the program
            os.set_inheritable(stream.fileno(), True)  # noqa: FBT003 - its only argument
            setattr(sys, name, stream)


def lead_nowhere(stream: TextIO) -> None:
    """Put the null device in place of ``stream``, which nobody reads any more.

    What is still buffered would fail again at exit.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
