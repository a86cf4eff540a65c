"""Accepting that Redis lost what was signed: said by a person, in the chain, and signed.

The signer refuses for good to sign a chain that lacks what it signed before. Whoever holds the checkpoint key
can say that this is known: an entry names what is lost, and a checkpoint over that entry names it again, so
the chain alone cannot pretend to a loss. The earlier checkpoints stay in their stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_policy.audit import entry
from broker_policy.audit.checkpoint import Checkpoint, Loss, SignedCheckpoint
from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.signer import ChainAltered, follow
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Overtaken, Tail
from mas_nats.errors import MasError

_AT_ONCE = 500
_TRIES = 20


class NothingLost(MasError):
    """The chain holds everything that was signed."""


class NotALoss(MasError):
    """The chain is not shorter but altered: accepting that is not possible. Restore a backup."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Entries ``first`` to ``last`` were signed and are gone; ``hash`` is what the last one had."""

    first: int
    last: int
    hash: str
    after: int  # where the last checkpoint is in its stream


async def find(store: Store, stream: CheckpointStream, keys: CheckpointKeys) -> Missing:
    """What the chain lacks of what was signed.

    Raises:
        NothingLost: nothing.
        NotALoss: entries were altered or deleted from the middle.
        RedisError, nats.errors.Error, JetStreamError, OSError: one of the stores is away.

    """
    standing = [signed.checkpoint async for signed in stream.standing(keys)]
    _, after = await stream.last()
    if not standing:
        raise NothingLost("nothing was signed yet, so nothing that was signed is lost")
    head, end = await store.head(), await store.end()
    try:
        if end.highest > end.last:
            raise ChainAltered(f"entries {end.last + 1} to {end.highest} are gone")  # noqa: TRY301
        if head.index:
            await follow(store, None, head)
    except ChainAltered as problem:
        raise NotALoss(f"{problem}: that is no older Redis but an altered one. Restore a backup") from None
    kept = await _kept(store, standing)
    last = standing[-1]
    if kept == last.index:
        raise NothingLost(f"the chain holds entry {last.index}, the last that was signed")
    return Missing(kept + 1, last.index, last.hash, after)


async def accept(
    store: Store,
    stream: CheckpointStream,
    key: Ed25519PrivateKey,
    missing: Missing,
    reason: str,
    *,
    clock: Callable[[], float] = time.time,
) -> Checkpoint:
    """Write into the chain that ``missing`` is lost, and sign the chain from there on.

    Raises:
        Overtaken: projectors kept appending; call again.
        JetStreamError: another checkpoint came first; look again with ``find``.
        RedisError, nats.errors.Error, OSError: one of the stores is away.

    """
    tail = Tail(store, clock)
    for _ in range(_TRIES):
        await tail.refresh()
        draft = tail.draft()
        draft.add(
            entry.loss(
                draft.next_index,
                draft.sequence,
                tail.now(),
                missing.first,
                missing.last,
                missing.hash,
                reason,
            )
        )
        try:
            await tail.append(draft)
        except Overtaken:
            continue
        head = draft.head
        lost = Loss(missing.first, missing.last, missing.hash, reason)
        checkpoint = Checkpoint(
            store.layout.namespace, head.index, head.hash.hex(), head.sequence, tail.now(), lost
        )
        await stream.append(SignedCheckpoint.sign(checkpoint, key), missing.after)
        return checkpoint
    raise Overtaken


async def _kept(store: Store, standing: list[Checkpoint]) -> int:
    """The last signed entry that the chain still holds, 0 for none."""
    for end in range(len(standing), 0, -_AT_ONCE):
        some = standing[max(end - _AT_ONCE, 0) : end]
        entries = await store.entries_at([checkpoint.index for checkpoint in some])
        for checkpoint in reversed(some):
            stored = entries.get(checkpoint.index)
            if stored is not None and stored.hash == checkpoint.hash:
                return checkpoint.index
    return 0
