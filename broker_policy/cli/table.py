"""Tables for people, as wide as what is in them; nothing in a cell is markup or moves the cursor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from broker_policy.printable import legible

Cell = str | int


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A table; columns of numbers stand to the right."""
    found = [list(row) for row in rows]
    made = Table(box=None, header_style="bold", pad_edge=False)
    for at, name in enumerate(columns):
        numbers = bool(found) and all(isinstance(row[at], int) for row in found)
        made.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for row in found:
        made.add_row(*map(shown, row))
    return made


def shown(cell: Cell) -> Text:
    """A cell as it stands: a string would be read as markup, and agents and their servers choose names."""
    return Text(legible(str(cell), keep=""))
