"""Clients that we did not write on a broker with the generated rules: mosquitto_sub, _pub and _rr, 5 and 3.1.1, TLS.

One agent run over synthetic phantom slides, received by two mosquitto_sub at once; the tests look at what they got.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.brokers import free_port, need, wait_until
from tests.system.processes import ROOT, AgentProcess, command

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

BASE = "srh/v1/test/instrument"
SLIDES = 2
FINAL_S = 90.0
PASSWORDS = {"agent": "a-secret", "dashboard": "d-secret", "operator": "o-secret", "visitor": "v-secret"}
"""`visitor` may log in, and is in no access rule."""
FORMAT = r"%t\t%q\t%r\t%C\t%P\t%E\t%p"
RETAINED = '"retained"'
MOST_POSTERIOR_BYTES = 4096
MOST_BYTES_PER_60_PATCHES = 2048


# Certificates


def certificates(folder: Path, *names: str) -> None:
    """A certificate authority made by openssl, a certificate of the broker, and one for each of the names."""
    openssl = need("openssl", "openssl")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=a test's authority", "-days", "2")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("broker", *names):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        sign = ("-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        run("x509", "-req", *sign, "-out", f"{name}.crt", "-extfile", "names")


# The broker, as an administrator would set it up


@dataclass
class Theatre:
    """A broker that runs with the generated mosquitto.conf and mosquitto.acl, and how to reach it."""

    folder: Path
    contract: Path
    plain: int
    tls: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def words(self, user: str, *, tls: bool = False, version: str = "5") -> list[str]:
        """What the mosquitto clients need to come in as this user."""
        if tls:
            own = self.folder / user
            secrets = ["--cafile", f"{self.folder / 'ca.crt'}", "--cert", f"{own}.crt", "--key", f"{own}.key"]
            return ["-h", "localhost", "-p", str(self.tls), "-V", version, *secrets]
        return ["-h", "127.0.0.1", "-p", str(self.plain), "-V", version, "-u", user, "-P", PASSWORDS[user]]

    def listen(self, name: str, who: list[str], *topics: str) -> Path:
        """A mosquitto_sub in the background that writes what it receives into a file, once it has subscribed."""
        out, said = self.folder / f"{name}.received", self.folder / f"{name}.said"
        filters = [word for topic in topics or ("srh/v1/#",) for word in ("-t", topic)]
        program = need("mosquitto_sub", "mosquitto-clients")
        with out.open("wb") as received, said.open("wb") as errors:
            words = [program, *who, "-i", name, "-q", "1", "-F", FORMAT, *filters]
            self.processes.append(subprocess.Popen(words, stdout=received, stderr=errors))
        log = self.folder / "mosquitto.log"
        wait_until(lambda: f"Sending SUBACK to {name}" in log.read_text(), f"{name} has subscribed")
        return out

    def end(self) -> None:
        """End every client and the broker."""
        for process in reversed(self.processes):
            process.terminate()
            process.wait()


@contextmanager
def theatre(folder: Path) -> Iterator[Theatre]:
    """Make contract, passwords and certificates, and start mosquitto with them."""
    folder.mkdir()
    here = Theatre(folder, folder / "contract", free_port(), free_port())
    settings = AgentProcess(folder / "settings", here.plain, mqtt={"username": "agent"}).config
    done = command("agent", "contract", "--config", settings, "--out", here.contract)
    assert done.returncode == 0, done.stderr
    certificates(folder, "agent", "dashboard", "operator")
    shutil.copy(here.contract / "mosquitto.acl", folder / "access")
    for number, (user, password) in enumerate(PASSWORDS.items()):
        create = ["-c"] if number == 0 else []
        program = need("mosquitto_passwd", "mosquitto")
        subprocess.run([program, *create, "-b", str(folder / "passwords"), user, password], check=True)
    text = (here.contract / "mosquitto.conf").read_text()
    assert f"listener {here.plain} 127.0.0.1" in text and "\nlistener 8883\n" in text
    assert "/etc/mosquitto/spinextract/access" in text
    text = text.replace("/etc/mosquitto/spinextract", str(folder))
    # "user root": as root it would give its rights up, and the test's folder is nobody else's to read.
    text = text.replace("\nlistener 8883\n", f"\nlistener {here.tls} 127.0.0.1\n") + "user root\n"
    (folder / "mosquitto.conf").write_text(text)
    log = folder / "mosquitto.log"
    with log.open("wb") as file:
        words = [need("mosquitto", "mosquitto"), "-v", "-c", str(folder / "mosquitto.conf")]
        broker = subprocess.Popen(words, cwd=folder, stdout=file, stderr=file)
    here.processes.append(broker)
    try:
        wait_until(lambda: broker.poll() is not None or " running" in log.read_text(), "mosquitto listens")
        assert broker.poll() is None, log.read_text()
        yield here
    finally:
        here.end()


# The run


@dataclass(frozen=True)
class Received:
    """One line of mosquitto_sub."""

    topic: str
    qos: str
    retained: str
    content_type: str
    user_property: str
    expiry: str
    payload: str

    @property
    def body(self) -> dict[str, Any]:
        """The payload, parsed."""
        body: dict[str, Any] = json.loads(self.payload)
        return body


def received(path: Path) -> list[Received]:
    """What a mosquitto_sub has written so far, whole lines only."""
    lines = path.read_text().split("\n")[:-1]
    return [Received(*line.split("\t", 6)) for line in lines]


def kinds(path: Path) -> list[str]:
    """Kinds of what was received, in order."""
    return [message.body["kind"] for message in received(path)]


def complete(path: Path) -> set[str]:
    """Slides whose final on all of their data was received."""
    bodies = (message.body for message in received(path))
    return {body["slide"] for body in bodies if body["kind"] == "slide.final" and body["state"] == "complete"}


@dataclass(frozen=True)
class Run:
    """A whole agent run: its broker, its log, and what the two subscribers received."""

    theatre: Theatre
    agent: AgentProcess
    by_5: list[Received]
    by_311: list[Received]
    replies: list[Received]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two slides at 8 times the imager's pace, received over MQTT 5, and over TLS with 3.1.1; a command; a stop."""
    home = tmp_path_factory.mktemp("clients")
    slides = home / "slides"
    done = command(
        "agent", "phantom", "--out", slides, "--slides", str(SLIDES), "--seed", "41000", "--layout", "strips-b"
    )
    assert done.returncode == 0, done.stderr
    (home / "password").write_text(PASSWORDS["agent"] + "\n")
    (home / "password").chmod(0o600)
    with theatre(home / "theatre") as here:
        by_5 = here.listen("screen-5", here.words("dashboard"))
        by_311 = here.listen("screen-311", here.words("dashboard", tls=True, version="311"))
        replies = here.listen("desk", here.words("operator", version="311"), f"{BASE}/reply/#")
        login = {"username": "agent", "password_file": str(home / "password"), "commands": ["engine", "replay-state"]}
        agent = AgentProcess(home / "agent", here.plain, mqtt=login).start()
        try:
            done = command("agent", "replay", slides, agent.folder, "--rate", "8")
            assert done.returncode == 0, done.stderr
            wait_until(lambda: len(complete(by_5)) == SLIDES, "every slide's final", FINAL_S)
            wait_until(lambda: "patient.final" in kinds(by_5), "a patient's final", FINAL_S)
            ask = [need("mosquitto_pub", "mosquitto-clients"), *here.words("operator", version="311"), "-q", "1"]
            subprocess.run([*ask, "-t", f"{BASE}/cmd/engine", "-m", '{"request_id": "by-311"}'], check=True)
            wait_until(lambda: received(replies), "the reply")
            assert agent.stop() == 0, agent.log()
            for path in (by_5, by_311):
                wait_until(lambda p=path: received(p)[-1].body.get("state") == "stopped", "the farewell")  # type: ignore[misc]
            yield Run(here, agent, received(by_5), received(by_311), received(replies))
        finally:
            if not agent.ended:
                agent.kill()


def test_every_payload_of_a_run_fits_its_generated_schema(run: Run) -> None:
    """All kinds but alert were received, and each payload is valid under the schema file of its kind."""
    schemas = {path.stem: json.loads(path.read_text()) for path in (run.theatre.contract / "schemas").iterdir()}
    validators = {
        kind: jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        for kind, schema in schemas.items()
    }
    for message in (*run.by_5, *run.by_311, *run.replies):
        validators[message.body["kind"]].validate(message.body)
    said = {kind for kind in schemas if not kind.startswith("cmd.")} - {"alert"}
    assert {message.body["kind"] for message in (*run.by_5, *run.replies)} == said


def test_topics_and_properties_are_those_of_the_asyncapi_document(run: Run) -> None:
    """Each message came on a topic of its kind, with its QoS, and in MQTT 5 with content type, schema and expiry."""
    for message in run.by_5:
        kind, levels = message.body["kind"], message.topic.removeprefix(f"{BASE}/").split("/")
        assert "/".join([levels[0], levels[-1]][: len(levels)]) == kind.replace(".", "/")
        assert message.qos == ("0" if kind in ("health", "slide.patches") else "1")
        assert message.content_type == "application/json"
        assert message.user_property == f"schema:{kind}.v1"
        expires = {"health", "current", "slide.posterior", "patient.posterior", "slide.final", "patient.final"}
        assert bool(message.expiry) == (kind in expires)


def test_a_3_1_1_client_over_tls_misses_no_answer(run: Run) -> None:
    """It receives the same results under the same event_ids; only the properties are missing."""

    def answers(messages: list[Received]) -> list[str]:
        return [m.body["event_id"] for m in messages if m.body["kind"].endswith((".final", ".posterior"))]

    assert answers(run.by_311) == answers(run.by_5)
    assert {(m.content_type, m.user_property, m.expiry) for m in run.by_311} == {("", "", "")}


def test_the_agent_may_do_all_that_it_needs(run: Run) -> None:
    """Under the generated rules the broker refuses nothing that the agent says or listens to."""
    assert not run.agent.events("mqtt_message_refused")
    assert not run.agent.events("mqtt_subscription_refused")
    (reply,) = run.replies
    assert reply.topic == f"{BASE}/reply/engine"
    assert (reply.body["request_id"], reply.body["ok"]) == ("by-311", True)
    assert "Denied" not in (run.theatre.folder / "mosquitto.log").read_text()


def test_payloads_are_small(run: Run) -> None:
    """No posterior or final is over 4 kB, and heat map arrays take at most 2 kB for 60 patches."""
    results = [m for m in run.by_5 if m.body["kind"].endswith((".final", ".posterior"))]
    assert max(len(message.payload.encode()) for message in results) <= MOST_POSTERIOR_BYTES
    maps = [message for message in run.by_5 if message.body["kind"] == "slide.patches"]
    patches = sum(len(message.body["x"]) for message in maps)
    assert patches == SLIDES * 42
    assert sum(len(message.payload.encode()) for message in maps) * 60 / patches <= MOST_BYTES_PER_60_PATCHES


def test_heat_maps_fill_while_a_slide_arrives(run: Run) -> None:
    """The first arrays of a slide come before it is complete, and `before` counts those of earlier messages."""
    told: dict[str, int] = {}
    for message in (m.body for m in run.by_5 if m.body["kind"] == "slide.patches"):
        assert message["before"] == told.get(message["slide"], 0)
        told[message["slide"]] = message["before"] + len(message["x"])
    assert set(told.values()) == {42}
    firsts = [m.body for m in run.by_5 if m.body["kind"] in ("slide.patches", "slide.final")]
    assert len(firsts[0]["x"]) < 42


# Who may do what


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """The same broker without an agent; the agent's user has left a retained final there."""
    with theatre(tmp_path_factory.mktemp("closed") / "theatre") as here:
        publish(here, "agent", "slide/aaaa/final", RETAINED, "-r")
        yield here


def publish(here: Theatre, user: str, topic: str, payload: str, *more: str) -> str:
    """mosquitto_pub as this user; what it complains about, "" when the broker took the message."""
    words = [need("mosquitto_pub", "mosquitto-clients"), *here.words(user), "-q", "1", "-t", f"{BASE}/{topic}"]
    done = subprocess.run([*words, "-m", payload, *more], capture_output=True, text=True, timeout=20, check=False)
    return done.stderr + done.stdout


def seen_by(here: Theatre, user: str) -> list[str]:
    """Payloads that this user has within a second after subscribing to everything."""
    words = [need("mosquitto_sub", "mosquitto-clients"), *here.words(user), "-t", "#", "-W", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.splitlines()


def test_a_dashboard_cannot_write(closed: Theatre) -> None:
    """All but a request to be told again is refused and received by nobody; what is retained for it, it reads."""
    assert "Not authorized" not in publish(closed, "dashboard", "cmd/replay-state", "{}")
    for topic in ("cmd/engine", "cmd/close-patient", "slide/aaaa/final", "status", "reply/engine", "elsewhere"):
        assert "Not authorized" in publish(closed, "dashboard", topic, "forged", "-r"), topic
    assert seen_by(closed, "operator") == seen_by(closed, "dashboard") == [RETAINED]


@pytest.mark.parametrize(("topic", "may"), [("cmd/engine", True), ("slide/aaaa/final", False), ("cmd/other", False)])
def test_an_operator_can_send_commands_and_nothing_else(closed: Theatre, topic: str, may: bool) -> None:
    """The known commands pass; results and unknown commands are refused."""
    assert ("Not authorized" not in publish(closed, "operator", topic, "{}")) == may


def test_the_agents_own_user_cannot_send_commands(closed: Theatre) -> None:
    """Stolen from its machine, the agent's password closes no patient elsewhere."""
    assert "Not authorized" in publish(closed, "agent", "cmd/close-patient", "{}")


def test_a_stranger_sees_nothing(closed: Theatre) -> None:
    """Without a password, or with a wrong one, nobody comes in; a user without rules receives and writes nothing."""
    program = need("mosquitto_sub", "mosquitto-clients")
    wrong = ["-u", "dashboard", "-P", "guess"]
    for login in ([], wrong):
        words = [program, "-h", "127.0.0.1", "-p", str(closed.plain), "-V", "5", *login, "-t", "#", "-W", "2"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode != 0 and "ot authori" in done.stderr and not done.stdout
    assert seen_by(closed, "visitor") == []
    assert "Not authorized" in publish(closed, "visitor", "alert", "forged")


def test_a_request_gets_its_reply_at_the_response_topic(closed: Theatre, tmp_path: Path) -> None:
    """TLS with client certificates on both sides: mosquitto_rr asks, the agent answers, a screen sees its birth."""
    here, folder = closed, closed.folder
    screen = here.listen("tls-screen", here.words("dashboard", tls=True), f"{BASE}/status")
    secrets = {"ca_file": "ca.crt", "cert_file": "agent.crt", "key_file": "agent.key"}
    mqtt = {"host": "localhost", **{key: str(folder / name) for key, name in secrets.items()}, "commands": ["engine"]}
    agent = AgentProcess(tmp_path / "agent", here.tls, mqtt=mqtt).start()
    try:
        wait_until(lambda: kinds(screen), "the birth")
        ask = [need("mosquitto_rr", "mosquitto-clients"), *here.words("operator", tls=True), "-q", "1", "-W", "20"]
        where = ["-t", f"{BASE}/cmd/engine", "-e", f"{BASE}/reply/desk-7", "-F", r"%D\t%p"]
        words = [*ask, *where, "-D", "publish", "correlation-data", "seventh", "-m", "{}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        correlation, payload = done.stdout.rstrip("\n").split("\t")
        assert correlation == "seventh" and json.loads(payload)["result"]["engine"]["name"] == "eager"
        assert agent.stop() == 0
        assert not agent.events("mqtt_message_refused")
        wait_until(lambda: received(screen)[-1].body["state"] == "stopped", "the farewell")
    finally:
        if not agent.ended:
            agent.kill()


def test_tls_without_a_client_certificate_is_refused(closed: Theatre) -> None:
    """A password does not replace the certificate on the network's port."""
    program = need("mosquitto_sub", "mosquitto-clients")
    login = ["-u", "dashboard", "-P", PASSWORDS["dashboard"], "--cafile", str(closed.folder / "ca.crt")]
    words = [program, "-h", "localhost", "-p", str(closed.tls), "-V", "5", *login, "-t", "#", "-W", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode != 0 and not done.stdout
    assert "certificate" in (closed.folder / "mosquitto.log").read_text()


def lines_of_the_guide(program: str) -> list[list[str]]:
    """The words of every line in docs/mqtt.md that starts this program."""
    lines = (ROOT / "docs" / "mqtt.md").read_text().splitlines()
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


def test_every_mosquitto_line_of_the_guide_works(closed: Theatre) -> None:
    """Copied, with broker and password filled in, each mosquitto_sub and _pub of docs/mqtt.md does its work."""
    started = []
    for words in (*lines_of_the_guide("mosquitto_sub"), *lines_of_the_guide("mosquitto_pub")):
        ports = ["-p", str(closed.plain)] if "-p" not in words else []
        user = words[words.index("-u") + 1] if "-u" in words else ""
        filled = {"BROKER": "localhost", "8883": str(closed.tls), "PASSWORD": PASSWORDS.get(user, "")}
        words = [filled.get(word, word).replace("srh/v1/site/instrument", BASE) for word in words]
        limit = ["-W", "1"] if words[0] == "mosquitto_sub" else []
        command_line = [need(words[0], "mosquitto-clients"), *words[1:], *ports, *limit]
        started.append(
            subprocess.Popen(
                command_line, cwd=closed.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    assert len(started) >= 8
    for process in started:
        out, errors = process.communicate(timeout=20)
        words = [str(word) for word in process.args]  # type: ignore[union-attr]
        assert not errors.replace("Timed out\n", ""), f"{words}: {errors}"
        if "srh/v1/#" in words or "srh/v1/+/+/+/+/final" in words:
            assert RETAINED in out, words


def test_the_openssl_lines_of_the_guide_make_a_certificate(tmp_path: Path) -> None:
    """Authority and client certificate of docs/mqtt.md belong together, and carry the user's name."""
    openssl = need("openssl", "openssl")
    for words in lines_of_the_guide("openssl"):
        subprocess.run([openssl, *words[1:]], cwd=tmp_path, check=True, capture_output=True)
    check = [openssl, "verify", "-CAfile", "ca.crt", "dashboard.crt"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    name = [openssl, "x509", "-in", "dashboard.crt", "-noout", "-subject"]
    assert "dashboard" in subprocess.run(name, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
