"""The lock, the layout and the ports of a folder."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys

import pytest

from broker_policy.embedded import lock, ports, up
from broker_policy.embedded.errors import AlreadyRunning, NotRunning, ServerDied
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.nodes import NodePorts, Ports
from mas_nats.errors import ConfigurationError

HOLDER = lock.LockHolder(4711, "2026-01-01T00:00:00+00:00", "tls://127.0.0.1:4222")


HOLD = f"""
import pathlib, sys
from broker_policy.embedded import lock
with lock.held(pathlib.Path(sys.argv[1]), lock.{HOLDER!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held_elsewhere(tmp_path):
    """A lock that another process holds; the process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_free_lock_has_no_holder(tmp_path):
    assert lock.holder_of(tmp_path / "lock") is None
    with lock.held(tmp_path / "lock", HOLDER):
        pass
    assert lock.holder_of(tmp_path / "lock") is None


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path, held_elsewhere):
    assert lock.holder_of(tmp_path / "lock") == HOLDER
    with pytest.raises(AlreadyRunning) as refused, lock.held(tmp_path / "lock", HOLDER):
        pass
    for part in (str(HOLDER.pid), HOLDER.address, HOLDER.since, "mas down"):
        assert part in str(refused.value)


def test_a_killed_holder_holds_nothing(tmp_path, held_elsewhere):
    held_elsewhere.kill()
    held_elsewhere.wait()
    assert lock.holder_of(tmp_path / "lock") is None
    with lock.held(tmp_path / "lock", HOLDER):
        pass


async def test_a_start_while_the_one_before_ends_keeps_its_port(tmp_path, monkeypatch):
    """Its nats-server listens until its folder is free."""
    layout = Layout(tmp_path / "mas")
    layout.root.mkdir(mode=0o700)
    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    Ports((NodePorts(client=port),), 0).write(layout)
    chosen: list[int] = []

    async def bring_up(layout: Layout, plan: up.Plan, ports: Ports, *_: object) -> None:
        chosen.append(ports.nodes[0].client)
        assert lock.holder_of(layout.lock).address == ports.urls
        raise ServerDied("enough")

    def taken(handle: int, patience: float) -> bool:
        bound.close()
        return take(handle, patience)

    take = lock._take
    monkeypatch.setattr(up, "_bring_up", bring_up)
    monkeypatch.setattr(lock, "_take", taken)
    with pytest.raises(ServerDied):
        async with up.running(layout, up.Plan(), print):
            pass
    assert chosen == [port]


def test_folders_are_for_their_owner_only(tmp_path):
    layout = Layout(tmp_path / "deep" / ".mas")
    layout.create()
    folders = [layout.root, *(path for path in layout.root.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_the_endpoint_file_is_read_back_and_holds_no_password(tmp_path):
    layout = Layout(tmp_path)
    layout.create()
    layout.redis_password.write_text("secret-word")
    broker = Broker(
        url="tls://127.0.0.1:4222",
        ca=str(layout.ca),
        monitor="http://127.0.0.1:8222",
        redis="redis://127.0.0.1:6379/0",
        redis_password=str(layout.redis_password),
        pid=1,
        since="2026-01-01T00:00:00+00:00",
        durable=True,
    )
    broker.write(layout)
    assert Broker.read(layout) == broker
    assert stat.S_IMODE(layout.endpoint.stat().st_mode) == 0o600
    assert "secret-word" not in layout.endpoint.read_text()
    assert broker.redis_url() == "redis://:secret-word@127.0.0.1:6379/0"
    assert broker.redis_reader_url(layout) is None  # a folder of an older version, or a Redis that was joined
    layout.redis_reader.write_text("reader:other-word\n")
    assert broker.redis_reader_url(layout) == "redis://reader:other-word@127.0.0.1:6379/0"


def test_no_endpoint_means_not_running(tmp_path):
    with pytest.raises(NotRunning, match="mas up"):
        Broker.read(Layout(tmp_path))


def test_a_damaged_endpoint_says_what_to_do(tmp_path):
    (tmp_path / "endpoint.json").write_text('{"url": 1}')
    with pytest.raises(ConfigurationError, match="mas down"):
        Broker.read(Layout(tmp_path))


def test_ports_stay_from_start_to_start_unless_taken(tmp_path):
    layout = Layout(tmp_path)
    node = NodePorts(client=ports.free_port(), monitor=ports.free_port())
    first = Ports((node,), redis=ports.free_port())
    first.write(layout)
    assert Ports.choose(layout, 0) == first
    with socket.create_server((ports.LOOPBACK, first.redis)):
        moved = Ports.choose(layout, 0)
    assert moved.redis != first.redis
    assert moved.nodes == first.nodes
    assert Ports.choose(layout, 12345).urls == "tls://127.0.0.1:12345"


def test_a_damaged_ports_file_is_no_obstacle(tmp_path):
    layout = Layout(tmp_path)
    layout.ports.write_text(json.dumps({"nats": 1}))
    assert Ports.choose(layout, 23456).urls == "tls://127.0.0.1:23456"


def test_a_free_port_is_given_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ports, "_FIRST", 20_000)
    monkeypatch.setattr(ports, "_LAST", 20_015)
    found = [ports.free_port() for _ in range(5)]
    assert len(set(found)) == 5


def test_free_ports_are_below_those_of_outgoing_connections():
    found = {ports.free_port() for _ in range(20)}
    assert all(port < 32_768 and ports.is_free(port) for port in found)
