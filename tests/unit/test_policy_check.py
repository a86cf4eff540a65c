"""``mas policy check`` and ``test``: the decision and how it came about; tests of policy that can fail."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker_policy import cli
from broker_policy.cli.app import ExitCode, Output, app
from broker_policy.pipeline import STEPS, judge
from broker_policy.pipeline.explain import Outcome, explain, message
from mas_nats.manifest import mas_yaml
from mas_nats.policy.table import Table
from tests.system import REPOSITORY

cli.load()

MANIFEST = """\
agents: [{agent_id: a}, {agent_id: b}, {agent_id: c-1}, {agent_id: c-2}]
permissions:
  - {type: allow, sender: a, targets: [b, ghost]}
  - {type: block, sender: a, targets: [c-2]}
roles: {crew: {permissions: ["send:c-*"], agents: [a]}}
limits: {max_payload: 20}
"""
CASE = """\
tests:
  - name: %s
    sender: a
    target: %s
    expect: {decision: %s, rule: %s}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mas.yaml").write_text(MANIFEST)
    (tmp_path / "policy-tests").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> dict:
    done = CliRunner().invoke(app, ["policy", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "decision", "rule", "step"),
    [
        (("a", "b"), "ALLOWED", "allowed_targets", None),
        (("a", "c-1"), "ALLOWED", "role:crew", None),
        (("a", "c-2"), "AUTHZ_DENIED", "blocked_targets", "authorize"),
        (("b", "a"), "AUTHZ_DENIED", "deny_by_default", "authorize"),
        (("a", "ghost"), "UNKNOWN_TARGET", "unknown_target", "authorize"),
        (("x", "b"), "AUTHZ_DENIED", "unknown_sender", "identity"),
        (("a", "B"), "INVALID", "target", "shape"),
        (("a", "b", "--type", "a b"), "INVALID", "type", "shape"),
        (("a", "b", "--data", "[]"), "INVALID", "json", "shape"),
        (("a", "b", "--data", '{"text": "too long for that"}'), "TOO_LARGE", "max_payload", "shape"),
    ],
)
def test_a_decision_names_step_and_rule(folder, arguments, decision, rule, step):
    found = run("check", *arguments, code=ExitCode.FAILED if step else ExitCode.OK)
    assert (found["decision"], found["rule"]) == (decision, rule)
    outcomes = {each["step"]: each["outcome"] for each in found["findings"]}
    assert list(outcomes)[:3] == ["identity", "shape", "authorize"]
    assert [name for name, outcome in outcomes.items() if outcome == Outcome.REFUSES] == (
        [step] if step else []
    )
    if step:
        after = list(outcomes)[list(outcomes).index(step) + 1 :]
        assert {outcomes[name] for name in after} == {Outcome.NOT_REACHED}


def test_every_step_of_the_pipeline_is_asked_and_agrees(folder):
    table = Table.compile(mas_yaml.load(folder / "mas.yaml").wanted().document(), 0)
    for sender in ("a", "b"):
        for target in ("a", "b", "c-1", "c-2", "ghost", "n/b", ""):
            for body in (b"{}", b"[]", b"x" * 21):
                found = explain(message(sender, target, "t", body), table)
                call = message(sender, target, "t", body)
                call.crosses = "/" in target  # as the service marks what it takes there
                refusal = judge(call, table)
                assert found.decision == (refusal.decision if refusal else "ALLOWED")
                assert not refusal or found.rule == refusal.rule
                assert {step.__name__ for step in STEPS} <= {each.step for each in found.findings}


def test_the_body_may_come_from_a_file(folder):
    (folder / "body.json").write_text('{"a": 1}')
    assert run("check", "a", "b", "--data", "@body.json")["decision"] == "ALLOWED"
    assert CliRunner().invoke(app, ["policy", "check", "a", "b", "--data", "@nowhere"]).exit_code == 1


def test_the_payload_is_not_shown(folder):
    done = CliRunner().invoke(app, ["policy", "check", "a", "b", "--data", '{"a": "hunter2"}'])
    assert done.exit_code == 0
    assert "hunter2" not in done.output
    assert "ALLOWED by allowed_targets" in done.output


def test_rules_are_shown_as_they_are_written(capsys: pytest.CaptureFixture[str]):
    """Not as the picture that :credit_card: is a name of."""
    Output(json=False).result({}, "dlp:credit_card: found")
    assert capsys.readouterr().out == "dlp:credit_card: found\n"


def test_what_is_set_and_depends_on_traffic_is_said(folder):
    (folder / "mas.yaml").write_text(MANIFEST + "gateway: {rate_limit: {per_minute: 7}}\n")
    found = {each["step"]: each for each in run("check", "a", "b")["findings"]}
    assert found["rate_limit"]["outcome"] == Outcome.DEPENDS
    assert "per_minute 7" in found["rate_limit"]["text"]
    assert "after 5 in 300 s" in found["circuit_breaker"]["text"]


@pytest.mark.parametrize(
    ("circuits", "outcome", "decision"),
    [
        (None, Outcome.DEPENDS, "ALLOWED"),
        ({}, Outcome.PASSES, "ALLOWED"),
        ({"c-1": 9.0}, Outcome.PASSES, "ALLOWED"),
        ({"b": None}, Outcome.DEPENDS, "ALLOWED"),
        ({"b": 41.5}, Outcome.REFUSES, "CIRCUIT_OPEN"),
    ],
)
def test_circuits_that_are_known_are_told(folder, circuits, outcome, decision):
    table = Table.compile(mas_yaml.load(folder / "mas.yaml").wanted().document(), 0)
    found = explain(message("a", "b", "t", b"{}"), table, circuits)
    (step,) = [each for each in found.findings if each.step == "circuit_breaker"]
    assert (step.outcome, found.decision) == (outcome, decision)
    assert decision == "ALLOWED" or "41.5 s" in found.fix


def test_a_breaker_that_is_off_is_off_whatever_was_known(folder):
    (folder / "mas.yaml").write_text(MANIFEST + "gateway: {features: {circuit_breaker: false}}\n")
    table = Table.compile(mas_yaml.load(folder / "mas.yaml").wanted().document(), 0)
    found = explain(message("a", "b", "t", b"{}"), table, {"b": 41.5})
    assert found.decision == "ALLOWED"
    assert [each.outcome for each in found.findings if each.step == "circuit_breaker"] == [Outcome.OFF]


def test_tests_beside_the_manifest_are_found_and_pass(folder):
    (folder / "policy-tests" / "one.yaml").write_text(CASE % ("one", "b", "ALLOWED", "allowed_targets"))
    (folder / "two_test.yaml").write_text(CASE % ("two", "c-2", "AUTHZ_DENIED", "blocked_targets"))
    (folder / "other.yaml").write_text("not: one")
    found = run("test")
    assert (found["passed"], found["failed"]) == (2, 0)
    assert [each["name"] for each in found["tests"]] == ["one", "two"]
    assert run("test", "policy-tests")["passed"] == 1
    assert run("test", "two_test.yaml")["passed"] == 1


def test_a_failing_test_says_what_differs_and_fails(folder):
    (folder / "policy-tests" / "one.yaml").write_text(CASE % ("one", "c-2", "ALLOWED", "role:crew"))
    [found] = run("test", code=ExitCode.FAILED)["tests"]
    assert found["differences"] == [
        "decision: expected ALLOWED, got AUTHZ_DENIED",
        "rule: expected role:crew, got blocked_targets",
    ]
    shown = CliRunner().invoke(app, ["policy", "test"]).output
    assert "FAIL  one" in shown
    assert "0 passed, 1 failed" in shown


def test_a_changed_manifest_fails_the_test(folder):
    (folder / "policy-tests" / "one.yaml").write_text(CASE % ("one", "b", "ALLOWED", "allowed_targets"))
    assert run("test")["failed"] == 0
    (folder / "mas.yaml").write_text(MANIFEST.replace("[b, ghost]", "[ghost]"))
    assert run("test", code=1)["failed"] == 1


def test_types_are_compared(folder):
    text = CASE % ("one", "b", "ALLOWED", "allowed_targets")
    path = folder / "policy-tests" / "one.yaml"
    path.write_text(text.replace("{decision", "{types: [], decision"))
    assert run("test")["failed"] == 0
    path.write_text(text.replace("{decision", "{types: [made-up], decision"))
    [found] = run("test", code=1)["tests"]
    assert found["differences"] == ["types: expected made-up, got none"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tests: []", "tests: "),
        ("tests:\n  - name: x\n    sendr: a", "line 3, tests.0.sendr: .*did you mean 'sender'"),
        (CASE % ("x", "b", "ALOWED", "r"), "line 5, tests.0.expect.decision: .*did you mean 'ALLOWED'"),
        ("test: []", "did you mean 'tests'"),
        ("", "the whole"),
    ],
)
def test_mistakes_in_a_file_are_named(folder, text, words):
    path = folder / "policy-tests" / "one.yaml"
    path.write_text(text)
    done = CliRunner().invoke(app, ["policy", "test"])
    assert done.exit_code == 1
    assert re.search(words, done.output), done.output


def test_no_tests_is_no_success(folder):
    done = CliRunner().invoke(app, ["policy", "test"])
    assert done.exit_code == 1
    assert "there are no policy tests" in done.output


@pytest.mark.parametrize("example", ["demo", "helpdesk"])
def test_the_examples_decide_what_their_tests_say(example):
    found = run("test", str(REPOSITORY / "examples" / example))
    assert found["failed"] == 0
    assert found["passed"] >= 3
