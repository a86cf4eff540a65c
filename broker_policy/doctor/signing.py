"""Whether the chain of a namespace continues what was signed of it, and is signed on."""

from __future__ import annotations

from dataclasses import dataclass

from broker_policy.audit.checkpoint import SignedCheckpoint
from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.store import Store
from broker_policy.doctor.check import Check, fail, ok, warn

_LATE = 60.0


@dataclass(frozen=True, slots=True)
class Signing:
    """What both stores say, read at about the same time."""

    signed: SignedCheckpoint | None  # the last one
    end: int  # index of the last entry
    there: str | None  # the hash of the entry that was signed last; None: it is not there
    removed: int  # entries up to it are in sealed segments only
    following: int  # unix milliseconds, of the first entry that is not signed; 0 where there is none


async def read(store: Store, checkpoints: CheckpointStream) -> Signing:
    """Ask for the checkpoint, then for the chain: that only grows meanwhile.

    Raises:
        ValueError: the checkpoint is none, or an entry was damaged.
        redis.exceptions.RedisError, JetStreamError, nats.errors.Error, OSError: one of them is away.

    """
    signed, _ = await checkpoints.last()
    at = 0 if signed is None else signed.checkpoint.index
    there = (await store.entries_at([at])).get(at) if at else None
    following = await store.page(at + 1, 1)
    return Signing(
        signed=signed,
        end=(await store.head()).index,
        there=None if there is None else there.hash,
        removed=(await store.removed()).index,
        following=int(following[0].entry()["at"]) if following else 0,
    )


def judge_signing(namespace: str, found: Signing, keys: CheckpointKeys, now: float) -> Check:
    """What that means; ``now`` is unix seconds."""
    name, fix = f"signer of {namespace}", f"mas audit verify --namespace {namespace}"
    age = now - found.following / 1000 if found.following else 0.0
    up_to = 0
    if found.signed is not None:
        last = found.signed.checkpoint
        if not keys.signed(found.signed):
            text = f"the last checkpoint (entry {last.index}) is of a key that is not this installation's"
            return fail(name, text, fix)
        lost = "; where Redis lost it for good, mas audit accept-loss"
        if found.end < last.index:
            text = f"entry {last.index} was signed, but the chain ends at {found.end}: it is signed no more"
            return fail(name, text, fix + lost)
        if last.index > found.removed and found.there != last.hash:
            text = f"entry {last.index} is not the one that was signed: the chain is not signed any more"
            return fail(name, text, fix + lost)
        up_to, age = last.index, min(age, now - last.time / 1000)
    signed = f"signed up to entry {up_to} of {found.end}"
    if age > _LATE:
        fix = "Ask again in a second; else look at the signer's log"
        return warn(name, f"{signed}, and no further for {age:.0f} s", fix)
    return ok(name, signed)
