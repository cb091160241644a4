"""The broker: does it answer, is its certificate good, does it let us in, does it take what we say?"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent import credentials
from agent.doctor.certificates import ends_of, validity
from agent.doctor.finding import Finding
from agent.errors import SettingsError
from agent.field_types import CREDENTIAL
from agent.publish import Acked, Connected, Disconnected, Session
from agent.settings import Settings
from agent.topics import Message, Topics

TIMEOUT_S = 3.0
LOGIN_S = 10.0
ACK_S = 3.0
SOON_DAYS = 30
KEPT = "results reach nobody meanwhile; they wait in the ledger"


def look_at_broker(settings: Settings) -> Iterator[Finding]:
    """Certificates on the disk, then the network, TLS, a login, and one empty message."""
    yield from _own_files(settings)
    mqtt = settings.mqtt
    where = f"{mqtt.host}:{mqtt.port}"
    try:
        sock = socket.create_connection((mqtt.host, mqtt.port), timeout=TIMEOUT_S)
    except OSError as error:
        mend = "start the broker (systemctl start mosquitto), or correct mqtt.host and mqtt.port"
        yield Finding("broker", "warn", f"{where}: {error.strerror or error}", KEPT, mend)
        return
    with sock:
        yield Finding("broker", "ok", f"{where} accepts connections")
        tls = list(_tls(settings, sock))
    yield from tls
    if all(finding.verdict != "fail" for finding in tls):
        yield from _login(settings)


def _own_files(settings: Settings) -> Iterator[Finding]:
    """When the certificates end that the settings name."""
    for field in ("ca_file", "cert_file"):
        path: Path | None = getattr(settings.mqtt, field)
        if path is None:
            continue
        check = {"ca_file": "ca_certificate", "cert_file": "client_certificate"}[field]
        try:
            text = credentials.located(field, path).read_text(encoding="ascii", errors="replace")
            yield judge_end(check, min(ends_of(text)), datetime.now(UTC), f"in {path}")
        except (OSError, ValueError, SettingsError) as error:
            yield Finding(check, "fail", f"{path}: {error}", "without it there is no TLS", f"correct mqtt.{field}")


def judge_end(check: str, end: datetime, now: datetime, whose: str) -> Finding:
    """A certificate's end: past, soon, or far."""
    days = (end - now).days
    why = "from then on there is no connection, and results wait in the ledger"
    if end <= now:
        return Finding(
            check, "fail", f"expired on {end:%Y-%m-%d}, {whose}", why, "renew it (the agent needs no restart)"
        )
    if days < SOON_DAYS:
        return Finding(check, "warn", f"ends in {days} days, on {end:%Y-%m-%d}, {whose}", why, "renew it in time")
    return Finding(check, "ok", f"valid until {end:%Y-%m-%d}, {whose}")


def _tls(settings: Settings, sock: socket.socket) -> Iterator[Finding]:
    mqtt = settings.mqtt
    if mqtt.ca_file is None:
        yield judge_plain(mqtt.host)
        return
    try:
        context = credentials.tls(mqtt)
    except SettingsError as error:
        yield Finding("broker_tls", "fail", str(error), "without it there is no TLS", "correct the file or its path")
        return
    assert context is not None
    try:
        with context.wrap_socket(sock, server_hostname=mqtt.host) as secure:
            der, version = secure.getpeercert(binary_form=True) or b"", secure.version()
    except OSError as error:
        found = credentials.explain(str(error), mqtt, reached=False) or str(error)
        mend = (
            f"openssl s_client -connect {mqtt.host}:{mqtt.port} -CAfile {mqtt.ca_file}   shows what the broker offers"
        )
        yield Finding("broker_tls", "fail", found, KEPT, mend)
        return
    yield Finding("broker_tls", "ok", f"{version}; the certificate is from mqtt.ca_file and for {mqtt.host}")
    yield judge_end("broker_certificate", validity(der)[1], datetime.now(UTC), "the broker's")


def judge_plain(host: str) -> Finding:
    """No TLS: on the way to another machine everybody can read along."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if local:
        return Finding("broker_tls", "ok", "no TLS; the broker is on this machine")
    why = "everyone on the way can read results and password, and send results in our name"
    return Finding(
        "broker_tls", "warn", f"no TLS to {host}", why, "give the broker a certificate and set mqtt.ca_file"
    )


def _login(settings: Settings) -> Iterator[Finding]:
    mqtt = settings.mqtt
    secrets = [str(path) for path in (mqtt.password_file, mqtt.key_file) if path is not None]
    hidden = [secret for secret in secrets if secret.startswith(CREDENTIAL)]
    if hidden and not all(_located(path) for path in hidden):
        why = "only the service gets its credentials from systemd"
        mend = "look at the running agent: journalctl -u spinextract-agent | grep mqtt_"
        yield Finding("broker_login", "warn", f"not tried: {', '.join(hidden)} cannot be read here", why, mend)
        return
    topics = Topics(mqtt.root, settings.site, settings.instrument)
    # Empty and not retained: it changes no state, and a receiver that parses it learns that there is nothing.
    probe = Message(f"{topics.base}/health", b"", "doctor", "health", 1, False, False, False, 1)
    # Another client id: with the agent's own the broker would throw the agent out.
    name = mqtt.client_id or f"spinextract-{settings.site}-{settings.instrument}"
    try:
        session = Session(mqtt.model_copy(update={"client_id": f"{name}-doctor"}), client_id="", will=probe)
    except SettingsError as error:
        yield Finding("broker_login", "fail", str(error), KEPT, "correct the file or its path")
        return
    session.start()
    try:
        yield from _speak(session, probe, settings)
    finally:
        session.stop(TIMEOUT_S)


def _located(path: str) -> bool:
    try:
        credentials.located("password_file", Path(path))
    except SettingsError:
        return False
    return True


def _speak(session: Session, probe: Message, settings: Settings) -> Iterator[Finding]:
    connected = _wait_for_login(session)
    if not isinstance(connected, Connected):
        who = settings.mqtt.username or "nobody in particular (no mqtt.username)"
        mend = f"give the broker's user {who} the right password (mosquitto_passwd), and see the broker's log"
        yield Finding("broker_login", "fail", f"not let in: {connected}", KEPT, mend)
        return
    who = f"as {settings.mqtt.username}" if settings.mqtt.username else "without a user name"
    yield Finding("broker_login", "ok", f"MQTT {connected.protocol}, {who}")
    mid = session.publish(probe)
    refused = None if mid is None else _wait_for_ack(session, mid)
    if mid is None or refused is None:
        mend = "see the broker's log"
        yield Finding("broker_publish", "fail", "a message was not acknowledged", KEPT, mend)
    elif refused:
        mend = "give the user write access: python -m agent contract --out DIR writes rules for mosquitto"
        yield Finding("broker_publish", "fail", f"{probe.topic}: {refused}", KEPT, mend)
    elif connected.protocol == "5":
        yield Finding("broker_publish", "ok", f"may write to {probe.topic}")
    else:
        found = f"{probe.topic}: acknowledged, but MQTT 3.1.1 does not tell when a message was thrown away"
        yield Finding("broker_publish", "ok", f"{found}; the broker's log does")


def _wait_for_login(session: Session) -> Connected | str:
    """Connected, or why not: the same reason twice is an answer, silence may mean another protocol."""
    reasons: list[str] = []
    deadline = time.monotonic() + LOGIN_S
    while time.monotonic() < deadline:
        for event in session.events(0.1):
            if isinstance(event, Connected):
                return event
            if isinstance(event, Disconnected):
                reasons.append(event.reason)
        if reasons and reasons[-1] != "no answer" and reasons.count(reasons[-1]) > 1:
            break
    return reasons[-1] if reasons else "no answer"


def _wait_for_ack(session: Session, mid: int) -> str | None:
    """ "" when the broker took the message, its reason when it did not, None without an answer."""
    deadline = time.monotonic() + ACK_S
    while time.monotonic() < deadline:
        for event in session.events(0.1):
            if isinstance(event, Acked) and event.mid == mid:
                return event.refused or ""
            if isinstance(event, Disconnected):
                return f"the broker ended the connection: {event.reason}"
    return None
