"""The settings of a sidecar, from an ``applications.yaml`` and from CASA's documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from mas_nats.errors import ConfigurationError
from mas_nats.sidecar import Kind, Settings
from mas_nats.sidecar.application import Limits
from mas_nats.sidecar.call import Protocol
from mas_nats.sidecar.settings_file import Beside, load
from tests.casa import policy

CASA = Path(__file__).parent / "data" / "casa.yaml"
APPLICATIONS = """
applications:
  shop: {type: client}
  desk: {type: agent, base_url: http://127.0.0.1:8000, hosts: [desk.test]}
llm_host: llm.test
"""
SYSTEM = """
apiVersion: casa.io/v1alpha1
kind: MultiAgentSystem
metadata: {{name: {name}}}
spec:
  name: For tests
  enabledToolChecks: []
  llm_host: {llm}
  limits: {{ack_wait: 8}}
  apps:
    - {{name: shell, type: client}}
    - name: planner
      kubernetesWorkloadName: planner-v2
      type: agent
      baseUrl: http://planner.{name}:80
      endpoint: /rpc
      toolNames: {{files__read: read}}
    - {{name: files, type: mcp_server, baseUrl: {{host: "Files.{name}:8080", scheme: http}}, {more}}}
    - {{name: safe, type: mcp_server, baseUrl: {{host: "safe.{name}:8443", scheme: https}}}}
"""


def system(
    name: str = "one", *, llm: str = "LLM.example", more: str = "idempotentMethods: [tools/list]"
) -> str:
    return SYSTEM.format(name=name, llm=llm, more=more)


def read(folder: Path, *texts: str, app: str = "planner", namespace: str = "one", **options: str) -> Beside:
    path = folder / "casa.yaml"
    path.write_text("---".join(texts))
    return load(path, app, namespace, **options)


def test_the_documents_of_casa_as_they_are():
    beside = load(CASA, "my-agent", "default")
    settings = beside.settings
    assert beside.namespace == "my-mas"
    assert settings.own.type is Kind.AGENT
    assert settings.own.base_url == "http://127.0.0.1:8000"
    assert settings.hosts["my-mcp-server:8080"] == "my-mcp-server"
    assert settings.llm_url == "https://your-llm-host.example.com"


def test_what_the_documents_say(tmp_path: Path):
    settings = read(tmp_path, system()).settings
    assert settings.app == "planner-v2"
    assert settings.own.base_url == "http://127.0.0.1:80"
    assert settings.own.path == "/rpc"
    assert settings.own.tool_names == {"files__read": "read"}
    assert settings.hosts == {
        "planner.one": "planner-v2",
        "files.one:8080": "files",
        "safe.one:8443": "safe",
    }
    assert settings.applications["files"].idempotent == {"tools/list"}
    assert settings.applications["files"].path == "/mcp"
    assert (settings.llm_host, settings.llm_url) == ("llm.example", "https://llm.example")
    assert settings.limits.begin == 4.0  # half of ack_wait, as a sidecar demands


def test_options_beat_the_file(tmp_path: Path):
    options = {"listen": "127.0.0.1:8101", "app_url": "http://desk.internal:9000"}
    settings = read(tmp_path, system(), app="planner-v2", **options).settings
    assert (settings.own.listen, settings.own.base_url) == (options["listen"], options["app_url"])
    client = read(tmp_path, system(), app="shell", listen="127.0.0.1:8101").settings
    assert client.own.listen == "127.0.0.1:8101"
    path = tmp_path / "applications.yaml"
    path.write_text(APPLICATIONS)
    other = load(path, "desk", "default", **options)
    assert other.settings.own.base_url == options["app_url"]
    assert other.namespace == "default"
    path.write_text("applications:\n  shop: {type: client}\n")
    assert load(path, "shop", "default", listen="127.0.0.1:8101").settings.own.listen == "127.0.0.1:8101"
    for wrong in ({"listen": "0.0.0.0:80"}, {"app_url": "https://desk:1"}):
        option = next(iter(wrong)).replace("_", "-")
        with pytest.raises(ConfigurationError, match=f"--{option}: .*must be"):
            load(path, "desk", "default", **wrong)


def test_policies_have_protocols_and_a_language_model(tmp_path: Path):
    said = policy("planner", "allowedProtocols: [mcp, http]\n  llmEndpoint: {fqdn: own.example, port: 8443}")
    settings = read(tmp_path, system(), said).settings
    assert settings.own.protocols == {Protocol.MCP}
    assert settings.applications["shell"].protocols is None
    assert (settings.llm_host, settings.llm_url) == ("own.example:8443", "https://own.example:8443")
    other = policy("planner", "llmEndpoint: {fqdn: other.example}")
    with pytest.raises(ConfigurationError, match="several llmEndpoints"):
        read(tmp_path, system(), said, other)


def test_where_the_language_model_is_reached(tmp_path: Path):
    said = "llm.test\n  llmBaseUrl: http://127.0.0.1:9000"
    assert read(tmp_path, system(llm=said)).settings.llm_url == "http://127.0.0.1:9000"
    own = policy("planner", "llmEndpoint: {fqdn: other.example}")
    assert read(tmp_path, system(llm=said), own).settings.llm_url == "https://other.example"
    with pytest.raises(ConfigurationError, match=r"line 9, spec.llmBaseUrl: .*must be https"):
        read(tmp_path, system(llm="llm.test\n  llmBaseUrl: ftp://x"))
    with pytest.raises(ConfigurationError, match=r"line 9, spec.llmBaseUrl: .*must be https"):
        read(tmp_path, system(llm="llm.test\n  llmBaseUrl: https://x:99999"))
    ported = policy("planner", "llmEndpoint: {fqdn: 'other.example:8000'}")
    assert read(tmp_path, system(), ported).settings.llm_url == "https://other.example:8000"


def test_applications_of_other_namespaces_are_known_where_a_policy_names_them(tmp_path: Path):
    ours = policy("planner", "allowedEndpoints: [{name: files, namespace: two}, {name: files}]")
    theirs = policy("files", "allowedSources: [{name: planner, namespace: one}]", "two")
    texts = (system("one"), system("two"), ours, theirs)
    settings = read(tmp_path, *texts).settings
    assert settings.hosts["files.two:8080"] == "two/files"
    assert "two/safe" not in settings.applications
    there = read(tmp_path, *texts, app="files", namespace="two").settings
    assert there.applications["one/planner-v2"].type is Kind.AGENT
    assert "planner.one" not in there.hosts  # it calls, and is not called


@pytest.mark.parametrize(
    ("text", "app", "said"),
    [
        (system(), "planer", "line 2: one has no application 'planer'; did you mean 'planner'?"),
        (system(), "safe", "line 19, spec.apps.3.baseUrl: a sidecar speaks plain http with safe"),
        (system(llm="planner.one"), "planner", "host planner.one stands for the llm_host and for planner-v2"),
        (system(more="endpoint: mcp"), "files", "line 18, spec.apps.2.endpoint: .*such as /mcp"),
        (system(more="idempotent: []"), "files", "line 18, spec.apps.2.idempotent: there is no such key"),
        ("apiVersion: casa.io/v1alpha1\n", "files", "line 1, kind: MultiAgentSystem or CASAPolicy"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path: Path, text: str, app: str, said: str):
    with pytest.raises(ConfigurationError, match=said):
        read(tmp_path, text, app=app)


def test_a_host_that_two_namespaces_have(tmp_path: Path):
    two = system("two").replace("Files.two", "files.one")
    ours = policy("planner", "allowedEndpoints: [{name: files, namespace: two}]")
    with pytest.raises(ConfigurationError, match=r"host files.one:8080 stands for files and for two/files"):
        read(tmp_path, system(), two, ours)


def test_a_mas_yaml_says_nothing_of_addresses(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="line 2: namespace other is no MultiAgentSystem"):
        read(tmp_path, "\nnamespace: other\n", system(), namespace="other")


def test_limits_have_their_defaults():
    settings = Settings.model_validate({"applications": {"a": {"type": "client"}}, "app": "a"})
    assert settings.limits == Limits()
    assert settings.llm_url == ""
