"""Rotating the operator's two keys.

nats-server takes a new operator only when it starts, so each step that changes what servers trust waits until
every server was started again; in a cluster one after the other.
"""

from __future__ import annotations

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import Kind
from broker_policy.identity.private_files import write_private
from broker_policy.keys import followers
from broker_policy.keys.inventory import BY_NAME
from broker_policy.keys.resolver import Resolver
from broker_policy.keys.site import Site
from broker_policy.keys.staged import Staged
from broker_policy.tenants.material import SYSTEM, PublicMaterial


async def rotate_signing(site: Site) -> None:
    """Servers learn the new signing key, all accounts are signed by it, servers forget the old one.

    Raises:
        Unavailable: a server was not started again; call again.

    """
    staged = Staged(BY_NAME["operator-signing"].path(site.layout))
    identity = Staged(BY_NAME["operator"].path(site.layout))
    staged.begin()
    old, new = staged.old.public, staged.new.public
    site.say(f"operator-signing: {old[:8]}… is replaced by {new[:8]}…")
    await _trust(site, identity, (old, new))
    staged.turn()
    await _sign_again(site)
    await _trust(site, identity, (new,))
    staged.finish()


async def _sign_again(site: Site) -> None:
    """Sign the accounts that policy knows, and bring them to what policy wants."""
    async with site.control() as (controller, store):
        documents = [stored.document for stored in await store.namespaces()]
        known = {document.account for document in documents}
        for document in documents:
            known |= {agent.account for agent in document.agents.values()} | set(document.inspectors.values())
        async with Resolver(site) as resolver:
            pushed, unknown = await resolver.sign_again(known)
        for document in documents:
            name, limits = document.namespace, document.limits
            await controller.ensure_tenant(name, limits)
            for agent, policy in document.agents.items():
                await controller.ensure_agent(name, agent, limits, policy.state)
            for inspector in document.inspectors:
                await controller.ensure_inspector(name, inspector)
    ending = f"; {unknown} that policy does not know end" if unknown else ""
    site.say(f"{pushed} accounts signed by the new key{ending}")


async def rotate_identity(site: Site) -> None:
    """The operator itself becomes another, with the same signing key. Errors as ``rotate_signing``."""
    identity = Staged(BY_NAME["operator"].path(site.layout))
    signing = Staged(BY_NAME["operator-signing"].path(site.layout)).current.public
    identity.begin()
    site.say(f"operator: {identity.old.public[:8]}… is replaced by {identity.new.public[:8]}…")
    identity.turn()
    await _trust(site, identity, (signing,))
    identity.finish()


async def _trust(site: Site, identity: Staged, signing: tuple[str, ...]) -> None:
    """Have every server trust the accounts that ``signing`` sign."""
    public = PublicMaterial.load(site.keys)
    operator = identity.current
    claims = jwt.operator_claims(
        operator.public, "mas", system_account=public.accounts[SYSTEM], signing_keys=signing
    )
    before = jwt.decode(public.operator_jwt, issued_by=Kind.OPERATOR)
    token = public.operator_jwt
    if before["iss"] != operator.public or set(before["nats"]["signing_keys"]) != set(signing):
        token = jwt.encode(operator, claims)
        write_private(site.keys / "public" / "operator.jwt", token.encode())
    count = len(signing)
    await followers.servers(
        site,
        lambda settings: token in settings.get("trusted_operators_jwt", ()),
        f"{count} signing key{'s' if count > 1 else ''} trusted",
    )
