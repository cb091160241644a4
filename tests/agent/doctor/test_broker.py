"""Promises of doctor about the broker: real ones that refuse, expire, deny, hang, or speak an old protocol."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.contract.mosquitto import access_rules
from agent.contract.place import Place
from agent.doctor.broker import LOGIN_S, judge_plain, look_at_broker
from agent.doctor.finding import Check
from tests.agent.doctor.site import Site, by_check, make_certificate, only
from tests.brokers import Listener, Mosquitto, free_port, listening, need, wait_until

SOCKETS_LEFT = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""paho leaves the socket of a failed handshake to the garbage collector."""


def take_a_few_bytes(connection: socket.socket) -> None:
    """What a server of something else may do."""
    connection.recv(100)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A healthy machine."""
    return Site(tmp_path)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Starts brokers with these settings; all end with the test."""
    started: list[Mosquitto] = []

    def start(*settings: str, anonymous: bool = True) -> Mosquitto:
        folder = tmp_path / f"broker-{len(started)}"
        folder.mkdir()
        started.append(Mosquitto(folder, *settings, anonymous=anonymous))
        return started[-1].start()

    yield start
    for broker in started:
        broker.kill()


def with_password(folder: Path) -> list[str]:
    """Settings of a broker that lets `agent` in with `secret`, and a file that holds it."""
    users = folder / "users"
    words = [need("mosquitto_passwd", "mosquitto"), "-c", "-b", str(users), "agent", "secret"]
    subprocess.run(words, check=True, capture_output=True)
    users.chmod(0o600)
    (folder / "password").write_text("secret\n")
    (folder / "password").chmod(0o600)
    return [f"password_file {users}"]


def test_a_broker_that_is_away_only_warns(site: Site) -> None:
    """Results wait in the ledger meanwhile: a closed port is a warning, not a failure."""
    finding = only(site.look(look_at_broker, mqtt={"port": free_port()}), "broker")
    assert finding.verdict == "warn"
    assert "refused" in finding.found
    assert "ledger" in finding.why


def test_a_broker_whose_name_is_unknown_warns(site: Site) -> None:
    """A name that cannot be resolved is told like a closed port."""
    finding = only(site.look(look_at_broker, mqtt={"host": "broker.invalid"}), "broker")
    assert finding.verdict == "warn"
    assert finding.found.startswith("broker.invalid:1883: ")


@pytest.mark.parametrize(("protocol", "told"), [("auto", "MQTT 5"), ("5", "MQTT 5"), ("3.1.1", "MQTT 3.1.1")])
def test_an_open_broker_is_logged_in_to(
    site: Site, mosquitto: Callable[..., Mosquitto], protocol: str, told: str
) -> None:
    """A real login with the settings' protocol, and a message that is acknowledged."""
    found = site.look(look_at_broker, mqtt={"port": mosquitto().port, "protocol": protocol})
    assert list(found) == ["broker", "broker_tls", "broker_login", "broker_publish"]
    assert {f.verdict for findings in found.values() for f in findings} == {"ok"}
    assert only(found, "broker_login").found == f"{told}, without a user name"


def test_what_it_sends_harms_nobody(site: Site, mosquitto: Callable[..., Mosquitto]) -> None:
    """One empty message that is not retained; no will is left behind, and a running agent keeps its connection."""
    broker = mosquitto()
    listener = Listener(broker.port)
    site.look(look_at_broker, mqtt={"port": broker.port})
    wait_until(lambda: listener.messages, "the probe arrives")
    late = Listener(broker.port)
    (message,) = listener.messages
    assert (message.topic, message.payload, message.retain) == ("srh/v1/site/instrument/health", b"", False)
    assert late.messages == []
    log = broker.log.read_text()
    assert "spinextract-site-instrument-doctor" in log
    assert "as spinextract-site-instrument (" not in log, "the agent's own id would throw the agent out"
    listener.close()
    late.close()


def test_a_password_that_is_right_lets_in(site: Site, mosquitto: Callable[..., Mosquitto]) -> None:
    """User and password of the settings are used as the agent would."""
    broker = mosquitto(*with_password(site.home), anonymous=False)
    login = {"port": broker.port, "username": "agent", "password_file": str(site.home / "password")}
    assert only(site.look(look_at_broker, mqtt=login), "broker_login").found == "MQTT 5, as agent"


@pytest.mark.parametrize("username", ["agent", None])
def test_a_login_that_is_refused_fails(site: Site, mosquitto: Callable[..., Mosquitto], username: str | None) -> None:
    """A wrong password, or none where one is needed: the broker's reason, and nothing is published."""
    broker = mosquitto(*with_password(site.home), anonymous=False)
    (site.home / "password").write_text("wrong\n")
    login = {"username": username, "password_file": str(site.home / "password")} if username else {}
    found = site.look(look_at_broker, mqtt={"port": broker.port, **login})
    finding = only(found, "broker_login")
    assert finding.verdict == "fail"
    assert "Not authorized" in finding.found or "user name or password" in finding.found
    assert "wrong" not in finding.found + finding.mend
    assert "broker_publish" not in found


def test_a_topic_that_is_denied_fails(site: Site, mosquitto: Callable[..., Mosquitto]) -> None:
    """Access rules that forbid our topics are found before the first slide, with who writes the right ones."""
    rules = site.home / "acl"
    rules.write_text("topic write somewhere/else\n")
    rules.chmod(0o600)
    found = site.look(look_at_broker, mqtt={"port": mosquitto(f"acl_file {rules}").port})
    assert only(found, "broker_login").verdict == "ok"
    finding = only(found, "broker_publish")
    assert finding.verdict == "fail" and "Not authorized" in finding.found
    assert "agent contract" in finding.mend


def test_the_access_rules_that_we_write_are_enough(site: Site, mosquitto: Callable[..., Mosquitto]) -> None:
    """With the rules of `agent contract` at the broker nothing is denied, and the broker logs no denial."""
    rules = site.home / "acl"
    rules.write_text(access_rules(Place()))
    rules.chmod(0o600)
    broker = mosquitto(f"acl_file {rules}", *with_password(site.home), anonymous=False)
    login = {"port": broker.port, "username": "agent", "password_file": str(site.home / "password")}
    assert only(site.look(look_at_broker, mqtt=login), "broker_publish").verdict == "ok"
    assert "Denied PUBLISH" not in broker.log.read_text()


@SOCKETS_LEFT
def test_tls_is_verified_and_its_ends_are_told(site: Site, mosquitto: Callable[..., Mosquitto]) -> None:
    """Broker's, authority's and own certificate: the one that ends soon is a warning."""
    for name, days in (("broker", 90), ("agent", 10)):
        make_certificate(site.home, name, days=days)
    files = [f"certfile {site.home}/broker.crt", f"keyfile {site.home}/broker.key", f"cafile {site.home}/agent.crt"]
    port = mosquitto(*files, "require_certificate true").port
    tls = {
        "host": "localhost",
        "port": port,
        "ca_file": "broker.crt",
        "cert_file": "agent.crt",
        "key_file": "agent.key",
    }
    found = site.look(look_at_broker, mqtt=tls)
    assert only(found, "ca_certificate").verdict == "ok"
    assert only(found, "client_certificate").found.startswith("ends in 9 days")
    assert only(found, "broker_tls").found.startswith("TLSv1.")
    assert only(found, "broker_certificate").verdict == "ok"
    assert only(found, "broker_login").verdict == "ok"


@SOCKETS_LEFT
@pytest.mark.parametrize(
    ("host", "days", "told"), [("localhost", -1, "has expired"), ("other.example", 90, "set mqtt.host")]
)
def test_a_certificate_that_is_wrong_fails(
    site: Site, mosquitto: Callable[..., Mosquitto], host: str, days: int, told: str
) -> None:
    """Expired, or for another host: told with the reason, and no password is sent there."""
    make_certificate(site.home, "broker", host, days)
    broker = mosquitto(f"certfile {site.home}/broker.crt", f"keyfile {site.home}/broker.key")
    found = site.look(look_at_broker, mqtt={"host": "localhost", "port": broker.port, "ca_file": "broker.crt"})
    assert told in only(found, "broker_tls").found
    assert only(found, "ca_certificate").verdict == ("fail" if days < 0 else "ok")
    assert "broker_login" not in found


def test_no_tls_to_another_machine_warns(site: Site) -> None:
    """On the way everybody could read along; on the same machine nobody is on the way."""
    assert judge_plain("127.0.0.1").verdict == judge_plain("localhost").verdict == "ok"
    assert judge_plain("broker.example").verdict == judge_plain("192.0.2.7").verdict == "warn"


def test_a_certificate_file_that_is_none_fails(site: Site, mosquitto: Callable[..., Mosquitto]) -> None:
    """A file of something else under ca_file is told by its name."""
    (site.home / "ca.crt").write_text("no certificate")
    found = site.look(look_at_broker, mqtt={"port": mosquitto().port, "ca_file": "ca.crt"})
    assert only(found, "ca_certificate").verdict == "fail"
    assert only(found, "broker_tls").verdict == "fail"


def test_something_that_is_no_broker_fails_in_time(site: Site) -> None:
    """A server that takes the bytes and closes, without a word of MQTT."""
    with listening(take_a_few_bytes) as port:
        finding = only(site.look(look_at_broker, mqtt={"port": port}), "broker_login")
    assert finding.verdict == "fail" and "not let in" in finding.found


def test_a_password_file_that_hangs_is_told(site: Site, mosquitto: Callable[..., Mosquitto]) -> None:
    """Opening a pipe that nobody writes to waits for ever; the check is left behind with what it had found."""
    os.mkfifo(site.home / "password")
    login = {"port": mosquitto().port, "username": "agent", "password_file": str(site.home / "password")}
    found = by_check(Check("broker", look_at_broker, 2.0).findings(site.settings(mqtt=login)))
    assert [finding.verdict for finding in found["broker"]] == ["ok", "fail"]
    assert found["broker"][1].found == "no answer within 2 s"
    os.close(os.open(site.home / "password", os.O_RDWR))


def test_a_credential_that_only_the_service_has_is_not_tried(
    site: Site, mosquitto: Callable[..., Mosquitto], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without systemd's credentials nobody can log in as the agent: told as what it is, not as a wrong password."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    login = {"port": mosquitto().port, "username": "agent", "password_file": "credential:mqtt"}
    finding = only(site.look(look_at_broker, mqtt=login), "broker_login")
    assert (finding.verdict, finding.found) == ("warn", "not tried: credential:mqtt cannot be read here")


def test_the_login_is_limited() -> None:
    """A broker that stays silent for both protocols costs seconds, not minutes."""
    assert LOGIN_S <= 10
