"""``mas doctor`` on a folder: broken states are named with what to do, and a sound one is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from broker_policy import cli
from broker_policy.audit.checkpoint import Checkpoint, SignedCheckpoint
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.waiting import Waiting
from broker_policy.cli.app import ExitCode, app
from broker_policy.commit.disk_room import Space
from broker_policy.doctor import at_rest, copies, running
from broker_policy.doctor.check import Check, Status, worst
from broker_policy.doctor.signing import Signing, judge_signing
from broker_policy.embedded.layout import POLICY_HOLDERS, Broker, Layout
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.tenants.material import create_material
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role

cli.load()
NOW = datetime.now(UTC)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A folder in order, of which nothing runs."""
    layout = Layout(tmp_path / ".mas")
    layout.create()
    create_material(layout.keys)
    authority = CertificateAuthority.create(layout.authority)
    authority.issue_server(["localhost"], [], layout.certs)
    for holder in POLICY_HOLDERS:
        issue(layout, Role.POLICY, holder, timedelta(days=365))
    return layout


def issue(layout: Layout, role: Role, name: str, lifetime: timedelta) -> Path:
    authority = CertificateAuthority.open_or_create(layout.authority)
    identity = Identity(DEFAULT_TRUST_DOMAIN, "default", role, name)
    return authority.issue(identity, layout.certs, lifetime=lifetime).cert


def bad(checks: list[Check]) -> dict[str, tuple[Status, str, str]]:
    return {each.name: (each.status, each.text, each.fix) for each in checks if each.status is not Status.OK}


def test_a_folder_in_order(layout):
    checks = at_rest.look(layout)
    assert bad(checks).keys() <= {"disk"}  # of the machine the tests run on
    assert [each.name for each in checks] == ["file modes", "keys", "certificates", "disk"]


@pytest.mark.parametrize(
    "path", ["keys/worker/sealing.key", "keys/controller/operator.nk", "certs/server.key", "authority/ca.key"]
)
def test_a_secret_that_others_may_read(layout, path):
    (layout.root / path).chmod(0o640)
    status, text, fix = bad(at_rest.look(layout))["file modes"]
    assert status is Status.FAIL
    assert path in text
    assert "chmod" in fix


def test_a_missing_key(layout):
    (layout.keys / "signer" / "checkpoint.key").unlink()
    status, text, fix = bad(at_rest.look(layout))["keys"]
    assert (status, "checkpoint.key" in text, "backup" in fix) == (Status.FAIL, True, True)


def test_an_installation_older_than_tokens(layout):
    (layout.keys / "worker" / "token-signing.key").unlink()
    status, text, fix = bad(at_rest.look(layout))["keys"]
    assert (status, "token-signing" in text, "rotate" in fix) == (Status.WARN, True, True)


def test_certificates_expired_and_about_to(layout):
    issue(layout, Role.POLICY, "worker", timedelta(days=3))
    status, text, fix = bad(at_rest.look(layout))["certificates"]
    assert (status, fix) == (Status.WARN, "mas keys rotate tls-worker")
    assert "worker.pem expires in" in text
    issue(layout, Role.POLICY, "worker", -timedelta(hours=1))
    status, text, _ = bad(at_rest.look(layout))["certificates"]
    assert (status, "has expired" in text) == (Status.FAIL, True)
    later = bad(at_rest.look(layout, NOW + timedelta(days=400)))
    assert later["certificates"][0] is Status.FAIL
    layout.server_cert.write_text("no certificate")
    checks = at_rest.look(layout)
    assert any("server.pem is missing or unreadable" in each.text for each in checks)


def test_a_certificate_that_is_not_valid_yet(layout):
    """The clock was ahead when it was made, or was set back since."""
    checks = at_rest.look(layout, datetime.now(UTC) - timedelta(days=1))
    found = [each for each in checks if each.name == "certificates"]
    assert len(found) == 5, "of the CA, the server, three holders"
    for each in found:
        assert each.status is Status.FAIL
        assert "is not valid before" in each.text
        assert "clock" in each.fix


def test_a_certificate_that_is_not_of_its_key(layout):
    key = layout.policy_certificate("worker").key
    key.write_bytes(layout.policy_certificate("signer").key.read_bytes())
    status, text, fix = bad(at_rest.look(layout))["certificates"]
    assert (status, "worker.pem does not belong to the key" in text) == (Status.FAIL, True)
    assert "mas up" in fix


def test_an_agent_s_certificate_that_expired_is_no_failure(layout):
    issue(layout, Role.AGENT, "desk", -timedelta(hours=1))
    issue(layout, Role.AGENT, "router", timedelta(hours=1))
    status, text, fix = bad(at_rest.look(layout))["agents' certificates"]
    assert status is Status.WARN
    assert "1 expired" in text
    assert "desk.pem" in text
    assert "mas certs" in fix


@pytest.mark.parametrize(
    ("size", "free", "status"),
    [
        (100 << 30, 50 << 30, Status.OK),
        (100 << 30, 1 << 30, Status.WARN),
        (100 << 30, 100 << 20, Status.FAIL),
        (1 << 30, 500 << 20, Status.OK),
        (1 << 30, 150 << 20, Status.WARN),
        (1 << 30, 50 << 20, Status.FAIL),
    ],
)
def test_room_on_the_disk(size, free, status):
    assert at_rest.judge_disk(Space("d", size, free)).status is status


@pytest.mark.parametrize(
    ("check", "status", "words"),
    [
        (running.judge_clock(0.5), Status.OK, "agrees"),
        (running.judge_clock(3.0), Status.WARN, "3.0 s behind"),
        (running.judge_clock(-90.0), Status.FAIL, "90.0 s ahead"),
        (running.judge_workers({}), Status.FAIL, "none is alive"),
        (running.judge_streams("shop", ["INBOX", "bob"]), Status.FAIL, "INBOX, bob are gone"),
        (running.judge_control(["KV_workers"]), Status.FAIL, "CONTROL lacks KV_workers"),
        (running.judge_workers({"a": 3, "b": 3}), Status.OK, "all on revision 3"),
        (running.judge_workers({"a": 3, "b": 4}), Status.WARN, "1 on 3, 1 on 4"),
        (running.judge_projection("audit", Waiting(0, 0)), Status.OK, "0 records"),
        (running.judge_projection("audit", Waiting(9, 1)), Status.OK, "9 records"),
        (running.judge_projection("audit", Waiting(9, 20)), Status.WARN, "for 20 s"),
        (running.judge_projection("audit", Waiting(9, 200)), Status.FAIL, "for 200 s"),
    ],
)
def test_what_is_measured_is_judged(check, status, words):
    assert check.status is status
    assert words in check.text
    assert bool(check.fix) is (status is not Status.OK)


def test_the_worst_counts():
    assert worst([]) is Status.OK
    assert worst([Check("a", Status.WARN, ""), Check("b", Status.OK, "")]) is Status.WARN
    assert worst([Check("a", Status.FAIL, ""), Check("b", Status.WARN, "")]) is Status.FAIL


def test_the_command_fails_where_nothing_is_or_runs(layout, tmp_path):
    done = CliRunner().invoke(app, ["doctor", "--folder", str(tmp_path / "nowhere"), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["checks"][0]["name"]) == (ExitCode.FAILED, "folder")
    done = CliRunner().invoke(app, ["doctor", "--folder", str(layout.root)])
    assert done.exit_code == ExitCode.FAILED
    assert "nothing runs in" in done.output
    assert "-> mas up" in done.output


async def test_a_broker_that_died_is_told_from_one_that_runs(layout):
    layout.lock.touch()
    Broker("tls://127.0.0.1:1", "ca", "http://127.0.0.1:1", "redis://127.0.0.1:1/0",
           str(layout.redis_password), 1, "now", durable=True).write(layout)  # fmt: skip
    layout.redis_password.write_text("secret")
    found = bad(await running.look(layout))
    assert "which is gone" in found["broker"][1]
    assert found["nats-server"][0] is found["redis-server"][0] is found["policy"][0] is Status.FAIL
    assert "secret" not in repr(found)
    layout.endpoint.write_text("{")
    assert "damaged" in bad(await running.look(layout))["broker"][1]


def test_what_is_not_signed_for_long_and_what_another_key_signed():
    key = Ed25519PrivateKey.generate()
    keys, at = CheckpointKeys(key.public_key()), NOW.timestamp()

    def judged(since: float, following: float = 0.0, **fields: Any) -> tuple[Status, str]:
        checkpoint = Checkpoint("default", 3, "cc", 9, int((at - since) * 1000))
        entry = int((at - following) * 1000) if following else 0
        signed = SignedCheckpoint.sign(checkpoint, fields.pop("by", key))
        found = Signing(
            **{"signed": signed, "end": 3, "there": "cc", "removed": 0, "following": entry} | fields
        )
        check = judge_signing("default", found, keys, at)
        return check.status, check.text

    assert judged(1)[0] is Status.OK
    assert judged(9000)[0] is Status.OK  # there is nothing to sign
    assert judged(9000, 1, end=4)[0] is Status.OK  # it came just now
    assert judged(1, 9000, end=4)[0] is Status.OK  # of long ago, projected just now
    assert judged(400, 300, end=4) == (Status.WARN, "signed up to entry 3 of 4, and no further for 300 s")
    assert judged(400, 300, signed=None, end=4)[1] == "signed up to entry 0 of 4, and no further for 300 s"
    assert judged(1, end=2)[0] is judged(1, there=None)[0] is judged(1, there="dd")[0] is Status.FAIL
    assert judged(1, there=None, removed=3)[0] is Status.OK  # it is in a sealed segment
    assert judged(1, by=Ed25519PrivateKey.generate())[0] is Status.FAIL


@pytest.mark.parametrize(
    ("following", "status"), [(0, Status.OK), (990, Status.OK), (985, Status.WARN), (870, Status.FAIL)]
)
def test_a_copy_of_the_audit_is_judged_by_the_first_entry_that_it_lacks(following: int, status: Status):
    check = copies.judge("default", copies.Copied(Path("audit.jsonl"), 3, 9, following * 1000), 1000.0)
    assert (check.status, "up to 3 of 9" in check.text) == (status, True)
