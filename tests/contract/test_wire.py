"""The wire contract: generated documents that agree with the code, with their standards, and with docs/mqtt.md."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from agent.commands import COMMANDS
from agent.contract.asyncapi import document
from agent.contract.mosquitto import access_rules
from agent.contract.place import Place
from agent.contract.reference import command_table, topic_table
from agent.contract.schemas import all_schemas, command_schemas, payload_schemas
from agent.contract_command import contract_files
from agent.outlets import MqttSettings
from agent.topics import ROUTES, Topics

DOCS = Path(__file__).parents[2] / "docs"
REFRESH = "python -m agent contract --out docs/contract"
PLACE = Place(Topics("srh/v1", "berlin", "srh-1"), MqttSettings(username="srh agent"))
ASYNCAPI = json.loads(Path(__file__).with_name("asyncapi-3.0.0.schema.json").read_text())
"""The official schema of AsyncAPI documents (JSON Schema draft 7); its first lines say where it comes from."""

Json = dict[str, Any]


# The copies in docs/


@pytest.mark.parametrize("name", contract_files(Place()))
def test_the_shipped_contract_is_generated(name: str) -> None:
    """docs/contract says what the code says; otherwise the failure names the command that writes it again."""
    path = DOCS / "contract" / name
    assert path.is_file() and path.read_text() == contract_files(Place())[name], f"outdated: {REFRESH}"


def test_the_shipped_contract_holds_nothing_else() -> None:
    """No schema of a payload that is gone is left behind."""
    shipped = {path.relative_to(DOCS / "contract").as_posix() for path in (DOCS / "contract").rglob("*.*")}
    assert shipped == set(contract_files(Place())), f"delete what is too much, and: {REFRESH}"


# JSON Schemas


@pytest.mark.parametrize("name", all_schemas())
def test_a_schema_is_complete(name: str) -> None:
    """It is valid 2020-12 with an id of its own, closed, and says what every one of its fields means."""
    schema = all_schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:spinextract:{name}:v1" and schema["title"] == name
    definitions = schema.get("$defs", {})
    for part in (schema, *definitions.values()):
        assert part["description"]
        assert part["additionalProperties"] is False
        for field, rule in part["properties"].items():
            assert rule.get("description") or rule.get("$ref"), f"{name}: {field} has no docstring"


@pytest.mark.parametrize("kind", payload_schemas())
def test_a_payload_always_has_all_of_its_fields(kind: str) -> None:
    """A subscriber may rely on every field being there, at any depth."""
    schema = payload_schemas()[kind]
    for part in (schema, *schema.get("$defs", {}).values()):
        assert set(part["required"]) == set(part["properties"])


def test_a_command_may_be_empty() -> None:
    """`{}` is a body of every command, and an unknown field of none."""
    for schema in command_schemas().values():
        jsonschema.validate({}, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"surname": "Doe"}, schema)


# AsyncAPI


def test_the_asyncapi_document_is_valid() -> None:
    """It satisfies the official schema, and one with a mistake does not."""
    validator = jsonschema.Draft7Validator(ASYNCAPI)
    made = yaml.safe_load(contract_files(PLACE)["asyncapi.yaml"])
    assert [error.message for error in validator.iter_errors(made)] == []
    made["operations"]["send.status"]["action"] = "shout"
    assert list(validator.iter_errors(made))


def references(node: object) -> Iterator[str]:
    """Every `$ref` of a document."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere() -> None:
    """References inside the document resolve, and those to schemas name files that are written beside it."""
    made, files = document(PLACE), contract_files(PLACE)
    found = list(references(made))
    assert found
    for reference in found:
        if reference.startswith("./"):
            assert reference.removeprefix("./") in files
            continue
        node: Any = made
        for key in reference.removeprefix("#/").split("/"):
            node = node[key]
        assert node


def test_every_topic_is_in_the_document() -> None:
    """Each kind is sent on its own topic as it travels in the code; each command is received and replied to."""
    made = document(PLACE)
    assert set(made["channels"]) == {*ROUTES, *(f"cmd.{verb}" for verb in COMMANDS)}
    for kind, route in ROUTES.items():
        channel, operation = made["channels"][kind], made["operations"][f"send.{kind}"]
        assert channel["address"] == f"srh/v1/berlin/srh-1/{route.topic}"
        variables = {name for _, name, _, _ in string.Formatter().parse(route.topic) if name}
        assert set(channel.get("parameters", {})) == variables
        travels = operation["bindings"]["mqtt"]
        assert (operation["action"], travels["qos"], travels["retain"]) == ("send", route.qos, route.retain)
        assert travels.get("messageExpiryInterval") == route.expiry_s
        assert operation["messages"] == [{"$ref": f"#/channels/{kind}/messages/{kind}"}]
    for verb in COMMANDS:
        assert made["channels"][f"cmd.{verb}"]["address"] == f"srh/v1/berlin/srh-1/cmd/{verb}"
        operation = made["operations"][f"receive.cmd.{verb}"]
        assert operation["action"] == "receive"
        assert operation["reply"]["channel"] == {"$ref": "#/channels/reply"}


# Access rules


def matches(rule: str, topic: str) -> bool:
    """Whether an MQTT filter matches a topic (MQTT 5, 4.7), the slow way."""
    wanted, levels = rule.split("/"), topic.split("/")
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place >= len(levels) or level not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)


def allowed(text: str, user: str, access: str, topic: str) -> bool:
    """Whether these rules let a user `read` or `write` a topic; a `user` line begins the rules of one user."""
    speaking = ""
    for line in text.splitlines():
        if line.startswith("user "):
            speaking = line.removeprefix("user ")
        elif line and not line.startswith("#"):
            _, what, rule = line.split(" ", 2)
            if speaking == user and what == access and matches(rule, topic):
                return True
    return False


def topics_of(base: str) -> dict[str, str]:
    """A topic of every kind, and of every command."""
    said = {kind: f"{base}/{route.topic.format(slide='s', patient='p', verb='v')}" for kind, route in ROUTES.items()}
    return {**said, **{f"cmd.{verb}": f"{base}/cmd/{verb}" for verb in COMMANDS}}


@pytest.mark.parametrize("name", topics_of("x"))
def test_who_may_do_what(name: str) -> None:
    """The agent writes what it says, the operator commands, the dashboard asks again; each reads what is for it."""
    rules, topic = access_rules(PLACE), topics_of("srh/v1/berlin/srh-1")[name]
    is_command = name.startswith("cmd.")
    assert allowed(rules, "srh agent", "write", topic) == (not is_command)
    assert allowed(rules, "srh agent", "read", topic) == (is_command or name == "status")
    assert allowed(rules, "operator", "write", topic) == is_command
    assert allowed(rules, "operator", "read", topic) == (not is_command)
    assert allowed(rules, "dashboard", "write", topic) == (name == "cmd.replay-state")
    assert allowed(rules, "dashboard", "read", topic) == (not is_command and name != "reply")
    for user in ("srh agent", "operator", "dashboard"):
        for access in ("read", "write"):
            assert not allowed(rules, user, access, topic.replace("berlin", "paris"))


# docs/mqtt.md


def guide() -> str:
    """The text for people."""
    return (DOCS / "mqtt.md").read_text()


def test_the_guides_tables_are_generated() -> None:
    """Topics and commands stand in docs/mqtt.md as in docs/contract/reference.md."""
    for table in (topic_table(Place()), command_table(Place())):
        assert table in guide(), f"docs/mqtt.md lacks this table:\n{table}"


def examples() -> list[Json]:
    """Every JSON payload in docs/mqtt.md."""
    return [json.loads(text) for text in re.findall(r"```json\n(.*?)```", guide(), re.DOTALL)]


@pytest.mark.parametrize("example", examples(), ids=lambda body: f"{body['kind']}-{body['event_id'][:6]}")
def test_every_example_in_the_guide_fits_its_schema(example: Json) -> None:
    """What a reader copies is what the agent says today."""
    checker = jsonschema.FormatChecker()
    jsonschema.Draft202012Validator(payload_schemas()[example["kind"]], format_checker=checker).validate(example)
    payload = ROUTES[example["kind"]].payload.model_validate_json(json.dumps(example))
    assert json.loads(payload.model_dump_json()) == example


def test_the_guide_shows_every_kind() -> None:
    """There is an example of each payload, and its correction names the final that it supersedes."""
    shown = examples()
    assert {body["kind"] for body in shown} >= set(ROUTES) - {"patient.posterior", "patient.final"}
    finals = {body["event_id"]: body for body in shown if body["kind"] == "slide.final"}
    (second,) = (body for body in finals.values() if body["revision"] == 2)
    assert finals[second["supersedes"]]["slide"] == second["slide"]


def test_the_guides_settings_load() -> None:
    """Each `mqtt:` section in docs/mqtt.md is accepted."""
    found = re.findall(r"```\n(mqtt:\n.*?)```", guide(), re.DOTALL)
    assert len(found) == 2
    for text in found:
        assert MqttSettings.model_validate(yaml.safe_load(text)["mqtt"])
