"""Pages with parts made from the code: between ``<!-- made from the …: NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_MARKED = re.compile(r"(<!-- made from the [a-z]+: ([a-z.-]+) -->).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """``page`` with today's ``parts`` between its marks."""
    return _MARKED.sub(lambda found: f"{found[1]}\n\n{parts[found[2]]()}\n\n{found[3]}", page)


def rewrite(current: Callable[[str], str]) -> None:
    """Bring the pages up to date that the command line names."""
    for path in map(Path, sys.argv[1:]):
        path.write_text(current(path.read_text()))
