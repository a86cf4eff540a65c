"""Rotating one key by its name."""

from __future__ import annotations

from pathlib import Path

from broker_policy.keys import certificates, checkpoint, operator, sealing, signing, tokens
from broker_policy.keys.inventory import BY_NAME
from broker_policy.keys.site import Site
from broker_policy.keys.turns import only_one
from mas_nats.errors import ConfigurationError

_IN_PLACE = (
    "the accounts secret cannot be rotated in place: account identities, and with them the data of every "
    "tenant, are derived from it. Rotate operator-signing and tenant-signing instead; when the secret "
    "itself is lost, restore the data into a new installation (docs/keys.md, 'The accounts secret')"
)


async def rotate(site: Site, name: str, *, now: bool = False) -> None:
    """Rotate ``name``. Called again after a crash or an error, it goes on from where it stopped.

    ``now`` does not wait for holders that do not follow, and leaves no overlap: for a key that was stolen.

    Raises:
        ConfigurationError: there is no such key, it cannot be rotated, or somebody else is at work with keys.
        NotRunning: the broker does not run.
        Unavailable: a holder does not follow; both keys are valid meanwhile.

    """
    if name not in BY_NAME:
        raise ConfigurationError(f"there is no key {name!r}: see mas keys list")
    if name == "accounts":
        raise ConfigurationError(_IN_PLACE)
    with only_one(site.keys):
        _require_none_other(site, name)
        if name in signing.SIGNING_KEYS:
            await signing.rotate(site, name, now=now)
        elif name == "operator-signing":
            await operator.rotate_signing(site)
        elif name == "operator":
            await operator.rotate_identity(site)
        elif name == "sealing":
            await sealing.rotate(site, now=now)
        elif name == "token-signing":
            await tokens.rotate(site, now=now)
        elif name == "checkpoint":
            await checkpoint.rotate(site)
        elif name == "ca":
            await certificates.rotate_ca(site, now=now)
        elif name == "tls-server":
            await certificates.rotate_server(site)
        else:
            await certificates.rotate_policy(site, name.removeprefix("tls-"))


def _require_none_other(site: Site, name: str) -> None:
    """Let an interrupted rotation of another key be finished first."""
    for other, key in BY_NAME.items():
        path: Path = key.path(site.layout)
        begun = [path.with_suffix(f".{stage}.nk") for stage in ("next", "old")]
        if other != name and path.suffix == ".nk" and any(each.exists() for each in begun):
            raise ConfigurationError(
                f"the rotation of {other} is not finished: mas keys rotate {other}, then {name}"
            )
