"""Promises of the settings file: every mistake is told with its line, and the example never lies."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path, PurePosixPath

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from agent.errors import SettingsError
from agent.formats import Limits
from agent.identity import Plain
from agent.layouts import Layouts, Placed
from agent.naming import BUILTIN_RULES, BUILTINS
from agent.settings import LimitSettings, MqttSettings, NamingRule, Settings, example_yaml, load_settings

REPOSITORY = Path(__file__).parents[2]
REQUIRED = "folder: in\nstate_dir: state\nprofile: /profiles/p\n"


def write(folder: Path, text: str) -> Path:
    """A settings file with this text."""
    path = folder / "agent.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    """What is said against a settings file with this text."""
    with pytest.raises(SettingsError) as caught:
        load_settings(write(folder, text))
    return str(caught.value)


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and every section below it."""
    nested = [field.annotation for field in model.model_fields.values()]
    models = [kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model, *(inner for kind in models for inner in sections(kind))]


def test_three_paths_are_enough(tmp_path: Path) -> None:
    """Folder, state_dir and profile suffice; everything else has the documented default."""
    settings = load_settings(write(tmp_path, REQUIRED))
    assert settings.watch.mode == "auto"
    assert (settings.watch.scan_interval_s, settings.watch.settle_s, settings.watch.stall_after_s) == (2, 1, 120)
    assert (settings.watch.slide_quiet_s, settings.watch.read_slice_kib) == (20, 4096)
    assert settings.naming.builtin == BUILTINS and settings.naming.tags and not settings.naming.rules
    assert (settings.patient.quiet_s, settings.patient.on_next, settings.mqtt.commands) == (900, True, ())
    assert (settings.pipeline.batch_deadline_ms, settings.pipeline.handover_capacity) == (50, 16)
    assert settings.pipeline.stop_limit_s == 10
    assert settings.engine.order == ("openvino", "eager") and settings.engine.threads == 0
    assert (settings.mqtt.host, settings.mqtt.port, settings.mqtt.root) == ("127.0.0.1", 1883, "srh/v1")
    assert (settings.mqtt.keepalive_s, settings.mqtt.in_flight, settings.mqtt.health_interval_s) == (15, 16, 10)
    assert settings.identity.key_file is None and settings.metrics.port is None


def test_the_dashboard_may_have_an_account_of_its_own(tmp_path: Path) -> None:
    """Its user name and password replace the agent's in its session; what it does not set stays the agent's."""
    text = REQUIRED + "mqtt: {host: broker, username: agent, password_file: /a}\ndashboard: {username: dashboard}\n"
    settings = load_settings(write(tmp_path, text))
    session = settings.dashboard.session(settings.mqtt)
    assert (session.host, session.username, session.password_file) == ("broker", "dashboard", Path("/a"))
    settings = load_settings(write(tmp_path, text.replace("username: dashboard}", "password_file: b}")))
    session = settings.dashboard.session(settings.mqtt)
    assert (session.username, session.password_file) == ("agent", tmp_path / "b")
    assert load_settings(write(tmp_path, REQUIRED)).dashboard.session(settings.mqtt) == settings.mqtt


def test_relative_paths_start_at_the_settings_file(tmp_path: Path) -> None:
    """A relative path means the same whatever folder the daemon was started from; an absolute one stays."""
    settings = load_settings(write(tmp_path, REQUIRED + "mqtt: {username: u, password_file: ../secret}\n"))
    assert settings.folder == tmp_path / "in"
    assert settings.profile == Path("/profiles/p")
    assert settings.mqtt.password_file == tmp_path.parent / "secret"


def test_home_is_expanded(tmp_path: Path) -> None:
    """A path that begins with ~ starts at the home folder."""
    settings = load_settings(write(tmp_path, REQUIRED + "identity: {key_file: ~/key}\n"))
    assert settings.identity.key_file == Path.home() / "key"


def test_wrong_value_names_file_line_field_and_value(tmp_path: Path) -> None:
    """A wrong value is told with file, line, field path and the value itself."""
    text = refusal(tmp_path, REQUIRED + "watch:\n  mode: auto\n  scan_interval_s: soon\n")
    assert text.startswith(f"{tmp_path / 'agent.yaml'}:6: watch.scan_interval_s: ")
    assert "'soon'" in text


@pytest.mark.parametrize(
    ("line", "suggested"),
    [
        ("watch: {scan_intervall_s: 1}", "'scan_interval_s'"),
        ("wacth: {mode: scan}", "'watch'"),
        ("scan_interval_s: 1", "'watch.scan_interval_s'"),
        ("naming: {rules: [{name: r, patern: x}]}", "'pattern'"),
    ],
)
def test_unknown_key_is_refused_with_a_suggestion(tmp_path: Path, line: str, suggested: str) -> None:
    """An unknown key is refused on its line, with the name that was probably meant."""
    text = refusal(tmp_path, REQUIRED + line + "\n")
    assert "agent.yaml:4: " in text
    assert f"did you mean {suggested}?" in text


def test_unknown_key_does_not_show_its_value(tmp_path: Path) -> None:
    """A password under a wrong key never reaches the log."""
    text = refusal(tmp_path, REQUIRED + "mqtt:\n  password: hunter2\n")
    assert "password_file" in text and "hunter2" not in text


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """Two mistakes give two lines, in one run."""
    text = refusal(tmp_path, "folder: in\nprofile: p\nmqtt:\n  port: 70000\n")
    assert "state_dir: is required" in text
    assert "agent.yaml:4: mqtt.port: " in text
    assert len(text.splitlines()) == 2


def test_repeated_key_is_refused(tmp_path: Path) -> None:
    """A key stated twice is refused with both lines, since YAML would silently drop the first."""
    text = refusal(tmp_path, REQUIRED + "mqtt:\n  port: 1\n  host: b\n  port: 2\n")
    assert "agent.yaml:7: mqtt.port: stated before on line 5" in text


@pytest.mark.parametrize("text", ["folder: [", "folder: in\n\tx: 1\n", "- a\n", "just words\n"])
def test_broken_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    """A file that is not a YAML mapping is refused in one line that names the file."""
    told = refusal(tmp_path, text)
    assert told.startswith(str(tmp_path / "agent.yaml")) and len(told.splitlines()) == 1


def test_missing_and_undecodable_files_are_told(tmp_path: Path) -> None:
    """A file that is not there or not text is refused by name, never with a traceback."""
    with pytest.raises(SettingsError, match=r"absent\.yaml: cannot be read"):
        load_settings(tmp_path / "absent.yaml")
    (tmp_path / "agent.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"agent\.yaml: cannot be read"):
        load_settings(tmp_path / "agent.yaml")


def test_empty_file_asks_for_the_required_fields(tmp_path: Path) -> None:
    """An empty file is told what it lacks."""
    assert len(refusal(tmp_path, "").splitlines()) == 3


def test_empty_section_means_its_defaults(tmp_path: Path) -> None:
    """A section whose lines are all commented out has its defaults."""
    assert load_settings(write(tmp_path, REQUIRED + "identity:\n  # key_file:\n")).identity.key_file is None


@pytest.mark.parametrize(
    "line",
    [
        "site: a/b",
        "instrument: 'a b'",
        "watch: {settle_s: 0}",
        "watch: {settle_s: .inf}",
        "watch: {settle_s: .nan}",
        "watch: {mode: poll}",
        "mqtt: {root: 'srh/#'}",
        "mqtt: {root: srh/v1/}",
        "mqtt: {protocol: 4}",
        "mqtt: {cert_file: c.pem}",
        "mqtt: {password_file: p}",
        "engine: {order: []}",
        "naming: {builtin: [strips-d]}",
        "state_dir: in/state",
    ],
)
def test_values_that_cannot_work_are_refused(tmp_path: Path, line: str) -> None:
    """Values that would fail later, or break topics, are refused at the start."""
    kept = "".join(f"{given}\n" for given in REQUIRED.splitlines() if given.split(":")[0] != line.split(":")[0])
    assert "agent.yaml:" in refusal(tmp_path, kept + line + "\n")


@pytest.mark.parametrize(("written", "meant"), [("5", "5"), ("3.1.1", "3.1.1"), ("auto", "auto")])
def test_protocol_may_be_written_as_a_number(written: str, meant: str) -> None:
    """`protocol: 5` and `protocol: "5"` are the same."""
    assert MqttSettings.model_validate({"protocol": yaml.safe_load(written)}).protocol == meant


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({"pattern": "("}, "regular expression"),
        ({"pattern": r"(?P<slide>.)(?P<number>\d)"}, "patient"),
        ({"pattern": r"(?P<patient>.)(?P<slide>.)(?P<strip>\d)"}, "channel"),
        ({"pattern": r"(?P<patient>.)(?P<slide>.)"}, "strip"),
        ({"pattern": r"(?P<patient>.)(?P<slide>.)", "kind": "patch", "planes_per_file": 2}, "(?P<x>"),
        ({"pattern": r"(?P<patient>.)(?P<slide>.)", "kind": "mosaic"}, "channel"),
        ({"pattern": r"(?P<patient>.)(?P<number>\d)", "slide": "{nothing}"}, "{nothing}"),
        ({"pattern": r"(?P<patient>.)(?P<slide>.)(?P<number>\d)", "channels": {"G": 2}}, "CH3"),
    ],
)
def test_unusable_rule_says_what_it_lacks(rule: dict[str, object], complaint: str) -> None:
    """A naming rule that could never place a file is refused with what it lacks."""
    with pytest.raises(ValidationError) as caught:
        NamingRule.model_validate({"name": "r", **rule})
    assert complaint in str(caught.value)


def test_limits_are_the_formats_limits() -> None:
    """The limits section has the fields and defaults of agent.formats.Limits, and makes one."""
    assert Limits(**LimitSettings().model_dump()) == Limits()
    assert set(LimitSettings.model_fields) == {field.name for field in dataclasses.fields(Limits)}


def test_builtin_names_are_the_rules() -> None:
    """Every built-in name has rules, in the order of the names."""
    assert tuple(BUILTIN_RULES) == BUILTINS


def test_every_field_is_documented() -> None:
    """No setting lacks its documentation."""
    documented: list[type[BaseModel]] = [*sections(Settings), NamingRule]
    for section in documented:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_settings_are_immutable(tmp_path: Path) -> None:
    """Nobody changes settings while the daemon runs."""
    settings = load_settings(write(tmp_path, REQUIRED))
    with pytest.raises(ValidationError):
        settings.watch.settle_s = 3.0  # type: ignore[misc]


def test_shipped_example_is_generated() -> None:
    """configs/agent.yaml is what `example_yaml` writes from the models' documentation."""
    assert (REPOSITORY / "configs" / "agent.yaml").read_text(encoding="utf-8") == example_yaml()


def test_example_states_the_defaults(tmp_path: Path) -> None:
    """The example loads, and says of every setting what leaving it out would give."""
    path = write(tmp_path, example_yaml())
    stated = load_settings(path)
    paths = "".join(
        f"{name}: {os.path.relpath(getattr(stated, name), tmp_path)}\n" for name in ("folder", "state_dir", "profile")
    )
    assert stated == load_settings(write(tmp_path, paths))


def test_example_shows_every_setting() -> None:
    """Each field of each section appears in the example, commented out where it has no default."""
    lines = {line.strip().removeprefix("# ").partition(":")[0] for line in example_yaml().splitlines()}
    for section in sections(Settings):
        assert set(section.model_fields) <= lines


def test_documented_rule_works(tmp_path: Path) -> None:
    """The naming rule that the example shows can be used as it stands."""
    text = " ".join(line.strip().removeprefix("# ") for line in example_yaml().splitlines())
    shown = text[text.index("{name: lab") : text.index("'}") + 2]
    settings = load_settings(write(tmp_path, REQUIRED + f"naming:\n  rules:\n    - {shown}\n"))
    placed = Layouts(settings.naming.rules, Plain(), by_tags=False).place(PurePosixPath("P1/S2/7_CH3.tif"))
    assert isinstance(placed, Placed) and (placed.part.strip, placed.channel) == (7, 1)
