"""Secrets of the broker session: files, systemd credentials, and what others could read."""

from __future__ import annotations

import ssl
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent import credentials
from agent.errors import SettingsError
from agent.publish import Session
from agent.settings import MqttSettings
from tests.agent.test_publish import WILL, make_certificate


def test_a_password_from_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`credential:NAME` is looked up in $CREDENTIALS_DIRECTORY, for the password as for the TLS files."""
    make_certificate(tmp_path, "own")
    (tmp_path / "mqtt-password").write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = MqttSettings.model_validate(
        {
            "username": "agent",
            "password_file": "credential:mqtt-password",
            "ca_file": "credential:own.crt",
            "cert_file": "credential:own.crt",
            "key_file": "credential:own.key",
        }
    )
    assert credentials.password(settings) == "secret"
    assert credentials.tls(settings) is not None


def test_a_credential_that_is_not_there_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the service, and when the unit lacks the line, the error names setting, credential and the line."""
    settings = MqttSettings.model_validate({"username": "a", "password_file": "credential:mqtt-password"})
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(SettingsError, match=r"mqtt\.password_file.*LoadCredential=mqtt-password:FILE"):
        credentials.password(settings)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(SettingsError, match="the unit loads no such credential"):
        Session(settings, client_id="t", will=WILL)


def test_a_process_finds_its_credential_as_systemd_gives_it(tmp_path: Path) -> None:
    """A process that finds its password the way systemd gives it: a read-only file in a folder of its own."""
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "pw").write_text("from systemd")
    (tmp_path / "given" / "pw").chmod(0o400)
    script = """
        from agent.credentials import exposures, password
        from agent.settings import MqttSettings
        settings = MqttSettings.model_validate({"username": "a", "password_file": "credential:pw"})
        print(password(settings), exposures(settings))
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path / "given"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "from systemd []\n"


def test_secrets_that_others_can_read_are_told(tmp_path: Path) -> None:
    """A password or key file open to every user is one warning each in the log, naming setting and remedy."""
    make_certificate(tmp_path, "own")
    secret = tmp_path / "password"
    secret.write_text("pa55word")
    settings = MqttSettings(
        username="a",
        password_file=secret,
        ca_file=tmp_path / "own.crt",
        cert_file=tmp_path / "own.crt",
        key_file=tmp_path / "own.key",
    )
    secret.chmod(0o644)
    (tmp_path / "own.key").chmod(0o604)
    with capture_logs() as logs:
        Session(settings, client_id="t", will=WILL)
    said = [log["detail"] for log in logs if log["event"] == "mqtt_exposed"]
    assert len(said) == 2
    assert "mqtt.password_file" in said[0] and "chmod o=" in said[0] and "mqtt.key_file" in said[1]
    assert "pa55word" not in "".join(said)
    secret.chmod(0o640)
    (tmp_path / "own.key").chmod(0o600)
    assert credentials.exposures(settings) == []


@pytest.mark.parametrize(
    ("host", "told"),
    [("localhost", False), ("127.0.0.1", False), ("::1", False), ("broker.example", True), ("10.0.0.7", True)],
)
def test_a_password_in_the_clear_is_told(tmp_path: Path, host: str, told: bool) -> None:
    """Without TLS a password that leaves this machine is a warning."""
    secret = tmp_path / "password"
    secret.write_text("secret")
    secret.chmod(0o600)
    said = credentials.exposures(MqttSettings(host=host, username="a", password_file=secret))
    assert [("mqtt.ca_file" in line) for line in said] == [True] * told


def test_tls_is_1_2_or_newer_and_verifies_names(tmp_path: Path) -> None:
    """The context refuses older protocols, certificates from elsewhere, and other names."""
    make_certificate(tmp_path, "own")
    context = credentials.tls(MqttSettings(ca_file=tmp_path / "own.crt"))
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED
