"""``docker compose --profile cluster up``: three NATS servers, of which one can be away."""

from __future__ import annotations

import json

import pytest

from tests.compose.conftest import BringUp
from tests.compose.project import Project, until

pytestmark = pytest.mark.timeout(600)

STREAMS = "accounts=true&streams=true&config=true"
NODES = ("nats", "nats-2", "nats-3")


@pytest.fixture(scope="module")
def project(project_of: BringUp) -> Project:
    found = project_of("cluster")
    found.up()
    return found


def monitored(project: Project, node: str, path: str) -> dict:
    return json.loads(project.inside(node, "wget", "-q", "-O", "-", f"http://127.0.0.1:8222/{path}").stdout)


def test_three_nodes_know_each_other_by_certificate_and_keep_three_copies(project: Project):
    for node in NODES:
        routes = monitored(project, node, "routez")
        assert {each["remote_name"] for each in routes["routes"]} == set(NODES) - {node}
        shown = monitored(project, node, "varz")["cluster"]
        assert shown["tls_required"]
        assert shown["tls_verify"]
    streams = [
        stream
        for account in monitored(project, "nats", "jsz?accounts=true&streams=true&config=true")[
            "account_details"
        ]
        for stream in account["stream_detail"]
    ]
    assert {"INBOX", "KV_policy"} <= {stream["name"] for stream in streams}
    assert {stream["config"]["num_replicas"] for stream in streams} == {3}


def test_a_node_knows_only_its_own_route_key(project: Project):
    for node in NODES:
        found = project.inside(node, "ls", "/mas/.mas/certs/routes").stdout.split()
        assert sorted(found) == ["ca.pem", f"{node}.key", f"{node}.pem"]


def test_one_node_may_be_stopped(project: Project):
    def health() -> str:
        return project.containers()["nats"][0]["State"]["Health"]["Status"]

    project.more_answers(1)
    project.compose("stop", "nats")  # the first that everybody knows
    project.more_answers(3)
    report = json.loads(project.mas("doctor", "--json", check=False).stdout)
    assert [each["text"] for each in report["checks"] if each["status"] == "FAIL"] == ["2 of 3 answer"]
    project.compose("start", "nats")
    until(lambda: health() == "healthy", "node in order again")


def test_the_number_of_nodes_stays(project: Project):
    tried = project.compose(
        "run", "--rm", "-T", "--no-deps", "setup", "containers", "nodes", "1", check=False
    )
    assert tried.returncode == 1
    assert "made with 3 nats-servers" in tried.stderr


def test_the_audit_is_whole_and_down_leaves_nothing(project: Project):
    assert json.loads(project.mas("audit", "verify", "--json").stdout)["intact"]
    project.down()
    assert project.left() == []
