"""The JSON schemas for editors: generated, committed, and agreeing with what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from broker_policy import cli
from broker_policy.cli.app import app
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents, schema
from mas_nats.manifest.schema import Form
from tests.system import REPOSITORY

DATA = Path(__file__).parent / "data"
FILES = {Form.MAS: DATA / "mas.yaml", Form.CASA: DATA / "casa.yaml"}

cli.load("manifest")


def errors(form: Form, document: Any) -> list[str]:
    made = schema.schema(form)
    jsonschema.Draft202012Validator.check_schema(made)
    return [error.message for error in jsonschema.Draft202012Validator(made).iter_errors(document)]


@pytest.mark.parametrize("form", Form)
def test_the_committed_copy_is_the_generated_one(form: Form) -> None:
    path = REPOSITORY / "docs" / "schema" / schema.file_name(form)
    assert path.read_text() == schema.text(form), f"mas manifest schema --kind {form} > {path}"


@pytest.mark.parametrize("form", Form)
def test_the_fixture_of_each_form_fits_its_own_schema_and_not_the_other(form: Form) -> None:
    document = yaml.safe_load(FILES[form].read_text())
    assert errors(form, document) == []
    other = next(each for each in Form if each is not form)
    assert errors(other, document)


@pytest.mark.parametrize("form", Form)
def test_every_object_of_the_form_is_closed_and_says_what_it_is(form: Form) -> None:
    """An editor can only name a misspelled key where no other is allowed."""
    for name, definition in schema.schema(form)["$defs"].items():
        for each in definition.get("anyOf", [definition]):
            if each.get("type") == "object":
                assert each["additionalProperties"] is False, name
                assert each["description"], name


WRONG = [
    (Form.MAS, "agents: [{agent_id: Alice}]"),
    (Form.MAS, "agents: [{agent_id: a, instances: 0}]"),
    (Form.MAS, "agents: [{agent_id: a, capabilty: [x]}]"),
    (Form.MAS, "permissions: [{type: alow, sender: a, targets: [b]}]"),
    (Form.MAS, "permissions: [{type: allow, sender: a}]"),
    (Form.MAS, "limits: {max_payload: -1}"),
    (Form.MAS, "gateway: {dlp: {merge_strategy: add}}"),
    (Form.MAS, "gatway: {}"),
    (Form.CASA, "apiVersion: casa.io/v1alpha1\nkind: MultiAgentSystem\nmetadata: {name: a}"),
    (Form.CASA, "apiVersion: casa.io/v1\nkind: MultiAgentSystem\nmetadata: {name: a}\nspec: {name: x}"),
    (Form.CASA, "apiVersion: casa.io/v1alpha1\nkind: Other\nmetadata: {name: a}\nspec: {name: x}"),
    (
        Form.CASA,
        (
            "apiVersion: casa.io/v1alpha1\nkind: MultiAgentSystem\nmetadata: {name: a}\n"
            "spec: {name: x, apps: [{name: a, type: agent, baseUrl: 'a:80'}]}"
        ),
    ),
    (
        Form.CASA,
        (
            "apiVersion: casa.io/v1alpha1\nkind: MultiAgentSystem\nmetadata: {name: a}\n"
            "spec: {name: x, enabledToolChecks: [ALL]}"
        ),
    ),
    (
        Form.CASA,
        (
            "apiVersion: casa.io/v1alpha1\nkind: CASAPolicy\nmetadata: {name: a}\n"
            "spec: {targetRef: {kind: Job, name: a}}"
        ),
    ),
]


@pytest.mark.parametrize(("form", "text"), WRONG)
def test_what_the_schema_refuses_is_refused_when_it_is_read(tmp_path: Path, form: Form, text: str) -> None:
    assert errors(form, yaml.safe_load(text))
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError):
        documents.load(path)


def test_a_base_url_may_be_a_text_in_the_schema_too() -> None:
    text = (
        FILES[Form.CASA].read_text().replace('{host: "my-agent:8000", scheme: http}', "http://my-agent:8000")
    )
    assert "http://my-agent:8000" in text
    assert errors(Form.CASA, yaml.safe_load(text)) == []


@pytest.mark.parametrize("kind", Form)
def test_the_command_prints_it(kind: Form) -> None:
    for options in ((), ("--json",)):
        done = CliRunner().invoke(app, ["manifest", "schema", "--kind", kind.value, *options])
        assert done.exit_code == 0
        assert json.loads(done.stdout) == schema.schema(kind)


def test_check_says_what_files_declare_and_what_is_wrong(tmp_path: Path) -> None:
    files = [str(path) for path in FILES.values()]
    done = CliRunner().invoke(app, ["manifest", "check", *files])
    assert done.exit_code == 0
    assert "casa.yaml, line 3: namespace my-mas, 3 agents" in done.stdout
    assert "mas.yaml, line 2: namespace default, 2 agents" in done.stdout
    assert "no effect" not in done.stderr
    shown = json.loads(CliRunner().invoke(app, ["manifest", "check", "--json", *files]).stdout)
    assert [each["namespace"] for each in shown["namespaces"]] == ["default", "my-mas"]
    (tmp_path / "x.yaml").write_text("agents: [{agent_id: A}]")
    done = CliRunner().invoke(app, ["manifest", "check", str(tmp_path / "x.yaml")])
    assert done.exit_code == 1
    assert "line 1, agents.0.agent_id" in done.stderr
