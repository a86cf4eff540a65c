"""What a ``MultiAgentSystem`` and its policies want of their namespace.

Who may call whom comes from the types: agents and clients call agents and MCP servers, nobody calls a client.
These rules are roles, ``agent`` and ``client``. An application with ``allowedEndpoints`` has those instead.
Across namespaces nothing is allowed but what a policy says, on either side (ADR 27).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mas_nats.manifest.app_type import AppType
from mas_nats.manifest.casa import (
    App,
    CasaPolicy,
    Endpoint,
    MultiAgentSystem,
    ToolExchange,
)
from mas_nats.manifest.gateway import variables
from mas_nats.manifest.mistakes import Place, guess
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.policy.applications import ApplicationPolicy, ApplicationType, TokenPolicy
from mas_nats.policy.document import Permissions
from mas_nats.policy.governance import Role
from mas_nats.policy.roles import ACTION
from mas_nats.wire.identity import ANY_AGENT

Systems = Mapping[str, MultiAgentSystem]
"""The systems that are declared together, by namespace."""


class Problem(NamedTuple):
    """What is wrong in a document that fits its model."""

    place: Place
    text: str


def problems(policy: CasaPolicy, systems: Systems) -> Iterator[Problem]:
    """What a policy says of applications that there are not, or that their types forbid."""
    home = systems.get(policy.namespace)
    if home is None:
        known = f"declared here are {', '.join(sorted(systems))}" if systems else "declared here is none"
        yield Problem(
            ("metadata", "namespace"),
            f"there is no MultiAgentSystem of namespace {policy.namespace} beside this policy; {known}",
        )
        return
    spec = policy.spec
    app = home.app(spec.target_ref.name)
    if app is None:
        yield Problem(("spec", "targetRef", "name"), _no_app(home, spec.target_ref.name))
        return
    if spec.allowed_endpoints and (wrong := _calls_nobody(app)):
        yield Problem(("spec", "allowedEndpoints"), wrong)
    if spec.allowed_sources and (wrong := _is_not_called(app)):
        yield Problem(("spec", "allowedSources"), wrong)
    for at, endpoint in enumerate(spec.allowed_endpoints or ()):
        if endpoint.scopes:
            text = "this is said where it is called: in allowedSources of its policy"
            yield Problem(("spec", "allowedEndpoints", at, "scopes"), text)
        system = systems.get(endpoint.namespace or policy.namespace)
        yield from _of_app(endpoint, ("spec", "allowedEndpoints", at), system, _is_not_called)
    for at, source in enumerate(spec.allowed_sources):
        place = ("spec", "allowedSources", at)
        if unknown := sorted({*source.scopes} - {*app.scopes}):
            text = f"{app.name} has no such scopes: {' '.join(unknown)}"
            yield Problem((*place, "scopes"), text)
        if (source.namespace or policy.namespace) == policy.namespace:
            yield Problem(
                (*place, "namespace"),
                "this is about callers of other namespaces; who calls whom within one is said by "
                "allowedEndpoints of the caller",
            )
        else:
            yield from _of_app(source, place, systems.get(source.namespace or ""), _calls_nobody)


def _of_app(
    named: Endpoint, place: Place, system: MultiAgentSystem | None, against: Callable[[App], str]
) -> Iterator[Problem]:
    """What is wrong with an application that a rule names; ``against`` says why its type forbids it."""
    if system is None or named.name == ANY_AGENT:
        return
    app = system.app(named.name)
    wrong = _no_app(system, named.name) if app is None else against(app)
    if wrong:
        yield Problem((*place, "name"), wrong)


def _calls_nobody(app: App) -> str:
    return "" if app.type.calls else f"{app.name} is an mcp_server, which calls nobody"


def _is_not_called(app: App) -> str:
    return "" if app.type.called else f"{app.name} is a client, which nobody calls"


def _no_app(system: MultiAgentSystem, name: str) -> str:
    names = sorted({name for app in system.spec.apps for name in (app.name, app.agent_id)})
    known = f"known are {', '.join(names)}" if names else "it has none"
    return f"{system.namespace} has no application {name!r}{guess(name, names)}; {known}"


def wanted(system: MultiAgentSystem, policies: Sequence[CasaPolicy], systems: Systems) -> Wanted:
    """What they want; no policy has ``problems``."""
    spec, here = system.spec, system.namespace
    allowed: dict[str, list[str]] = {}
    for policy in policies:
        app = _require(system.app(policy.spec.target_ref.name))
        if policy.spec.allowed_endpoints is not None:
            targets = allowed.setdefault(app.agent_id, [])
            for endpoint in policy.spec.allowed_endpoints:
                targets += _targets(endpoint, app, system, systems)
    restricted = frozenset(allowed)
    sources: dict[str, dict[str, tuple[str, ...]]] = {}
    for policy in policies:
        app = _require(system.app(policy.spec.target_ref.name))
        for source in policy.spec.allowed_sources:
            name = f"{source.namespace}/{_named(source, source.namespace or here, systems)}"
            allowed.setdefault(name, []).append(app.agent_id)
            if source.scopes:
                known = sources.setdefault(app.agent_id, {})
                known[name] = tuple(dict.fromkeys((*known.get(name, ()), *source.scopes)))
    return Wanted(
        namespace=here,
        agents={
            app.agent_id: WantedAgent(metadata={"application": app.name, "type": app.type.value})
            for app in spec.apps
        },
        permissions={
            sender: Permissions(allowed_targets=tuple(dict.fromkeys(targets)))
            for sender, targets in sorted(allowed.items())
        },
        inspectors=spec.inspectors,
        operators=spec.operators,
        limits=spec.limits,
        governance=spec.settings.governance().model_copy(update={"roles": _roles(spec.apps, restricted)}),
        tokens=TokenPolicy(
            checks=spec.enabled_tool_checks,
            applications={
                app.agent_id: ApplicationPolicy(
                    type=ApplicationType(app.type.value),
                    scopes=tuple(dict.fromkeys(app.scopes)),
                    sources=sources.get(app.agent_id, {}),
                )
                for app in spec.apps
            },
        ),
        notices=tuple(_notices(system)),
    )


def _roles(apps: Iterable[App], restricted: frozenset[str]) -> dict[str, Role]:
    """What the types allow, to those whom no policy restricts."""
    apps = tuple(apps)
    receivers = tuple(f"{ACTION}:{app.agent_id}" for app in apps if app.type.called)
    found = {}
    for kind in (each for each in AppType if each.calls):
        holders = tuple(app.agent_id for app in apps if app.type is kind and app.agent_id not in restricted)
        if holders and receivers:
            found[kind.value] = Role(permissions=receivers, agents=holders)
    return found


def _targets(endpoint: Endpoint, app: App, system: MultiAgentSystem, systems: Systems) -> list[str]:
    namespace = endpoint.namespace or system.namespace
    if namespace != system.namespace:
        return [f"{namespace}/{_named(endpoint, namespace, systems)}"]
    if endpoint.name == ANY_AGENT:
        return [each.agent_id for each in system.spec.apps if each.type.called and each is not app]
    return [_named(endpoint, namespace, systems)]


def _named(endpoint: Endpoint, namespace: str, systems: Systems) -> str:
    """The agent id of an application; of a system that is not declared here it is the name."""
    system = systems.get(namespace)
    found = system.app(endpoint.name) if system is not None else None
    return found.agent_id if found is not None else endpoint.name


def _require(app: App | None) -> App:
    if app is None:
        raise LookupError("wanted() was called for policies with problems")
    return app


def _notices(system: MultiAgentSystem) -> Iterator[str]:
    spec = system.spec
    if spec.tool_exchange is ToolExchange.DENIED:
        yield "spec.enabledToolChecks is not said, which denies every exchange of a token for a tool"
    elif spec.tool_exchange is ToolExchange.UNCHECKED:
        yield (
            "spec.enabledToolChecks is empty, which lets every application exchange a token for any tool "
            "without a check; leave it out to deny them all"
        )
    if spec.authorization_server is not None:
        yield "spec.authorizationServer is passed over: tokens are issued by this system itself"
    for app in spec.apps:
        if app.scopes and app.type.called and not any(_may_hold(other, app) for other in spec.apps):
            yield f"nobody in {system.namespace} has one of the scopes that a call of {app.name} needs"
    for app in spec.apps:
        if app.http_request_schema is not None and app.type is not AppType.AGENT:
            yield f"httpRequestSchema of {app.name} says nothing: it is of type {app.type}, not agent"
    if named := variables():
        yield f"the environment beats the file: {', '.join(named)}"


def _may_hold(caller: App, app: App) -> bool:
    return caller is not app and caller.type.calls and not set(caller.scopes).isdisjoint(app.scopes)
