"""Contexts as files: what is in them, who may read them, which one is selected, whose they are."""

from __future__ import annotations

import json
import stat

import pytest

from broker_policy.nats_contexts import NatsContext, NatsContexts
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import Identity, Role

CAROL = Identity("mas", "shop", Role.INSPECTOR, "carol")


@pytest.fixture
def contexts(tmp_path):
    return NatsContexts(tmp_path / "config")


def context(tmp_path, name="mine"):
    url = "tls://127.0.0.1:4222,tls://127.0.0.1:4223"
    return NatsContext(name, CAROL, url, tmp_path / "c.pem", tmp_path / "c.key", tmp_path / "ca.pem")


def test_it_holds_what_the_nats_command_reads(contexts, tmp_path):
    path = contexts.write(context(tmp_path))
    assert path == tmp_path / "config" / "nats" / "context" / "mine.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_bytes()) == {
        "description": "mas: spiffe://mas/ns/shop/inspector/carol",
        "url": "tls://127.0.0.1:4222,tls://127.0.0.1:4223",
        "cert": str(tmp_path / "c.pem"),
        "key": str(tmp_path / "c.key"),
        "ca": str(tmp_path / "ca.pem"),
    }
    assert contexts.read("mine") == context(tmp_path)
    assert list(contexts.ours()) == [context(tmp_path)]


def test_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    assert NatsContexts().folder == tmp_path / "x" / "nats"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert NatsContexts().folder == tmp_path / ".config" / "nats"


def test_one_is_selected_and_the_one_before_is_remembered(contexts, tmp_path):
    assert contexts.selected == ""
    for name in ("one", "two"):
        contexts.write(context(tmp_path, name))
        contexts.select(name)
    assert contexts.selected == "two"
    assert (contexts.folder / "previous-context.txt").read_text() == "one"
    assert contexts.remove("two")
    assert contexts.selected == ""
    assert not contexts.remove("two")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"description": 7}',
        '{"description": "mas: somebody"}',
        '{"description": "my own", "url": "nats://x", "cert": "", "key": "", "ca": ""}',
    ],
)
def test_what_others_made_is_not_ours_to_touch(contexts, content):
    path = contexts.path("theirs")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert list(contexts.ours()) == []
    for act in (contexts.require_ours, contexts.remove):
        with pytest.raises(ConfigurationError, match="was not made by mas"):
            act("theirs")
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "/etc/x", ".x", "a b", "a..b", "x" * 200])
def test_a_name_stays_in_the_folder(contexts, name):
    with pytest.raises(ConfigurationError, match="is no name for a context"):
        contexts.path(name)
