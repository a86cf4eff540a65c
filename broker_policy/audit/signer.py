"""The checkpoint signer: a small process of its own, the only holder of the checkpoint key.

``python -m broker_policy.audit.signer --folder .mas`` signs the head of every chain once a second when it
moved, but only after following the chain from the last checkpoint to the head. Where the chain no longer
holds what was signed, it refuses, and says so. What became of the last checkpoint of a chain that stands
still, it sees within ten seconds. What it signed once it goes on with, whether Redis still lists it or not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import nats.errors
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nats.aio.client import Client
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from broker_policy.audit import chain
from broker_policy.audit.checkpoint import Checkpoint, SignedCheckpoint
from broker_policy.audit.checkpoint_stream import CheckpointStream, SignedNamespaces
from broker_policy.audit.complaint import complaint
from broker_policy.audit.draft import Head
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.store import NO_HEAD, Store, heads, namespaces
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.identity.private_files import sync_folder, write_private
from broker_policy.jetstream import JetStreamError
from broker_policy.printable import told
from broker_policy.tenants.connect import connect_checkpoints
from broker_policy.tenants.live_keys import LiveSignerKeys
from broker_policy.tenants.material import PublicMaterial, SignerKeys
from mas_nats.errors import ConfigurationError

logger = logging.getLogger(__name__)

EVERY = 1.0
LOOK_EVERY = 10.0
"""Seconds after which a chain that ends where it ended is looked at all the same."""
_REPEAT_REFUSAL = 60.0
_UNSIGNED = 600.0
"""Seconds after its first entry in which a chain is signed for the first time, where a signer runs."""
_FAILURES = 2
"""Namespaces that may fail in one round: each can take as long as a store that does not answer."""
_NAMED = 10
"""Names in one line of the log."""


class ChainAltered(Exception):
    """The chain does not continue what was signed; it will not be signed."""


_NO_CHAIN = (ChainAltered, ResponseError, ValueError, TypeError)
"""What comes of it where Redis holds anything else than a chain that continues what was signed."""


class Signer:
    """Signs the chain of one namespace with ``key``, after checkpoints of any of ``keys``.

    ``clock`` returns unix seconds.
    """

    def __init__(
        self,
        store: Store,
        stream: CheckpointStream,
        key: Ed25519PrivateKey,
        *,
        keys: CheckpointKeys | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._stream = stream
        self._key = key
        self._keys = keys or CheckpointKeys(key.public_key())
        self._clock = clock

    async def sign_once(self) -> Checkpoint | None:
        """Sign the head, when it moved; returns the new checkpoint.

        Raises:
            ChainAltered: the chain does not continue the last checkpoint.
            RedisError, nats.errors.Error, JetStreamError, OSError: one of the stores is away.

        """
        signed, after = await self._last()
        last = None if signed is None else signed.checkpoint
        head = await self._store.head()
        # What a key signed that was retired since is signed again: that covers all of the past.
        mine = signed is not None and signed.verify([self._key.public_key()])
        if last is not None and mine and (head.index, head.hash.hex()) == (last.index, last.hash):
            return None
        if head.index == 0:
            if last is not None:
                raise ChainAltered(f"entry {last.index} was signed, but the chain is empty")
            return None
        if (end := await self._store.end()).highest > end.last:
            raise ChainAltered(f"entries {end.last + 1} to {end.highest} are gone")
        await follow(self._store, last, head)
        checkpoint = Checkpoint(
            namespace=self._store.layout.namespace,
            index=head.index,
            hash=head.hash.hex(),
            sequence=head.sequence,
            time=int(self._clock() * 1000),
        )
        await self._stream.append(SignedCheckpoint.sign(checkpoint, self._key), after)
        if last is None:
            await self._tell_first(checkpoint)
        return checkpoint

    async def _tell_first(self, checkpoint: Checkpoint) -> None:
        """Say so where what got its first checkpoint is old: it may have been signed before."""
        first = (await self._store.removed()).index + 1
        stored = (await self._store.entries_at([first])).get(first)
        if stored is not None and checkpoint.time - (begin := stored.entry()["at"]) >= _UNSIGNED * 1000:
            logger.warning(
                "the audit of %s has %d entries since %s and had no checkpoint: no signer ran, or the"
                " checkpoints were lost. It is signed anew; compare it with an export",
                checkpoint.namespace,
                checkpoint.index,
                told(begin),
            )

    async def reach(self) -> int:
        """How far this key may have signed: to the head, where the chain leads there.

        Else to the last checkpoint: whoever writes Redis could say that the head is far ahead, and a stolen
        key would be good for all that is still to come.
        """
        last = None
        try:
            signed, _ = await self._last()
            last = None if signed is None else signed.checkpoint
            head = await self._store.head()
            await follow(self._store, last, head)
        except _NO_CHAIN:
            return 0 if last is None else last.index
        return head.index

    async def _last(self) -> tuple[SignedCheckpoint | None, int]:
        try:
            signed, after = await self._stream.last()
        except ValueError as error:
            raise ChainAltered(f"the last checkpoint is damaged: {error}") from error
        if signed is None:
            return None, after
        if not self._keys.signed(signed):
            raise ChainAltered(
                f"the last checkpoint (entry {signed.checkpoint.index}) is not signed by this key"
            )
        return signed, after


async def follow(store: Store, last: Checkpoint | None, head: Head) -> None:
    """Check every link from the last checkpoint to the head.

    Raises:
        ChainAltered: one does not hold.

    """
    removed = await store.removed()
    index, previous = removed.index, removed.hash
    if last is not None:
        if head.index < last.index:
            raise ChainAltered(f"entry {last.index} was signed, but the chain ends at {head.index}")
        signed = (await store.entries_at([last.index])).get(last.index)
        if signed is None or signed.hash != last.hash:
            raise ChainAltered(f"entry {last.index} is not the one that was signed")
        index, previous = last.index, bytes.fromhex(last.hash)
    async for identifier, body, said in store.links(index + 1):
        if index == head.index:
            break
        index += 1
        previous = chain.link(previous, body)
        if identifier != b"%d-0" % index or said != previous.hex().encode():
            raise ChainAltered(f"entry {index} does not follow the one before it")
    if index != head.index or previous != head.hash:
        raise ChainAltered(f"the chain does not lead to its head (entry {head.index})")


class SigningRound:
    """Signs every namespace, and remembers which it refuses."""

    def __init__(
        self, redis: Redis, nc: Client, key: Ed25519PrivateKey, keys: CheckpointKeys | None = None
    ) -> None:
        self._redis = redis
        self._nc = nc
        self._key = key
        self.keys = keys or CheckpointKeys(key.public_key())
        self._signers: dict[str, Signer] = {}
        self._kept = SignedNamespaces(nc)
        self._signed: set[str] = set()  # by this process
        self._told: set[tuple[str, str]] = set()
        self._refused: dict[str, float] = {}
        self._failed: dict[str, float] = {}  # when
        self._complained: dict[str, float] = {}
        self._still: dict[str, tuple[object, float]] = {}  # where a chain that is signed ends, looked at when

    async def sign(self) -> None:
        """One round; a refusal is logged at once and then every minute, and so is what failed.

        Neither keeps the other namespaces from being signed.

        Raises:
            RedisError, nats.errors.Error, JetStreamError, OSError: nobody could say what there is to sign.

        """
        names = await self._names()
        still, self._still = self._still, {}
        failures = 0
        for namespace, head in zip(names, await heads(self._redis, names), strict=True):
            now = time.monotonic()
            ended, looked = still.get(namespace, (None, 0.0))
            if head == ended and now - looked < LOOK_EVERY:
                self._still[namespace] = ended, looked
                continue
            try:
                await self._signer(namespace).sign_once()
            except _NO_CHAIN as problem:
                if _says_nothing(problem):
                    self._fail(namespace, problem)
                else:
                    self._refuse(namespace, problem)
            except (RedisError, JetStreamError, nats.errors.Error, OSError) as error:
                self._fail(namespace, error)
                if (failures := failures + 1) == _FAILURES:
                    break
            else:
                for troubles in (self._refused, self._failed, self._complained):
                    troubles.pop(namespace, None)
                self._still[namespace] = head, now
                if head != NO_HEAD:
                    self._signed.add(namespace)
        try:
            await self._kept.add(self._signed)
        except (JetStreamError, nats.errors.Error) as error:
            if _due(self._complained, ""):
                logger.warning("which namespaces are signed cannot be kept: %s", type(error).__name__)

    async def reaches(self) -> dict[str, int]:
        """The last entry of every namespace that may be signed by now.

        Raises:
            RedisError, nats.errors.Error, JetStreamError, OSError: one of the stores is away.

        """
        return {name: await self._signer(name).reach() for name in await self._names()}

    async def _names(self) -> list[str]:
        """What there is to sign, what failed last at the end.

        Redis says it, and whoever writes Redis could say too little or too much.
        """
        try:
            listed, strange = await namespaces(self._redis)
        except ResponseError as error:
            if _says_nothing(error):
                raise
            listed, strange = [], []  # no list at all
        known = self._signed | await self._kept.names()
        self._tell("Redis lists as namespaces what cannot be any, it is not signed", strange)
        self._tell("Redis no longer lists namespaces that were signed, they are signed on", known - {*listed})
        return sorted(known.union(listed), key=lambda name: (self._failed.get(name, 0.0), name))

    def _tell(self, what: str, names: Iterable[str]) -> None:
        """Say ``what`` of each name once, as long as it stays so."""
        now = {(what, name) for name in names}
        if new := sorted(name for _, name in now - self._told):
            more = f" and {len(new) - _NAMED} more" if len(new) > _NAMED else ""
            logger.critical("%s: %s%s", what, ", ".join(repr(name[:80]) for name in new[:_NAMED]), more)
        self._told = {each for each in self._told if each[0] != what} | now

    def _refuse(self, namespace: str, problem: Exception) -> None:
        self._failed.pop(namespace, None)
        if _due(self._refused, namespace):
            logger.critical(
                "REFUSED to sign the audit of %s: %s. Run 'mas audit verify --namespace %s'; if Redis"
                " lost it for good, 'mas audit accept-loss'",
                namespace,
                problem,
                namespace,
            )

    def _fail(self, namespace: str, error: Exception) -> None:
        self._failed[namespace] = time.monotonic()
        if _due(self._complained, namespace):
            logger.warning("the audit of %s is not signed for now: %s", namespace, complaint(error))

    def use(self, key: Ed25519PrivateKey, keys: CheckpointKeys) -> None:
        """Sign with ``key`` from here on."""
        self._key, self.keys = key, keys
        self._signers.clear()
        self._still.clear()

    def _signer(self, namespace: str) -> Signer:
        if namespace not in self._signers:
            stream = CheckpointStream(self._nc, namespace)
            self._signers[namespace] = Signer(
                Store(self._redis, namespace), stream, self._key, keys=self.keys
            )
        return self._signers[namespace]


def _says_nothing(problem: Exception) -> bool:
    """Whether Redis says nothing of what it holds: it has no memory, runs a script, or we may not ask.

    It says one thing only, that a key holds something of another kind.
    """
    return isinstance(problem, ResponseError) and "WRONGTYPE " not in str(problem)


def _due(said: dict[str, float], namespace: str) -> bool:
    """Whether it is to be said (again) of ``namespace``; it is noted in ``said``."""
    now = time.monotonic()
    if now - said.get(namespace, -_REPEAT_REFUSAL) < _REPEAT_REFUSAL:
        return False
    said[namespace] = now
    return True


async def change_key(signing: SigningRound, folder: Path) -> None:
    """Go over to the key that waits in ``folder``, if there is one; what a crash interrupted goes on.

    Raises:
        ConfigurationError: the keys cannot be used.
        RedisError, nats.errors.Error, JetStreamError, OSError: one of the stores is away.

    """
    keys = SignerKeys.load(folder)
    if keys.following is None:
        return
    public, following = PublicMaterial.load(folder), keys.following.public_key()
    history = public.checkpoint_keys
    if history.current != following:
        history = history.followed_by(following, await signing.reaches())
        write_private(folder / "public" / PublicMaterial.HISTORY, history.encode(keys.following))
    pem = following.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_private(folder / "public" / "checkpoint.pub", pem)
    (folder / "signer" / SignerKeys.NEXT).replace(folder / "signer" / SignerKeys.FILE)
    sync_folder(folder / "signer")
    signing.use(keys.following, history)
    logger.info("signing with a new checkpoint key")


async def serve(folder: Path) -> None:
    """Sign until SIGTERM or SIGINT.

    Raises:
        MasError: keys are missing, nothing runs in ``folder``, or the server refused.

    """
    layout = Layout(folder)
    broker = Broker.read(layout)
    keys = SignerKeys.load(layout.keys)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    public = PublicMaterial.load(layout.keys)
    nc = await connect_checkpoints(broker.connection(layout, "signer"), LiveSignerKeys(layout.keys), public)
    redis = Redis.from_url(broker.redis_url(), socket_timeout=5, socket_connect_timeout=2)
    ready = layout.ready("signer")
    ready.touch()
    try:
        signing = SigningRound(redis, nc, keys.checkpoint, public.checkpoint_keys)
        await _until(stop, signing, layout.keys)
    finally:
        ready.unlink(missing_ok=True)
        await redis.aclose()
        await nc.close()


async def _until(stop: asyncio.Event, signing: SigningRound, keys: Path) -> None:
    away = False
    while not stop.is_set():
        try:
            await change_key(signing, keys)
            await signing.sign()
        except (ConfigurationError, RedisError, JetStreamError, nats.errors.Error, OSError) as error:
            if not away:
                logger.warning("not signing: %s", complaint(error))
            away = True
        else:
            away = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), EVERY)


def main() -> None:
    """Run the signer of an embedded installation."""
    parser = argparse.ArgumentParser(prog="python -m broker_policy.audit.signer", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="the folder of 'mas up'")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    asyncio.run(serve(arguments.folder.resolve()))


if __name__ == "__main__":
    main()
