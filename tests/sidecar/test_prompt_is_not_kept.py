"""A token binds a prompt by its digest: what the prompt says is written nowhere (ADR 33)."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

from mas_nats import Agent
from mas_nats.tokens.spelling import spelled
from tests.sidecar.conftest import Town
from tests.sidecar.guarded import BOTH, audited, guard, new_id, policy, t1


def spellings(marker: str) -> set[bytes]:
    """How ``marker`` could be written down within something longer."""
    raw = marker.encode()
    shifted = (base64.b64encode(b" " * shift + raw)[4 * bool(shift) : -4] for shift in range(3))
    return {raw, raw[::-1], raw.hex().encode(), spelled(marker).encode(), *shifted}


def written(folder: Path, marker: str) -> list[str]:
    """The files of a broker that have it: streams and buckets, the audit, logs, keys."""
    wanted = spellings(marker)
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if any(each in data for each in wanted):
                found.append(str(path.relative_to(folder)))
    return found


async def test_a_prompt_is_in_no_file_of_the_broker(empty_town: Town):
    await guard(empty_town, policy(BOTH))
    prompt, message = (f"marker-{secrets.token_hex(12)}-here" for _ in range(2))
    tls, given = empty_town.system.tls("shop", empty_town.namespace), new_id()
    async with Agent("shop", server_addr=empty_town.system.broker.url, tls=tls, receive=False) as shop:
        assert (await t1(shop, given, prompt)).ok
        await shop.send("echo", "note", {"text": message})
    await audited(
        empty_town, lambda found: any(each["outcome"] == "applied" for each in found), "--message-id", given
    )
    folder = empty_town.system.layout.root
    # Two controls: what waits in an inbox, and what the audit has of the token.
    assert any(name.startswith("nats") for name in written(folder, message))
    assert any(name.startswith("redis") for name in written(folder, given))
    assert written(folder, prompt) == []


def test_every_spelling_is_found(tmp_path: Path):
    """The control of the search itself."""
    marker = "marker-0123456789abcdef-here"
    for number, each in enumerate(sorted(spellings(marker))):
        (tmp_path / str(number)).write_bytes(b"before " + each + b" after")
    for shift in range(3):
        (tmp_path / f"shifted{shift}").write_bytes(
            base64.b64encode(b"x" * shift + marker.encode() + b"and more")
        )
    assert len(written(tmp_path, marker)) == len(spellings(marker)) + 3
