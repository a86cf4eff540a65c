"""Rotating the checkpoint key: the signer itself changes over, since it alone signs."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_policy.identity.private_files import write_private
from broker_policy.keys.site import Site
from broker_policy.tenants.material import SignerKeys


async def rotate(site: Site) -> None:
    """Have the signer change to a new key.

    Raises:
        Unavailable: no signer does; call again.

    """
    following = site.keys / "signer" / SignerKeys.NEXT
    if not following.exists():
        key = Ed25519PrivateKey.generate()
        write_private(following, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    site.say("checkpoint: the signer takes the next key")

    async def waiting() -> str:
        return "the signer has not taken it (does it run?)" if following.exists() else ""

    await site.until(waiting, "checkpoint key taken up")
    site.say("checkpoint: the old key is retired; what it signed stays valid")
