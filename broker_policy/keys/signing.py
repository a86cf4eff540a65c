"""Rotating an nkey that accounts trust: known beside the old one, taken up by its holders, the old one gone.

A connection that was opened under the old key is cut by the server when the old key goes; it is back at once,
under the new one.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import Kind
from broker_policy.identity.private_files import write_private
from broker_policy.keys import followers
from broker_policy.keys.inventory import BY_NAME
from broker_policy.keys.resolver import Resolver, with_key, without_key
from broker_policy.keys.site import Site
from broker_policy.keys.staged import Staged
from broker_policy.tenants.material import ControllerKeys, PublicMaterial, sentinel

WORKER_KEYS = ("auth-signing", "auth-user", "tenant-signing", "control-worker", "sys-observer")
SIGNING_KEYS = (*WORKER_KEYS, "sys-signing", "control-signer")


async def rotate(site: Site, name: str, *, now: bool) -> None:
    """Rotate ``name``. ``now``: do not wait for holders; who has not followed is cut off.

    Raises:
        Unavailable: a holder does not follow; call again.

    """
    staged = Staged(BY_NAME[name].path(site.layout))
    staged.begin()
    old, new = staged.old.public, staged.new.public
    site.say(f"{name}: {old[:8]}… is replaced by {new[:8]}…")
    if name == "auth-signing":
        await _free_sentinel(site, old)
    if name == "tenant-signing":
        write_tenant_signing(site, staged.current.public, new if new != staged.current.public else old)
    await _change(site, lambda claims: with_key(claims, old, new), "trust both")
    staged.turn()
    if name == "tenant-signing":
        write_tenant_signing(site, new, old)
    if name in WORKER_KEYS and not now:
        await followers.workers(site, lambda keys: keys.get(name) == new, f"{name} taken up")
    if name == "tenant-signing":
        write_tenant_signing(site, new)
    # Both again: another machine's mas apply may have pushed an account as it was before.
    await _change(site, lambda claims: without_key(with_key(claims, old, new), old), "trust the new one only")
    if name == "auth-user":  # no signing key: the server lets its connections be
        async with site.control() as (controller, _):
            await controller.kick(old)
    staged.finish()


def write_tenant_signing(site: Site, *publics: str) -> None:
    """Let ``mas apply`` make accounts that trust ``publics``."""
    path = site.keys / "public" / "accounts.json"
    directory = orjson.loads(path.read_bytes())
    directory["tenant_signing"], also = publics[0], list(publics[1:])
    directory.pop("tenant_signing_also", None)
    if also:
        directory["tenant_signing_also"] = also
    write_private(path, orjson.dumps(directory, option=orjson.OPT_INDENT_2))


async def _change(site: Site, change: Callable[[jwt.Claims], jwt.Claims], what: str) -> None:
    async with Resolver(site) as resolver:
        site.say(f"{await resolver.change_all(change)} accounts {what}")


async def _free_sentinel(site: Site, old: str) -> None:
    """An older installation's sentinel was signed by this key: have the account itself sign it."""
    token = PublicMaterial.load(site.keys).sentinel_jwt
    if jwt.decode(token, issued_by=Kind.ACCOUNT)["iss"] != old:
        return
    before = await followers.loads(site)
    token = sentinel(ControllerKeys.load(site.keys))
    write_private(site.keys / "public" / "sentinel.jwt", token.encode())
    await followers.servers(site, followers.reloaded(before), "sentinel loaded")
