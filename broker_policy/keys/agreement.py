"""Whether the secret keys in a folder belong to what is public beside them."""

from __future__ import annotations

from pathlib import Path

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import Kind
from broker_policy.tenants.material import AUTH, SIGNER, SYSTEM, WORKERS, Material


def strangers(keys: Path) -> list[str]:
    """The names of the keys in ``keys`` that nobody trusts by what ``keys/public`` says.

    Raises:
        ConfigurationError: a file is missing or damaged.

    """
    material = Material.load(keys)
    public, worker, controller = material.public, material.worker, material.controller

    def trusted(account: str) -> str:
        return orjson.dumps(jwt.decode(public.account_jwts[account], issued_by=Kind.OPERATOR)).decode()

    operator = orjson.dumps(jwt.decode(public.operator_jwt, issued_by=Kind.OPERATOR)).decode()
    signs = [key.public_key().public_bytes_raw() for key in _checkpoint_keys(material)]
    good = {
        "operator-signing": controller.operator_signing.public in operator,
        "accounts": controller.account(SYSTEM).public == public.accounts[SYSTEM],
        "sys-signing": controller.system_signing.public in trusted(SYSTEM),
        "auth-signing": worker.auth_signing.public in trusted(AUTH),
        "auth-user": worker.auth_user.public in trusted(AUTH),
        "tenant-signing": worker.tenant_signing.public in public.tenant_signing,
        "control-worker": worker.control_worker.public in trusted(WORKERS),
        "sys-observer": worker.system_observer.public in trusted(WORKERS),
        "control-signer": material.signer.control_signer.public in trusted(SIGNER),
        "checkpoint": public.checkpoint_keys.current.public_bytes_raw() in signs,
    }
    return [name for name, agrees in good.items() if not agrees]


def _checkpoint_keys(material: Material) -> list[Ed25519PrivateKey]:
    """The one that signs, and the one that a rotation has got as far as publishing."""
    following = material.signer.following
    return [material.signer.checkpoint, *([following] if following else [])]
