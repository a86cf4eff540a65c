"""What a receiver kept, held against the audit: whether it is what was delivered under a decision.

An entry holds a commitment instead of a payload. Whoever has the payload and the salt that came with it can
show that they belong to the entry; nobody can find another payload that does.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from broker_policy.audit.entry import Entry
from broker_policy.sealing import SALT_BYTES, commitment


@dataclass(frozen=True, slots=True)
class Disclosed:
    """One decision about a message id, and whether the payload is the one it was about."""

    entry: Entry
    matches: bool

    def row(self) -> dict[str, Any]:
        """As JSON."""
        entry = self.entry
        return {
            "index": entry["i"],
            "time": entry["at"],
            "op": entry["o"],
            "sender": entry["f"],
            "target": entry["t"],
            "type": entry["y"],
            "decision": entry["d"],
            "matches": self.matches,
        }


def read_salt(text: str) -> bytes:
    """The salt of ``AgentMessage.salt``.

    Raises:
        ValueError: it is none.

    """
    try:
        salt = bytes.fromhex(text)
    except ValueError:
        salt = b""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {2 * SALT_BYTES} hexadecimal digits, as in message.salt")
    return salt


def disclose(entries: Iterable[Entry], salt: bytes, body: bytes) -> list[Disclosed]:
    """Hold ``body`` and ``salt`` against each decision that commits to something."""
    return [
        Disclosed(entry, hmac.compare_digest(entry["c"], commitment(salt, entry["t"], entry["y"], body)))
        for entry in entries
        if entry.get("c")
    ]


def exported_decisions(path: Path, message_id: str) -> Iterator[Entry]:
    """The decisions about ``message_id`` in an export of the chain, which is not verified by this.

    Raises:
        ValueError: it is no export.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:
        if not file.readline().startswith(b'{"audit":"mas"'):
            raise ValueError(f"{path} is not an exported audit: its first line does not say so")
        for raw in file:
            line = orjson.loads(raw)
            entry = line.get("e")
            if entry is not None and entry["k"] == "d" and entry["id"] == message_id:
                yield entry
