"""Promises of `agent settings`: an example that loads, a schema that agrees with the loader, a check that tells."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from agent.__main__ import main
from agent.settings import json_schema

SHIPPED = Path(__file__).parents[2] / "configs"


def test_the_shipped_schema_is_generated() -> None:
    """configs/agent.schema.json is what `agent settings --schema > configs/agent.schema.json` writes."""
    assert json.loads((SHIPPED / "agent.schema.json").read_text()) == json_schema()


def test_the_example_loads_and_fits_the_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What --example prints is accepted by --check and by the schema that an editor would use."""
    assert main(["settings", "--example"]) == 0
    text = capsys.readouterr().out
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    assert main(["settings", "--check", str(path)]) == 0
    assert "no mistake found" in capsys.readouterr().out
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(text))


def test_every_setting_is_documented_in_the_schema() -> None:
    """An editor can show the meaning of each key, and refuses a key that does not exist."""
    schema = json_schema()
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        for name, field in section["properties"].items():
            assert field.get("description"), name
    wrong = {"folder": "a", "state_dir": "b", "profile": "c", "wathc": {}}
    with pytest.raises(jsonschema.ValidationError, match="wathc"):
        jsonschema.Draft202012Validator(schema).validate(wrong)


def test_a_mistake_is_told_with_its_line_and_a_suggestion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check ends with code 2 and names line, key and the key that was probably meant."""
    path = tmp_path / "agent.yaml"
    path.write_text("folder: in\nstate_dir: state\nprofile: p\nwatch:\n  scan_intervall_s: 2\n")
    assert main(["settings", "--check", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}:5: watch.scan_intervall_s" in said
    assert "did you mean 'scan_interval_s'" in said


def test_one_of_the_three_must_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """Without an option the command says which there are."""
    with pytest.raises(SystemExit) as ended:
        main(["settings"])
    assert ended.value.code == 2
    assert "--example" in capsys.readouterr().err
