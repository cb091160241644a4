"""What a browser gets: files, headers, events; who is refused; and how the process starts and ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.dashboard.listening import url_of
from agent.dashboard.stream import MAX_SCREENS
from agent.dashboard.web import HEADERS, PAGE, allowed_hosts
from tests.agent.dashboard.processes import ROOT, DashboardProcess, Events, Speaker
from tests.agent.dashboard.sayings import Saying
from tests.brokers import Mosquitto, free_port, wait_until
from tests.logs import logging_undone

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardProcess]:
    """A dashboard without a broker, for what does not need one."""
    dashboard = DashboardProcess(tmp_path_factory.mktemp("served"), free_port()).start()
    yield dashboard
    dashboard.kill()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running broker."""
    mosquitto = Mosquitto(tmp_path).start()
    yield mosquitto
    mosquitto.kill()


@pytest.fixture
def dashboard(tmp_path: Path, broker: Mosquitto) -> Iterator[DashboardProcess]:
    """A dashboard at that broker."""
    process = DashboardProcess(tmp_path, broker.port).start()
    yield process
    process.kill()


@pytest.fixture
def speaker(broker: Mosquitto) -> Iterator[Speaker]:
    """Somebody who publishes at that broker."""
    client = Speaker(broker.port)
    yield client
    client.close()


# Files and headers


def test_the_page_and_its_files_are_served(served: DashboardProcess) -> None:
    """`/` is the page; everything that it names is there, with a media type that a browser believes."""
    status, headers, body = served.get("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    names = re.findall(r'(?:src|href)="/page/([^"]+)"', body.decode())
    assert names and body == (PAGE / "index.html").read_bytes()
    for name in names:
        status, headers, content = served.get(f"/page/{name}")
        assert status == 200 and content == (PAGE / name).read_bytes()
        assert headers["content-type"].startswith(("text/css", "text/javascript"))


@pytest.mark.parametrize("path", ["/", "/page/index.html", "/nothing", "/healthz", "/page/../board.py"])
def test_every_answer_has_the_strict_headers(served: DashboardProcess, path: str) -> None:
    """Policy, no sniffing, no referrer, nothing cached: on what is found and on what is not; no server's name."""
    _, headers, _ = served.get(path)
    for name, value in HEADERS.items():
        assert headers[name.lower()] == value
    assert "server" not in headers and "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/page/../board.py",
        "/page/%2e%2e/board.py",
        "/page/..%2fboard.py",
        "/page/%2e%2e%2f%2e%2e%2fsettings.py",
        "/page//etc/passwd",
        "/../../../../etc/passwd",
        "/page/",
        "/page",
        "/board.py",
        "/docs",
        "/events/",
        "/page/index.html%00",
    ],
)
def test_nothing_outside_the_list_is_served(served: DashboardProcess, path: str) -> None:
    """A path that climbs, or names another file, is not found."""
    assert served.get(path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/events", "/healthz"])
def test_nothing_can_be_written(served: DashboardProcess, method: str, path: str) -> None:
    """The page is read only."""
    assert served.get(path, method)[0] == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("THEATRE-3.example:80", 200),
        ("evil.example", 421),
        ("evil.example:8080", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.7", 421),
        ("[fe80::1]", 421),
        ("", 421),
    ],
)
def test_only_its_own_names_are_answered(served: DashboardProcess, host: str, status: int) -> None:
    """A page of another site cannot reach us through a name of its own (DNS rebinding)."""
    code, headers, body = served.get("/healthz", Host=host)
    assert code == status and "content-security-policy" in headers
    assert code == 200 or b"dashboard.names" in body


def test_other_sites_cannot_read_the_events(served: DashboardProcess) -> None:
    """A browser says when another site asks."""
    assert served.get("/events", Sec_Fetch_Site="cross-site")[0] == 403
    assert served.get("/events", "HEAD", Sec_Fetch_Site="same-origin")[0] == 200


def test_the_settings_names_and_the_address_are_allowed() -> None:
    """Names count in any case."""
    assert {"10.1.2.3", "a.example", "localhost"} <= allowed_hosts("10.1.2.3", ["A.example"])


def test_healthz_says_what_it_hears(served: DashboardProcess) -> None:
    """A monitoring system learns in one request whether broker and agent are there."""
    status, headers, body = served.get("/healthz")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert b'"broker":"lost"' in body and b'"agent":null' in body


# Events


def test_a_slide_shows_as_it_arrives(dashboard: DashboardProcess, speaker: Speaker) -> None:
    """Status, results and heat map reach the browser within a second of being said; deltas follow."""
    agent = Saying(datetime.now(UTC))
    with Events(dashboard) as browser:
        assert browser.content_type.startswith("text/event-stream")
        browser.wait("connected", broker__state="connected")
        begun = time.monotonic()
        speaker.say(agent.status(), agent.health(), agent.current("p", "s"))
        speaker.say(agent.patches("p", "s", 0, 16), agent.slide("p", "s"), agent.patient("p"))
        view = browser.wait("the result", patient__kind="patient.posterior", arriving="receiving")
        assert time.monotonic() - begun < 1.0
        wait_until(lambda: browser.patches, "the heat map")
        assert view["patient"]["predicted"] == "schwannoma" and view["slides"][0]["label"] == "Slide 1"
        speaker.say(agent.patches("p", "s", 1, 2, before=48))
        wait_until(lambda: sum(len(event["cells"]) for event in browser.patches) == 54, "the next strip")
        assert [event["reset"] for event in browser.patches] == [True, *[False] * (len(browser.patches) - 1)]
        with Events(dashboard) as late:
            wait_until(lambda: late.patches, "the whole heat map for a screen that comes late")
            assert late.views[0]["patient"]["kind"] == "patient.posterior"
            assert (late.patches[0]["reset"], late.patches[0]["known"]) == (True, 54)


def test_views_come_at_least_once_and_at_most_five_times_a_second(
    dashboard: DashboardProcess, speaker: Speaker
) -> None:
    """The heartbeat keeps its rhythm in silence, and a flood of messages does not quicken it beyond the limit."""
    agent = Saying(datetime.now(UTC))
    with Events(dashboard) as browser:
        browser.wait("connected", broker__state="connected")
        wait_until(lambda: len(browser.views) >= 8, "views without any message")
        times = [datetime.fromisoformat(view["now"]).timestamp() for view in browser.views[-4:]]
        assert all(0.1 < after - before < 1.3 for before, after in pairwise(times))
        begun, before = time.monotonic(), len(browser.views)
        while time.monotonic() - begun < 2.0:
            speaker.say(agent.patient("p"))
        assert 5 <= len(browser.views) - before <= 12
        sequence = [view["seq"] for view in browser.views]
        assert sequence == sorted(set(sequence)) and len({view["boot"] for view in browser.views}) == 1


def test_a_slow_browser_costs_nobody_anything(dashboard: DashboardProcess, speaker: Speaker) -> None:
    """One that never reads gets no queue: others see every change at once, memory stays, and it is let go."""
    agent = Saying(datetime.now(UTC))
    asleep = dashboard.connection()
    asleep.connect()
    asleep.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asleep.request("GET", "/events")
    with Events(dashboard) as browser:
        browser.wait("connected", broker__state="connected")
        speaker.say(agent.status(), agent.current("p", "s"), agent.patches("p", "s", 0, 3000))
        before_kib = dashboard.rss_kib()
        deadline = time.monotonic() + 25
        used = 0
        while b'"screens":1,' not in dashboard.get("/healthz")[2]:
            used += 1
            begun = time.monotonic()
            speaker.say(agent.patches("p", "s", used % 7, 900), agent.patient("p", used=used))
            browser.wait("the change", limit_s=2.0, patient__counts__used=used)
            assert time.monotonic() - begun < 2.0
            assert begun < deadline, "the browser that never reads is still served"
        assert dashboard.rss_kib() - before_kib < 60_000
    asleep.close()


def test_one_screen_too_many_is_told(served: DashboardProcess) -> None:
    """The thirty-third gets a clear answer, and a place as soon as another leaves."""
    browsers = [Events(served).__enter__() for _ in range(MAX_SCREENS)]
    try:
        status, _, body = served.get("/events")
        assert status == 503 and b"32 screens show this dashboard already" in body
        browsers.pop().__exit__(None, None, None)
        wait_until(lambda: b'"screens":31,' in served.get("/healthz")[2], "a place is free")
        browsers.append(Events(served).__enter__())
        assert browsers[-1].view["broker"]["state"] == "lost"
    finally:
        for browser in browsers:
            browser.__exit__(None, None, None)
    wait_until(lambda: b'"screens":0,' in served.get("/healthz")[2], "everybody has left")


# The process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_two_seconds_with_screens_connected(
    tmp_path: Path, broker: Mosquitto, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C end every response and the process, with exit code 0."""
    dashboard = DashboardProcess(tmp_path, broker.port).start()
    with Events(dashboard) as one, Events(dashboard) as two:
        assert one.view and two.view
        begun = time.monotonic()
        assert dashboard.stop(number) == 0
        assert time.monotonic() - begun < 2.0
        assert one.ended.wait(1) and two.ended.wait(1)
    assert "Traceback" not in dashboard.log()


def test_the_service_manager_is_told(tmp_path: Path, broker: Mosquitto) -> None:
    """READY when the page is served, WATCHDOG while it lives, STOPPING at the end."""
    told = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(told))
        manager.settimeout(10)
        environment = {"NOTIFY_SOCKET": str(told), "WATCHDOG_USEC": "1000000"}
        dashboard = DashboardProcess(tmp_path, broker.port).start(environment=environment)
        try:
            heard = [manager.recv(100) for _ in range(4)]
            assert b"READY=1" in heard and heard.count(b"WATCHDOG=1") >= 2
            assert dashboard.stop() == 0
            while heard[-1] != b"STOPPING=1":
                heard.append(manager.recv(100))
        finally:
            dashboard.kill()


def test_the_page_is_opened_on_request(tmp_path: Path) -> None:
    """`--open` hands the URL to this machine's browser, which may be any program."""
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf "%s" "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    dashboard = DashboardProcess(tmp_path, free_port()).start("--open", environment={"BROWSER": f"{browser} %s"})
    try:
        wait_until(opened.exists, "the browser is started")
        assert opened.read_text() == dashboard.url
    finally:
        dashboard.kill()


def test_a_port_in_use_is_one_clear_line(served: DashboardProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and what to do."""
    port = served.url.rstrip("/").rpartition(":")[2]
    with logging_undone():
        assert main(["dashboard", "--config", str(served.config), "--port", port]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: port {port} of 127.0.0.1 is taken") and "--port" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "192.0.2.1"], "dashboard.host: cannot listen on 192.0.2.1"),
        (["--host", "no.such.host.invalid"], "no address of this machine"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_settings_are_exit_code_two(
    served: DashboardProcess, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    """One line names the setting."""
    with logging_undone():
        assert main(["dashboard", "--config", str(served.config), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len([line for line in error.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize("port", ["-1", "65536", "http", "²"])
def test_a_port_that_is_none_is_refused(
    served: DashboardProcess, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    """The argument parser says so, with exit code 2."""
    with logging_undone(), pytest.raises(SystemExit) as ended:
        main(["dashboard", "--config", str(served.config), "--port", port])
    assert ended.value.code == 2 and "is no TCP port" in capsys.readouterr().err


def test_it_loads_no_engine_no_pixels_and_no_ledger() -> None:
    """In a fresh process the whole dashboard brings none of the libraries and rooms that it must not touch."""
    code = (
        "import sys, agent.dashboard.command, agent.dashboard.server\n"
        "print(sorted({'torch', 'openvino', 'tifffile', 'imagecodecs', 'pydicom', 'sqlite3', 'watchdog',"
        " 'agent.ledger', 'agent.pipeline', 'agent.engine', 'agent.formats', 'agent.reader'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_without_the_extra_it_says_what_to_install(served: DashboardProcess) -> None:
    """The server's libraries are an extra: their absence is one line, and other commands do not miss them."""
    code = (
        "import sys\n"
        "sys.modules['uvicorn'] = None\n"
        "from agent.__main__ import main\n"
        f"sys.exit(main(['dashboard', '--config', {str(served.config)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "pip install 'spinextract-agent[dashboard]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_url_can_be_opened() -> None:
    """A wildcard address is shown as loopback, and IPv6 in brackets."""
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - nothing listens
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}/"
