"""The keys of one installation, in one folder for each holder.

::

    keys/controller/  operator.nk operator-signing.nk accounts.key sys-signing.nk   the tenant controller
    keys/worker/      auth-signing.nk auth-user.nk tenant-signing.nk
                      control-worker.nk sys-observer.nk sealing.key token-signing.key every worker
    keys/signer/      checkpoint.key control-signer.nk                               the checkpoint signer
    keys/public/      *.jwt checkpoint.pub accounts.json                             the NATS server, everyone

A holder needs its own folder and ``public``, nothing else (DESIGN 3).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.identity import drafts, jwt
from broker_policy.identity.nkeys import KeyPair, Kind
from broker_policy.identity.private_files import private_folder, sync_folder, write_private
from broker_policy.tenants import accounts
from broker_policy.tenants.sealing_ring import SealingKey, SealingRing
from mas_nats.errors import ConfigurationError

SYSTEM, AUTH, CONTROL, WORKERS, SIGNER = "SYS", "AUTH", "CONTROL", "WORKERS", "SIGNER"
"""The fixed accounts. Upper case, so that no namespace can have such a name."""

ACCOUNT_FILES = {
    SYSTEM: "system.jwt",
    AUTH: "auth.jwt",
    CONTROL: "control.jwt",
    WORKERS: "workers.jwt",
    SIGNER: "signer.jwt",
}
_JETSTREAM = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class ControllerKeys:
    """What the tenant controller holds. Its loss gives away every account."""

    operator_signing: KeyPair
    accounts_secret: bytes = field(repr=False)
    system_signing: KeyPair

    @classmethod
    def load(cls, keys: Path) -> ControllerKeys:
        """Read ``keys/controller``.

        Raises:
            ConfigurationError: a file is missing or damaged.

        """
        folder = keys / "controller"
        return cls(
            operator_signing=_read_nkey(folder / "operator-signing.nk", Kind.OPERATOR),
            accounts_secret=_read_secret(folder / "accounts.key"),
            system_signing=_read_nkey(folder / "sys-signing.nk", Kind.ACCOUNT),
        )

    def account(self, name: str) -> KeyPair:
        """The key of the account ``name``: derived, so that none has to be stored.

        ``<namespace>`` for a tenant, ``<namespace>.<role>.<name>`` for a contained identity.
        """
        seed = hmac.new(self.accounts_secret, f"account/{name}".encode(), hashlib.sha256).digest()
        return KeyPair(Kind.ACCOUNT, seed)


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """What every worker holds."""

    auth_signing: KeyPair
    auth_user: KeyPair
    tenant_signing: KeyPair
    control_worker: KeyPair
    system_observer: KeyPair
    sealing: SealingRing
    tokens: SealingRing | None = None  # None: of an installation that is older than tokens

    TOKENS: ClassVar[str] = "token-signing.key"

    @classmethod
    def load(cls, keys: Path) -> WorkerKeys:
        """Read ``keys/worker``.

        Raises:
            ConfigurationError: a file is missing or damaged.

        """
        folder = keys / "worker"
        return cls(
            auth_signing=_read_nkey(folder / "auth-signing.nk", Kind.ACCOUNT),
            auth_user=_read_nkey(folder / "auth-user.nk", Kind.USER),
            tenant_signing=_read_nkey(folder / "tenant-signing.nk", Kind.ACCOUNT),
            control_worker=_read_nkey(folder / "control-worker.nk", Kind.ACCOUNT),
            system_observer=_read_nkey(folder / "sys-observer.nk", Kind.ACCOUNT),
            sealing=SealingRing.read(folder / "sealing.key"),
            tokens=SealingRing.read(tokens) if (tokens := folder / cls.TOKENS).exists() else None,
        )


@dataclass(frozen=True, slots=True)
class SignerKeys:
    """What the checkpoint signer holds, and nobody else."""

    checkpoint: Ed25519PrivateKey = field(repr=False)
    control_signer: KeyPair
    following: Ed25519PrivateKey | None = field(repr=False, default=None)  # takes its place, see signer.py

    FILE: ClassVar[str] = "checkpoint.key"
    NEXT: ClassVar[str] = "checkpoint.next.key"

    @classmethod
    def load(cls, keys: Path) -> SignerKeys:
        """Read ``keys/signer``.

        Raises:
            ConfigurationError: a file is missing or damaged.

        """
        folder = keys / "signer"
        following = folder / cls.NEXT
        return cls(
            _read_private(folder / cls.FILE),
            _read_nkey(folder / "control-signer.nk", Kind.ACCOUNT),
            _read_private(following) if following.exists() else None,
        )


@dataclass(frozen=True, slots=True)
class PublicMaterial:
    """What the NATS server and every holder know; none of it is secret."""

    operator_jwt: str
    sentinel_jwt: str
    account_jwts: dict[str, str]  # fixed accounts only
    accounts: dict[str, str]  # name -> public key, fixed accounts only
    checkpoint: Ed25519PublicKey = field(repr=False)
    tenant_signing: tuple[str, ...]  # public keys; two while it is rotated
    checkpoint_pem: bytes = field(repr=False, default=b"")
    checkpoint_history: bytes = field(repr=False, default=b"")  # empty while the key was never rotated

    HISTORY: ClassVar[str] = "checkpoint-keys.json"

    @property
    def checkpoint_keys(self) -> CheckpointKeys:
        """The checkpoint keys, the retired ones too.

        Raises:
            ConfigurationError: their list is damaged.

        """
        if not self.checkpoint_history:
            return CheckpointKeys(self.checkpoint)
        try:
            return CheckpointKeys.decode(self.checkpoint_history)
        except ValueError as error:
            raise ConfigurationError(f"{self.HISTORY}: {error}: restore it from the backup") from None

    @classmethod
    def load(cls, keys: Path) -> PublicMaterial:
        """Read ``keys/public``.

        Raises:
            ConfigurationError: a file is missing or damaged.

        """
        folder = keys / "public"
        path = folder / "accounts.json"
        pem, history = _read(folder / "checkpoint.pub"), folder / cls.HISTORY
        try:
            raw = orjson.loads(_read(path))
            names = {name: str(raw["accounts"][name]) for name in ACCOUNT_FILES}
            signing = (str(raw["tenant_signing"]), *map(str, raw.get("tenant_signing_also", ())))
            checkpoint = load_pem_public_key(pem)
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{folder} is damaged: restore it from the backup") from None
        if not isinstance(checkpoint, Ed25519PublicKey):
            raise ConfigurationError(f"{folder / 'checkpoint.pub'} is not an Ed25519 key")
        return cls(
            operator_jwt=_read(folder / "operator.jwt").decode(),
            sentinel_jwt=_read(folder / "sentinel.jwt").decode(),
            account_jwts={name: _read(folder / file).decode() for name, file in ACCOUNT_FILES.items()},
            accounts=names,
            checkpoint=checkpoint,
            tenant_signing=signing,
            checkpoint_pem=pem,
            checkpoint_history=history.read_bytes() if history.exists() else b"",
        )

    def server_config(self, accounts_folder: str | Path = "accounts") -> str:
        """The part of a nats-server configuration that says who is who.

        ``accounts_folder`` is where the server keeps the account JWTs pushed to it; a relative one is
        relative to the server's working directory.
        """
        preload = "\n".join(f"  {self.accounts[name]}: {token}" for name, token in self.account_jwts.items())
        folder = orjson.dumps(str(accounts_folder)).decode()
        return (
            f"operator: {self.operator_jwt}\n"
            f"system_account: {self.accounts[SYSTEM]}\n"
            f'resolver: {{ type: full, dir: {folder}, allow_delete: true, interval: "2m", limit: 100000 }}\n'
            f"resolver_preload: {{\n{preload}\n}}\n"
            f'default_sentinel: "{self.sentinel_jwt}"\n'
        )


@dataclass(frozen=True, slots=True)
class Material:
    """Everything: what a single machine that plays all parts holds."""

    controller: ControllerKeys
    worker: WorkerKeys
    signer: SignerKeys
    public: PublicMaterial

    @classmethod
    def load(cls, keys: Path) -> Material:
        """Read all folders of ``keys``.

        Raises:
            ConfigurationError: a file is missing or damaged.

        """
        return cls(
            ControllerKeys.load(keys), WorkerKeys.load(keys), SignerKeys.load(keys), PublicMaterial.load(keys)
        )


def create_material(keys: Path) -> Material:
    """Make the keys of a new installation in ``keys``, or load those that are there.

    Existing keys are never overwritten: the folder appears complete or not at all.

    Raises:
        ConfigurationError: ``keys`` holds something else, or only part of the keys.

    """
    if keys.exists() and any(keys.iterdir()):
        _add_token_key(keys)
        return Material.load(keys)
    private_folder(keys.parent)
    start = f".{keys.name}."
    drafts.remove_abandoned(keys.parent, start)
    draft = keys.with_name(start + secrets.token_hex(4))
    with drafts.filled(draft):
        _write_material(draft)
        try:
            draft.rename(keys)
        except OSError:
            if not keys.exists():
                raise  # otherwise another process made them at the same moment: use those
    sync_folder(keys.parent)
    return Material.load(keys)


def _add_token_key(keys: Path) -> None:
    """An older installation has all keys but this one."""
    path = keys / "worker" / WorkerKeys.TOKENS
    if (keys / "worker" / "sealing.key").exists() and not path.exists():
        SealingRing(SealingKey.create()).write(path)


def _write_material(keys: Path) -> None:
    folders = {name: private_folder(keys / name) for name in ("controller", "worker", "signer", "public")}
    operator, operator_signing = KeyPair.create(Kind.OPERATOR), KeyPair.create(Kind.OPERATOR)
    signing = {
        name: KeyPair.create(Kind.ACCOUNT)
        for name in (
            "sys-signing",
            "auth-signing",
            "tenant-signing",
            "control-worker",
            "sys-observer",
            "control-signer",
        )
    }
    auth_user = KeyPair.create(Kind.USER)
    controller = ControllerKeys(operator_signing, os.urandom(_KEY_BYTES), signing["sys-signing"])
    checkpoint = Ed25519PrivateKey.generate()

    for name, key in (("operator", operator), ("operator-signing", operator_signing)):
        _write_nkey(folders["controller"], name, key)
    _write_nkey(folders["controller"], "sys-signing", signing["sys-signing"])
    write_private(folders["controller"] / "accounts.key", controller.accounts_secret.hex().encode())
    for name in ("auth-signing", "tenant-signing", "control-worker", "sys-observer"):
        _write_nkey(folders["worker"], name, signing[name])
    _write_nkey(folders["worker"], "auth-user", auth_user)
    SealingRing(SealingKey.create()).write(folders["worker"] / "sealing.key")
    SealingRing(SealingKey.create()).write(folders["worker"] / WorkerKeys.TOKENS)
    _write_nkey(folders["signer"], "control-signer", signing["control-signer"])
    write_private(
        folders["signer"] / "checkpoint.key",
        checkpoint.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )

    public = folders["public"]
    fixed = _fixed_accounts(controller, {name: key.public for name, key in signing.items()}, auth_user.public)
    tokens = {
        ACCOUNT_FILES[account.name]: jwt.encode(operator_signing, account.claims()) for account in fixed
    }
    keys_by_name = {account.name: account.public for account in fixed}
    tokens["operator.jwt"] = jwt.encode(
        operator,
        jwt.operator_claims(
            operator.public,
            "mas",
            system_account=keys_by_name[SYSTEM],
            signing_keys=[operator_signing.public],
        ),
    )
    tokens["sentinel.jwt"] = sentinel(controller)
    for file, token in tokens.items():
        write_private(public / file, token.encode())
    write_private(
        public / "checkpoint.pub",
        checkpoint.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )
    directory = {"accounts": keys_by_name, "tenant_signing": signing["tenant-signing"].public}
    write_private(public / "accounts.json", orjson.dumps(directory, option=orjson.OPT_INDENT_2))


def sentinel(controller: ControllerKeys) -> str:
    """The user that whoever brings no JWT becomes, for as long as the callout takes.

    Its key is thrown away. The account itself signs it, so that it outlives the signing keys.
    """
    user = KeyPair.create(Kind.USER).public
    claims = jwt.user_claims(user, "sentinel", jwt.Permissions(), bearer=True)
    return jwt.encode(controller.account(AUTH), claims)


def _fixed_accounts(controller: ControllerKeys, signing: dict[str, str], auth_user: str) -> list[jwt.Account]:
    def public(name: str) -> str:
        return controller.account(name).public

    return [
        jwt.Account(
            public(SYSTEM),
            SYSTEM,
            signing_keys=[signing["sys-signing"]],
            exports=[use.export() for use in accounts.OBSERVER],
        ),
        jwt.Account(
            public(AUTH),
            AUTH,
            signing_keys=[signing["auth-signing"]],
            authorization={"auth_users": [auth_user], "allowed_accounts": ["*"]},
        ),
        jwt.Account(
            public(CONTROL),
            CONTROL,
            exports=[use.export() for use in accounts.CONTROL_EXPORTS],
            jetstream=_JETSTREAM,
        ),
        jwt.Account(
            public(WORKERS),
            WORKERS,
            signing_keys=[
                jwt.ScopedKey(signing["control-worker"], "worker", accounts.worker_permissions()),
                jwt.ScopedKey(signing["sys-observer"], "observer", accounts.permissions(accounts.OBSERVER)),
            ],
            imports=[
                *accounts.imports(public(CONTROL), accounts.WORKER),
                *accounts.imports(public(SYSTEM), accounts.OBSERVER),
            ],
        ),
        jwt.Account(
            public(SIGNER),
            SIGNER,
            signing_keys=[
                jwt.ScopedKey(signing["control-signer"], "signer", accounts.permissions(accounts.SIGNER))
            ],
            imports=accounts.imports(public(CONTROL), accounts.SIGNER),
        ),
    ]


def _write_nkey(folder: Path, name: str, key: KeyPair) -> None:
    write_private(folder / f"{name}.nk", key.seed.encode())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror}): restore it from the backup, or make a new "
            "installation in an empty folder"
        ) from None


def _read_private(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(path), None)
    except ValueError:
        raise ConfigurationError(f"{path} is damaged: restore it from the backup") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key")
    return key


def _read_nkey(path: Path, kind: Kind) -> KeyPair:
    try:
        key = KeyPair.from_seed(_read(path).decode())
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if key.kind is not kind:
        raise ConfigurationError(f"{path} holds a key of kind {key.kind.name}, not {kind.name}")
    return key


def _read_secret(path: Path) -> bytes:
    try:
        secret = bytes.fromhex(_read(path).decode())
    except ValueError:
        raise ConfigurationError(f"{path} is damaged: restore it from the backup") from None
    if len(secret) != _KEY_BYTES:
        raise ConfigurationError(f"{path} is damaged: restore it from the backup")
    return secret
