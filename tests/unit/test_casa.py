"""CASA's documents: they load unchanged, become agents and rules, and keep what the sidecar needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents
from mas_nats.manifest.app_type import AppType
from mas_nats.manifest.casa import MultiAgentSystem, ToolCheck, ToolExchange
from mas_nats.manifest.documents import Manifest
from mas_nats.policy.document import Permissions
from mas_nats.policy.table import Table
from tests.casa import policy

DATA = Path(__file__).parent / "data"

SYSTEM = """
apiVersion: casa.io/v1alpha1
kind: MultiAgentSystem
metadata: {{name: {name}}}
spec:
  name: For tests
  enabledToolChecks: [DETERMINISTIC_TOOL_SELECTED]
  apps:
    - {{name: shell, type: client}}
    - {{name: planner, type: agent, baseUrl: "http://planner:8000"}}
    - {{name: worker, type: agent, kubernetesWorkloadName: worker-v2, baseUrl: "http://work.{name}.svc:8001"}}
    - {{name: files, type: mcp_server, baseUrl: {{host: "files:8080", scheme: https}}}}
"""


def system(name: str = "one", **spec: str) -> str:
    return SYSTEM.format(name=name) + "".join(f"  {key}: {value}\n" for key, value in spec.items())


def load(folder: Path, *texts: str) -> Manifest:
    path = folder / "casa.yaml"
    path.write_text("---\n".join(texts))
    return documents.load(path)


def said(manifest: Manifest, namespace: str = "one") -> MultiAgentSystem:
    found = manifest.of(namespace).said
    assert isinstance(found, MultiAgentSystem)
    return found


def ways(manifest: Manifest, namespace: str = "one") -> set[tuple[str, str]]:
    """Who may send to whom there, by the compiled policy."""
    table = Table.compile(manifest.of(namespace).wanted.document(), 0)
    agents = table.document.agents
    return {(a, b) for a in agents for b in agents if a != b and table.allows(a, b)}


BY_TYPE = {
    ("shell", "planner"),
    ("shell", "worker-v2"),
    ("shell", "files"),
    ("planner", "worker-v2"),
    ("planner", "files"),
    ("worker-v2", "planner"),
    ("worker-v2", "files"),
}


def test_the_document_of_the_page_loads_unchanged() -> None:
    manifest = documents.load(DATA / "casa.yaml")
    assert [each.namespace for each in manifest.namespaces] == ["my-mas"]
    spec = said(manifest).spec
    assert (spec.name, spec.llm_host) == ("My Multi-Agent System", "your-llm-host.example.com")
    assert spec.enabled_tool_checks == (ToolCheck.TOOL_SELECTED, ToolCheck.LLM_SELECTED)
    assert spec.tool_exchange is ToolExchange.CHECKED
    assert [(app.name, app.type) for app in spec.apps] == [
        ("my-client", AppType.CLIENT),
        ("my-agent", AppType.AGENT),
        ("my-mcp-server", AppType.MCP_SERVER),
    ]
    agent = spec.apps[1]
    assert agent.base_url is not None
    assert agent.http_request_schema is not None
    assert (agent.base_url.name, agent.base_url.port, agent.base_url.scheme) == ("my-agent", 8000, "http")
    assert agent.http_request_schema.prompt_parts == ("prompt",)
    wanted = manifest.of("my-mas").wanted
    assert {name: each.metadata["type"] for name, each in wanted.agents.items()} == {
        "my-client": "client",
        "my-agent": "agent",
        "my-mcp-server": "mcp_server",
    }
    assert ways(manifest, "my-mas") == {
        ("my-client", "my-agent"),
        ("my-client", "my-mcp-server"),
        ("my-agent", "my-mcp-server"),
    }


def test_what_is_kept_for_the_sidecar_is_frozen() -> None:
    spec = said(documents.load(DATA / "casa.yaml")).spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.apps[0].name = "other"  # type: ignore[misc]


def test_types_say_who_may_call_whom(tmp_path: Path) -> None:
    manifest = load(tmp_path, system())
    assert ways(manifest) == BY_TYPE
    assert set(manifest.of("one").wanted.governance.roles) == {"agent", "client"}


def test_a_policy_replaces_what_the_type_allows_for_its_application_only(tmp_path: Path) -> None:
    manifest = load(tmp_path, system(), policy("planner", "allowedEndpoints: [{name: files, port: 8080}]"))
    without = {(a, b) for a, b in BY_TYPE if a != "planner"}
    assert ways(manifest) == without | {("planner", "files")}
    nobody = load(tmp_path, system(), policy("planner", "allowedEndpoints: []"))
    assert ways(nobody) == without
    other = load(tmp_path, system(), policy("planner", "allowedProtocols: [mcp]"))
    assert ways(other) == BY_TYPE, "what does not speak of endpoints leaves them as they are"
    every = load(tmp_path, system(), policy("planner", "allowedEndpoints: [{name: '*'}]"))
    assert ways(every) == BY_TYPE


@pytest.mark.parametrize("name", ["worker", "worker-v2", "work"])
def test_an_application_goes_by_its_name_its_workload_and_its_host(tmp_path: Path, name: str) -> None:
    manifest = load(tmp_path, system(), policy("planner", f"allowedEndpoints: [{{name: {name}}}]"))
    assert {b for a, b in ways(manifest) if a == "planner"} == {"worker-v2"}
    target = load(tmp_path, system(), policy("worker", "allowedEndpoints: []"))
    assert not any(a == "worker-v2" for a, _ in ways(target))


def test_across_namespaces_both_sides_have_to_say_so(tmp_path: Path) -> None:
    out = policy("planner", "allowedEndpoints: [{name: worker, namespace: two}]")
    takes = policy("worker", "allowedSources: [{name: planner, namespace: one}]", "two")
    both = load(tmp_path, system("one"), system("two"), out, takes)
    assert both.of("one").wanted.permissions == {"planner": Permissions(allowed_targets=("two/worker-v2",))}
    assert both.of("two").wanted.permissions == {
        "one/planner": Permissions(allowed_targets=("worker-v2",)),
    }
    assert ways(both, "two") == BY_TYPE, "a caller from elsewhere changes nothing within"
    assert both.notices == ()
    (first,) = load(tmp_path, system("one"), system("two"), out).notices
    assert "one lets planner send to two/worker-v2, but two does not accept it" in first
    (second,) = load(tmp_path, system("one"), system("two"), takes).notices
    assert "two accepts one/planner at worker-v2, but one does not let it send there" in second
    alone = load(tmp_path, system("one"), system("two"))
    for one, other in (("one", "two"), ("two", "one")):
        table = Table.compile(alone.of(one).wanted.document(), 0)
        assert not table.lets("planner", f"{other}/worker-v2")
        assert not table.accepts(f"{other}/planner", "planner")


def test_a_mas_yaml_and_casa_documents_stand_in_one_file(tmp_path: Path) -> None:
    text = (
        "namespace: two\nagents: [{agent_id: desk}]\n"
        "permissions: [{type: allow, sender: one/planner, targets: [desk]}]\n"
    )
    out = policy("planner", "allowedEndpoints: [{name: desk, namespace: two}]")
    manifest = load(tmp_path, text, system(), out)
    assert [each.namespace for each in manifest.namespaces] == ["two", "one"]
    assert manifest.notices == ()
    assert [each.where.rpartition("/")[2] for each in manifest.namespaces] == [
        "casa.yaml, line 1",
        "casa.yaml, line 6",
    ]


def test_files_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(policy("planner", "allowedEndpoints: []"))
    (tmp_path / "b.yaml").write_text(system())
    manifest = documents.load(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert not any(a == "planner" for a, _ in ways(manifest))


def test_without_a_namespace_the_name_is_it_and_what_kubernetes_adds_is_passed_over(tmp_path: Path) -> None:
    text = system().replace(
        "{name: one}",
        "{name: one, uid: 0f, resourceVersion: '7', generation: 2, labels: {a: b}, annotations: {c: d}, "
        "creationTimestamp: 2026-01-01T00:00:00Z, managedFields: [{}], finalizers: [x], ownerReferences: []}",
    )
    manifest = load(tmp_path, text + "status: {phase: Active, appsReady: 3}\n")
    assert manifest.of("one").namespace == "one"


# -- notices ---------------------------------------------------------------------------------------------
def notices(manifest: Manifest, namespace: str = "one") -> str:
    return "\n".join(manifest.of(namespace).wanted.notices)


def test_tool_checks_and_types_are_policy() -> None:
    tokens = documents.load(DATA / "casa.yaml").of("my-mas").wanted.tokens
    assert tokens.checks == (ToolCheck.TOOL_SELECTED, ToolCheck.LLM_SELECTED)
    assert {name: app.type.value for name, app in tokens.applications.items()} == {
        "my-client": "client",
        "my-agent": "agent",
        "my-mcp-server": "mcp_server",
    }


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    assert "no effect" not in notices(documents.load(DATA / "casa.yaml"), "my-mas")
    more = load(
        tmp_path,
        system(authorizationServer="realm", gateway="{telemetry: {enabled: true}}").replace(
            "type: client}", "type: client, kubernetesWorkloadName: shell}"
        ),
        policy("planner", "allowedProtocols: [mcp]\n  llmEndpoint: {fqdn: llm.example.com}"),
    )
    found = notices(more)
    for name in ("allowedProtocols", "llmEndpoint", "baseUrl", "llm_host"):  # sidecars go by them
        assert name not in found
    assert "spec.authorizationServer is passed over" in found


def test_scopes_are_policy(tmp_path: Path) -> None:
    shell, planner = "type: client, scopes: [read, read]}", "type: agent, scopes: [read, write], baseUrl"
    text = system().replace("type: client}", shell).replace("type: agent, baseUrl", planner, 1)
    source = "allowedSources: [{namespace: far, name: desk, scopes: [write]}, {namespace: far, name: desk}]"
    manifest = load(tmp_path, text, policy("planner", source))
    tokens = manifest.of("one").wanted.tokens
    assert tokens.scopes_of("shell") == {"read"}
    assert tokens.scopes_of("planner") == {"read", "write"}
    assert tokens.scopes_of("files") == tokens.scopes_of("nobody") == frozenset()
    assert tokens.source_scopes("planner", "far/desk") == {"write"}
    assert tokens.source_scopes("planner", "far/other") == tokens.source_scopes("files", "far/desk") == set()
    assert "nobody in one has one of the scopes" not in notices(manifest)
    alone = load(tmp_path, text.replace("scopes: [read, read]", "scopes: [other]"))
    assert "nobody in one has one of the scopes that a call of planner needs" in notices(alone)
    everybody = load(tmp_path, text, policy("planner", source.replace("name: desk", 'name: "*"')))
    assert everybody.of("one").wanted.tokens.source_scopes("planner", "far/any") == {"write"}


@pytest.mark.parametrize(
    ("said_", "words"),
    [
        ("allowedSources: [{namespace: far, name: desk, scopes: [none]}]", "has no such scopes: none"),
        ("allowedEndpoints: [{name: files, scopes: [read]}]", "this is said where it is called"),
    ],
)
def test_scopes_that_nobody_could_have_are_mistakes(tmp_path: Path, said_: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load(tmp_path, system(), policy("planner", said_))


@pytest.mark.parametrize(
    ("line", "exchange", "words"),
    [
        ("", ToolExchange.DENIED, "is not said, which denies every exchange"),
        (
            "  enabledToolChecks: []\n",
            ToolExchange.UNCHECKED,
            "is empty, which lets every application exchange",
        ),
        ("  enabledToolChecks: [DETERMINISTIC_TOOL_SELECTED]\n", ToolExchange.CHECKED, ""),
    ],
)
def test_without_checks_tools_are_denied_unless_the_list_is_empty_which_warns(
    tmp_path: Path, line: str, exchange: ToolExchange, words: str
) -> None:
    text = system().replace("  enabledToolChecks: [DETERMINISTIC_TOOL_SELECTED]\n", line)
    manifest = load(tmp_path, text)
    assert said(manifest).spec.tool_exchange is exchange
    found = notices(manifest)
    assert words in found
    if exchange is ToolExchange.CHECKED:
        assert "every" not in found


def test_governance_and_limits_are_those_of_a_mas_yaml(tmp_path: Path) -> None:
    manifest = load(
        tmp_path,
        system(
            gateway="{rate_limit: {per_minute: 7}, features: {rbac: false}}",
            limits="{max_payload: 5000}",
            inspectors="[watcher]",
            operators="[olga]",
        ),
    )
    wanted = manifest.of("one").wanted
    assert (wanted.governance.rate_limit.per_minute, wanted.limits.max_payload) == (7, 5000)
    assert (wanted.inspectors, wanted.operators) == (("watcher",), ("olga",))
    assert ways(manifest) == BY_TYPE, "rbac is about roles that somebody wrote"
    assert load(tmp_path, system()).of("one").wanted.governance.dlp.enabled


# -- fields ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        ('"http://my-agent.my-mas.svc.cluster.local:8000"', "my-agent.my-mas.svc.cluster.local", 8000),
        ('"https://planner/"', "planner", 443),
        ("{host: planner, scheme: http}", "planner", 80),
        ('{host: "Planner:8000", scheme: https}', "planner", 8000),
    ],
)
def test_a_base_url_is_a_text_or_its_parts(tmp_path: Path, text: str, name: str, port: int) -> None:
    spec = said(load(tmp_path, system().replace('"http://planner:8000"', text))).spec
    url = spec.apps[1].base_url
    assert url is not None
    assert (url.name, url.port) == (name, port)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("{.prompt}", ("prompt",)),
        ("{ $.messages[-1].content }", ("messages", -1, "content")),
        (".a['b c'].d", ("a", "b c", "d")),
        ('$["x"][0]', ("x", 0)),
    ],
)
def test_paths_to_the_prompt(tmp_path: Path, path: str, parts: tuple[Any, ...]) -> None:
    quoted = path.replace("'", "''")
    text = system().replace(
        '"http://planner:8000"',
        f"\"http://planner:8000\", httpRequestSchema: {{promptFieldJsonPath: '{quoted}'}}",
    )
    schema = said(load(tmp_path, text)).spec.apps[1].http_request_schema
    assert schema is not None
    assert schema.prompt_parts == parts


# -- mistakes --------------------------------------------------------------------------------------------
SPEC = {
    "name": "For tests",
    "apps": "[{name: planner, type: agent, baseUrl: 'http://planner:8000'}]",
}


def one(**change: str | None) -> str:
    spec = {key: value for key, value in {**SPEC, **change}.items() if value is not None}
    head = "apiVersion: casa.io/v1alpha1\nkind: MultiAgentSystem\nmetadata: {name: one}\nspec:\n"
    return head + "".join(f"  {key}: {value}\n" for key, value in spec.items())


def app(text: str) -> str:
    return one(apps=f"[{text}]")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (one(name=None), "line 4, spec.name: Field required"),
        (one(name="7"), "line 5, spec.name: must be text .found 7."),
        (one(name="''"), "line 5, spec.name: .*at least 1 character"),
        (one(apps="{}"), "line 6, spec.apps: must be a list .found a mapping."),
        (one(apps="planner"), r"line 6, spec.apps: .*\(found text\)"),
        (one(app="[]"), "line 7, spec.app: there is no such key; did you mean 'apps'"),
        (one(enabledToolCheck="[]"), "line 7, spec.enabledToolCheck: .*did you mean 'enabledToolChecks'"),
        (one(llmHost="a.example"), "line 7, spec.llmHost: .*did you mean 'llm_host'"),
        (one(llm_host="'http://a.example'"), "line 7, spec.llm_host: .*this is no host"),
        (one(llm_host="a.example:99999"), "line 7, spec.llm_host: .*this is no host"),
        (
            one(enabledToolChecks="[DETERMINISTIC_TOOL_SELECT]"),
            (
                "line 7, spec.enabledToolChecks.0: .*'DETERMINISTIC_TOOL_SELECTED' or "
                "'DETERMINISTIC_LLM_SELECTED_TOOLS'; did you mean 'DETERMINISTIC_TOOL_SELECTED'.*"
                "found 'DETERMINISTIC_TOOL_SELECT'"
            ),
        ),
        (
            one(enabledToolChecks="[AI_POWERED_TOOL_MATCH]"),
            "Checks.0: .*found 'AI_POWERED_TOOL_MATCH'",
        ),
        (one(enabledToolChecks="yes"), "enabledToolChecks: .*found true"),
        (app("{type: agent, baseUrl: 'http://a'}"), "spec.apps.0.name: Field required"),
        (app("{name: a, baseUrl: 'http://a'}"), "spec.apps.0.type: Field required"),
        (app("{name: A, type: client}"), "spec.apps.0.name: .*'A' is not a valid id"),
        (app("{name: a.b, type: client}"), "spec.apps.0.name: .*not a valid id"),
        (
            app("{name: a, type: server, baseUrl: 'http://a'}"),
            "spec.apps.0.type: .*'agent', 'mcp_server' or 'client'; did you mean 'mcp_server'.*'server'",
        ),
        (app("{name: a, type: agent}"), "spec.apps.0: .*type agent needs a baseUrl"),
        (app("{name: a, type: agent, baseurl: 'http://a'}"), "spec.apps.0.baseurl: .*did you mean 'baseUrl'"),
        (
            app("{name: a, type: agent, baseUrl: 'a:80'}"),
            "spec.apps.0.baseUrl: .*write it as http://name:port",
        ),
        (app("{name: a, type: agent, baseUrl: 'http://a/api'}"), "spec.apps.0.baseUrl: .*nothing else"),
        (app("{name: a, type: agent, baseUrl: 'http://u:p@a'}"), "spec.apps.0.baseUrl: .*nothing else"),
        (app("{name: a, type: agent, baseUrl: 'http://[a'}"), "spec.apps.0.baseUrl"),
        (app("{name: a, type: agent, baseUrl: 7}"), "spec.apps.0.baseUrl: .*found 7"),
        (app("{name: a, type: agent, baseUrl: {host: a}}"), "spec.apps.0.baseUrl.scheme: Field required"),
        (
            app("{name: a, type: agent, baseUrl: {host: a, scheme: ftp}}"),
            "spec.apps.0.baseUrl.scheme: .*'http' or 'https'.*found 'ftp'",
        ),
        (
            app("{name: a, type: agent, baseUrl: {hots: a, scheme: http}}"),
            "spec.apps.0.baseUrl.hots: .*did you mean 'host'.; known are host, scheme",
        ),
        (
            app(
                "{name: a, type: agent, baseUrl: http://a, httpRequestSchema: {promptFieldJsonPath: '.a[*]'}}"
            ),
            "httpRequestSchema.promptFieldJsonPath: .*one place",
        ),
        (
            app("{name: a, type: agent, baseUrl: 'http://a', httpRequestSchema: {promptField: '{.a}'}}"),
            "httpRequestSchema.promptField: .*did you mean 'promptFieldJsonPath'",
        ),
        (app("{name: a, type: client, scopes: ['a b']}"), "spec.apps.0.scopes.0: .*a scope is a word"),
        (app("{name: a, type: client}, {name: a, type: client}"), "spec.apps: .*the same name: a"),
        (
            app("{name: a, type: client}, {name: b, type: client, kubernetesWorkloadName: a}"),
            "spec.apps: .*the same kubernetesWorkloadName .or name.: a",
        ),
        (
            app(
                "{name: a, type: agent, baseUrl: 'http://x'}, {name: b, type: agent, baseUrl: 'http://X:80'}"
            ),
            "spec.apps: .*the same baseUrl: x:80",
        ),
        (one(gateway="{rate_limt: {}}"), "line 7, rate_limt: .*did you mean 'rate_limit'"),
        (one(gateway="{rate_limit: {per_minute: -1}}"), "line 7, rate_limit.per_minute: .*found -1"),
        (one(limits="{max_payload: no}"), "line 7, spec.limits.max_payload: .*found false"),
        (one().replace("v1alpha1", "v1"), "line 1, apiVersion: .*'casa.io/v1alpha1'.*found 'casa.io/v1'"),
        (one().replace("apiVersion: casa.io/v1alpha1\n", ""), "apiVersion: Field required"),
        (
            one().replace("MultiAgentSystem", "MultiAgentSytem"),
            (
                "line 2, kind: MultiAgentSystem or CASAPolicy is read.*did you mean 'MultiAgentSystem'.*"
                "found 'MultiAgentSytem'"
            ),
        ),
        (one().replace("kind: MultiAgentSystem\n", ""), "kind: .*found nothing"),
        (one().replace("kind: MultiAgentSystem", "kind: [a]"), "line 2, kind: .*found no text"),
        (
            one().replace("{name: one}", "{name: One}"),
            "line 3, metadata: .*namespace .from metadata.name. 'One'",
        ),
        (one().replace("{name: one}", "{name: one, namespace: a.b}"), "line 3, metadata.namespace: .*'a.b'"),
        (one().replace("{name: one}", "{name: one, lables: {}}"), "metadata.lables: .*did you mean 'labels'"),
        (one().replace("{name: one}", "one"), "line 3, metadata: .*found text"),
        (one().partition("spec:")[0], "spec: Field required"),
        (one().partition("spec:")[0] + "spec:\n", "spec: .*found nothing"),
        (one() + "---\n" + one(), "line 8: namespace one is declared in .*, line 1 too"),
        (one() + "---\nagents: [{agent_id: A}]\n", "line 8, agents.0.agent_id"),
        ("namespace: one\n---\n" + one(), "line 3: namespace one is declared in .*, line 1 too"),
        (one() + "---\n- a\n", "line 8: a document must be a mapping"),
        (one() + "---\nkind: x\nkind: y\n", "line 9: kind is given twice"),
    ],
)
def test_a_mistake_in_a_system_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        load(tmp_path, text)
    assert "casa.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("app", "said", "words"),
    [
        (
            "planer",
            "allowedEndpoints: []",
            "line 19.*targetRef.name: one has no application 'planer'; did you",
        ),
        ("Planner", "allowedEndpoints: []", "spec.targetRef.name: .*'Planner' is not a valid id"),
        (
            "planner",
            "allowedEndpoint: []",
            "line 20, spec.allowedEndpoint: .*did you mean 'allowedEndpoints'",
        ),
        (
            "planner",
            "allowedEndpoints: [{name: file}]",
            "allowedEndpoints.0.name: .*'file'; did you mean 'files'",
        ),
        ("planner", "allowedEndpoints: [{name: shell}]", "allowedEndpoints.0.name: shell is a client"),
        ("planner", "allowedEndpoints: [{nam: files}]", "allowedEndpoints.0.nam: .*did you mean 'name'"),
        (
            "planner",
            "allowedEndpoints: [{name: 'a b'}]",
            "allowedEndpoints.0.name: .*'a b' is not a valid id",
        ),
        ("planner", "allowedEndpoints: [{name: files, port: 0}]", "allowedEndpoints.0.port: .*found 0"),
        ("planner", "allowedEndpoints: [{name: files, namespace: X}]", "allowedEndpoints.0.namespace: .*'X'"),
        ("planner", "allowedEndpoints: {name: files}", "allowedEndpoints: .*found a mapping"),
        (
            "files",
            "allowedEndpoints: [{name: planner}]",
            "allowedEndpoints: files is an mcp_server, which calls",
        ),
        ("shell", "allowedSources: [{name: a, namespace: two}]", "allowedSources: shell is a client"),
        ("planner", "allowedSources: [{name: files}]", "allowedSources.0.namespace: .*callers of other"),
        ("planner", "allowedProtocols: [mpc]", "allowedProtocols.0: .*'mcp', 'a2a' or 'http'.*found 'mpc'"),
        ("planner", "llmEndpoint: {fqdn: 'a b'}", "llmEndpoint.fqdn: .*this is no host"),
        ("planner", "llmEndpoint: {port: 443}", "llmEndpoint.fqdn: Field required"),
        (
            "planner",
            "llmEndpoint: {fqdn: 'a:8000', port: 8443}",
            r"line \d+, spec.llmEndpoint.port: .*fqdn has a port, too",
        ),
    ],
)
def test_a_mistake_in_a_policy_is_named(tmp_path: Path, app: str, said: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        load(tmp_path, system(), policy(app, said))
    assert "casa.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("where", "said", "words"),
    [
        (
            "planner",
            "allowedEndpoints: [{name: x, namespace: two}]",
            "two has no application 'x'; known are files",
        ),
        (
            "planner",
            "allowedSources: [{name: files, namespace: two}]",
            "files is an mcp_server, which calls nobody",
        ),
    ],
)
def test_the_other_namespace_is_looked_at_where_it_is_declared(
    tmp_path: Path, where: str, said: str, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load(tmp_path, system(), system("two"), policy(where, said))
    load(tmp_path, system(), policy(where, said))


def test_a_policy_needs_its_system(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"line 4, metadata.namespace: .*beside this policy; declared"
    ):
        load(tmp_path, policy("planner", "allowedEndpoints: []"))
    text = "namespace: one\n" + "---\n" + policy("planner", "allowedEndpoints: []")
    with pytest.raises(ConfigurationError, match="there is no MultiAgentSystem of namespace one"):
        load(tmp_path, text)


def test_all_mistakes_of_all_documents_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, one(name=None), "agents: [{}]\n", policy("planner", "x: 1", "three"))
    for words in ("spec.name", "agents.0.agent_id", "spec.x"):
        assert words in str(caught.value)
