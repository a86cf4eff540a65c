"""A path to one place in a JSON body, as ``promptFieldJsonPath`` says it: ``{.prompt}``.

The part of Kubernetes' JSONPath that leads to exactly one place: names and positions. Braces and a leading
``$`` may be left out.
"""

from __future__ import annotations

import re

Part = str | int

_PART = re.compile(r"""\.([A-Za-z_][A-Za-z0-9_-]*)|\[(-?[0-9]{1,9})\]|\['([^'\]]+)'\]|\["([^"\]]+)"\]""")


def parts(path: str) -> tuple[Part, ...]:
    """The names and positions of a path, from the outside; a negative position counts from the end.

    Raises:
        ValueError: it is none, or may lead to several places.

    """
    said = path.strip()
    inside = said[1:-1].strip() if said.startswith("{") and said.endswith("}") else said
    inside = inside.removeprefix("$")
    found: list[Part] = []
    at = 0
    while match := _PART.match(inside, at):
        name, position, *quoted = match.groups()
        found.append(int(position) if position else next(each for each in (name, *quoted) if each))
        at = match.end()
    if not found or at < len(inside):
        raise ValueError(
            "this is no path to one place in a JSON body: write names and positions, such as {.prompt} or "
            "{.messages[-1].content}"
        )
    return tuple(found)
