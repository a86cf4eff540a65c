"""``docker compose up`` with one NATS server: what works in it, and what each container can see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from broker_policy.containers.parts import part
from mas_nats import Agent, TlsClientConfig
from tests.compose.conftest import BringUp
from tests.compose.project import REPOSITORY, Project, until

pytestmark = pytest.mark.timeout(600)

ONCE = {"setup", "provision"}
RUNNING = {"nats", "batches", "redis", "policy", "signer", "helpdesk", "router"}
HOLDS = {
    "setup": {"site", "controller", "worker", "signer", "redis", "nats", "nats-2", "nats-3"}
    | {"agent-helpdesk", "agent-router", "redis-data", "nats-data", "nats-2-data", "nats-3-data"}
    | {"prometheus", "grafana", "prometheus-data", "grafana-data"},
    "provision": {"controller"},
    "nats": {"nats", "nats-data", "nats-batches"},
    "batches": {"nats-data", "nats-batches"},
    "redis": {"redis", "redis-data"},
    "policy": {"worker"},
    "signer": {"signer"},
    "helpdesk": {"agent-helpdesk"},
    "router": {"agent-router"},
}
"""Who mounts which volume: the table of docs/compose.md."""
SECRETS = {
    "nats": {"certs/server.key", "certs/routes/nats.key"},
    "redis": {"redis/password", "redis/redis.conf"},
    "policy": {
        "keys/worker/auth-signing.nk",
        "keys/worker/auth-user.nk",
        "keys/worker/tenant-signing.nk",
        "keys/worker/control-worker.nk",
        "keys/worker/sys-observer.nk",
        "keys/worker/sealing.key",
        "keys/worker/token-signing.key",
        "certs/default/policy/worker.key",
        "redis/password",
        "telemetry.json",
    },
    "signer": {
        "keys/signer/checkpoint.key",
        "keys/signer/control-signer.nk",
        "certs/default/policy/signer.key",
        "redis/password",
    },
    "helpdesk": {"certs/default/agent/helpdesk.key"},
    "router": {"certs/default/agent/router.key"},
}
"""Every secret that a running container can read, below /mas/.mas."""
FIND = r"""
find / \( -path /proc -o -path /sys -o -path /dev -o -path /data -o -path /etc -o -path /usr -o -path /var \
    \) -prune -o -type f \( -name '*.key' -o -name '*.nk' -o -name '*password' -o -name redis.conf \
    -o -name token -o -name telemetry.json \) -print
"""
SCRAPE = """
import json, socket, sys, urllib.error, urllib.request
name, port, token = sys.argv[1], sys.argv[2], open(sys.argv[3]).read()
def get(address, headers):
    request = urllib.request.Request(f"http://{address}:{port}/metrics", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=10).read().decode()
    except urllib.error.HTTPError as error:
        return str(error.code)
workers = sorted({each[4][0] for each in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)})
print(json.dumps([
    [get(each, {"Authorization": f"Bearer {token}"}), get(each, {}), get(each, {"Authorization": "Bearer x"})]
    for each in workers
]))
"""
"""What Prometheus does with its configuration, without and with another token, too."""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"


@pytest.fixture(scope="module")
def project(project_of: BringUp) -> Project:
    found = project_of()
    found.up("--scale", "policy=3")
    return found


def test_everything_is_up_with_three_workers(project: Project):
    containers = project.containers()
    assert containers.keys() == RUNNING | ONCE
    assert len(containers["policy"]) == 3
    for service, found in containers.items():
        for each in found:
            state = each["State"]
            if service in ONCE:
                assert (state["Status"], state["ExitCode"]) == ("exited", 0), service
            else:
                assert state["Running"], service
                assert each["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped", service
                assert state.get("Health", {"Status": "healthy"})["Status"] == "healthy", service
    report = json.loads(project.mas("doctor", "--json").stdout)
    assert report["status"] == "OK", report
    assert [each["text"][:7] for each in report["checks"] if each["name"] == "workers"] == ["3 alive"]


def test_agents_in_containers_talk_and_the_audit_has_it(project: Project):
    project.more_answers()

    def decisions() -> list[dict[str, str]]:
        return json.loads(project.mas("audit", "query", "--json").stdout)["decisions"]

    until(
        lambda: any(
            (each["sender"], each["target"], each["op"], each["outcome"])
            == ("router", "helpdesk", "request", "handled")
            for each in decisions()
        ),
        "handled request in the audit",
    )
    verified = project.mas("audit", "verify", "--json", check=False)
    assert verified.returncode == 0, verified.stdout
    report = json.loads(verified.stdout)
    assert report["intact"]
    assert report["checkpoints"] > 0


def test_batches_are_gathered_in_memory(project: Project):
    """Also after the server was killed and started again."""

    def linked() -> bool:
        found = project.inside("nats", "sh", "-c", "stat -f -c %T /data/jetstream/*/streams/INBOX/batches/")
        return set(found.stdout.split()) == {"tmpfs"}

    until(linked, "folders for batches in memory")
    [server] = project.containers()["nats"]
    began = server["State"]["StartedAt"]
    project.engine("kill", "--signal", "SIGKILL", server["Id"])
    project.up("--scale", "policy=3")
    assert project.containers()["nats"][0]["State"]["StartedAt"] != began
    until(linked, "folders for batches in memory again")
    project.more_answers()


def test_traffic_goes_on_when_a_worker_is_killed(project: Project):
    project.more_answers(1)
    project.engine("kill", "--signal", "SIGKILL", project.containers()["policy"][0]["Id"])
    assert sum(each["State"]["Running"] for each in project.containers()["policy"]) == 2
    before = project.logs("router").count("no answer:")
    project.more_answers(3)
    assert project.logs("router").count("no answer:") == before


def test_containers_are_unprivileged_and_read_only(project: Project):
    for service, found in project.containers().items():
        for each in found:
            host = each["HostConfig"]
            assert each["Config"]["User"] == "10001:10001", service
            assert host["ReadonlyRootfs"], service
            assert host["CapDrop"] == ["ALL"], service
            assert host["SecurityOpt"] == ["no-new-privileges:true"], service
            assert not host["Privileged"], service
            assert not host["CapAdd"], service
    for service in RUNNING:
        shown = project.inside(service, "sh", "-c", "id -u; touch /x; echo $?").stdout.split()
        assert shown[0] == "10001", service
        assert shown[-1] != "0", service


def test_each_container_has_its_own_secrets_and_no_others(project: Project):
    containers = project.containers()
    prefix = f"{project.name}_"
    mounted = {
        service: {
            mount["Name"].removeprefix(prefix) for mount in found[0]["Mounts"] if mount["Type"] == "volume"
        }
        for service, found in containers.items()
    }
    assert mounted == HOLDS
    for service, wanted in SECRETS.items():
        found = project.inside(service, "sh", "-c", FIND, check=False).stdout.split()
        assert {each.removeprefix("/mas/.mas/") for each in found} == wanted, service


@pytest.mark.parametrize("secret", ["authority/ca.key", "keys/controller/operator.nk"])
def test_the_cas_and_the_operators_key_are_nowhere_but_with_setup(project: Project, secret: str):
    path = f"/mas/.mas/{secret}"
    for service in RUNNING:
        assert project.inside(service, "cat", path, check=False).returncode != 0, service
    for service, expected in (("mas", False), ("setup", True)):  # the latter shows that the test can fail
        tried = project.compose(
            "run", "--rm", "-T", "--no-deps", "--entrypoint", "test", service, "-r", path, check=False
        )
        assert (tried.returncode == 0) is expected, service


def test_no_secret_is_in_an_environment_an_image_or_a_command(project: Project):
    password = project.inside("redis", "cat", "/mas/.mas/redis/password").stdout.strip()
    assert len(password) > 20
    shown = json.dumps(project.containers())
    assert password not in shown
    assert "PRIVATE KEY" not in shown
    for image in ("mas-nats:test", "mas-nats-example:test"):
        found = project.engine("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", FIND)
        assert found.stdout.split() == [], image


def test_prometheus_finds_every_worker_and_reaches_nothing_else(project: Project):
    """With its network, its volume and its configuration; its image is not needed for that."""
    [job] = yaml.safe_load((REPOSITORY / "docs/observability/compose/prometheus.yml").read_text())[
        "scrape_configs"
    ]
    [names], token = job["dns_sd_configs"], job["authorization"]["credentials_file"]
    [name] = names["names"]
    mine = ["--network", f"{project.name}_metrics", "--volume", f"{project.name}_prometheus:/mas/.mas:ro"]

    def run(*arguments: str) -> str:
        return project.engine(
            "run", "--rm", *mine, "--entrypoint", "python", "mas-nats:test", "-c", *arguments
        ).stdout

    workers = json.loads(run(SCRAPE, name, str(names["port"]), token))
    running = [each for each in project.containers()["policy"] if each["State"]["Running"]]
    assert len(workers) == len(running)
    for shown, unasked, wrong in workers:
        assert "mas_worker_ready" in shown
        assert (unasked, wrong) == ("401", "401")
    for other in ("redis", "nats"):
        assert run(f"import socket; print(socket.getaddrinfo({name!r}, 1) and 'found')").strip() == "found"
        with pytest.raises(AssertionError, match=r"not known|resolution"):
            run(f"import socket; socket.getaddrinfo({other!r}, 1)")


def test_the_profile_observability_is_in_order(project_of: BringUp):
    found = json.loads(project_of("observability").compose("config", "--format", "json").stdout)
    services = found["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["read_only"], name
        assert services[name]["user"] == "10001:10001", name
        assert {port["host_ip"] for port in services[name]["ports"]} == {"127.0.0.1"}, name
        for each in services[name]["volumes"]:
            assert each["type"] == "volume" or Path(each["source"]).exists(), each
    assert found["networks"]["metrics"]["internal"]


def test_agents_reach_nats_and_nothing_else(project: Project):
    def reaches(service: str, host: str, port: int) -> bool:
        tried = project.inside(service, "python", "-c", CONNECT, host, str(port), check=False)
        return tried.returncode == 0

    [redis] = project.containers()["redis"]
    [network] = redis["NetworkSettings"]["Networks"].values()
    assert reaches("policy", "redis", 6379)
    assert reaches("policy", network["IPAddress"], 6379)
    assert not reaches("router", "redis", 6379)
    assert not reaches("router", network["IPAddress"], 6379)
    assert reaches("router", "nats", 4222)
    assert not reaches("router", "nats", 8222)


async def test_an_agent_on_the_host_joins_with_certificates_that_were_copied_out(project: Project, tmp_path):
    certificates = tmp_path / "certs"
    project.compose("cp", "router:/mas/.mas/certs", str(certificates))
    address = project.compose("port", "nats", "4222").stdout.strip()
    assert address.startswith("127.0.0.1:")
    names = certificates / "default" / "agent"
    tls = TlsClientConfig(certificates / "ca.pem", names / "router.pem", names / "router.key")
    router: Agent[dict[str, object]] = Agent("router", server_addr=address, tls=tls, receive=False)
    async with router:
        reply = await router.request("helpdesk", "ask", {"question": "From the host?"}, timeout=30)
    assert "From the host?" in reply.data["text"]


def test_workers_of_another_version_take_over_without_a_pause(project: Project):
    """The commands of docs/compose.md, with a tag that is another name for the same image."""
    project.engine("tag", "mas-nats:test", "mas-nats:test-next")
    before = {each["Id"] for each in project.containers()["policy"]}
    unanswered = project.logs("router").count("no answer:")
    ours = ("up", "--detach", "--wait", "--no-deps", "--no-recreate", "--scale", f"policy={len(before) + 2}")
    project.compose(*ours, "policy", version="test-next")
    project.engine("rm", "--force", *before)
    workers = project.containers()["policy"]
    assert [each["Config"]["Image"] for each in workers] == ["mas-nats:test-next"] * 2
    assert {each["State"]["Health"]["Status"] for each in workers} == {"healthy"}
    project.more_answers(2)
    assert project.logs("router").count("no answer:") == unanswered
    project.engine("image", "rm", "--force", "mas-nats:test-next")


def test_a_backup_brings_everything_back(project: Project, tmp_path):
    """The commands of docs/compose.md: stopped, copied, removed with all volumes, restored."""
    tar = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "tar", "setup")
    file = tmp_path / "mas.tar"

    def audited() -> dict[str, object]:
        report: dict[str, object] = json.loads(project.mas("audit", "verify", "--json").stdout)
        return report

    before = audited()
    project.compose("stop")
    with file.open("wb") as out:
        volumes = (".mas", "data/nats", "data/nats-2", "data/nats-3", "data/redis")
        project.compose(*tar, "--create", "--directory", "/mas", *volumes, stdout=out)
    project.down()
    assert project.left() == []
    with file.open("rb") as source:
        project.compose(*tar, "--extract", "--directory", "/mas", stdin=source)
    project.up()
    project.more_answers(1)
    after = audited()
    assert after["intact"]
    assert int(str(after["entries"])) > int(str(before["entries"]))


def test_down_leaves_nothing(project: Project):
    assert project.left()
    project.down()
    assert project.left() == []


def test_every_part_in_compose_is_known():
    for names in HOLDS.values():
        for name in names - {"site"}:
            if not name.endswith(("-data", "-batches")):
                assert part(name).files
