"""Promises of doctor about ports and DICOM results: served by us, free, or taken by another program."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent.doctor.outlets import MANY_WAITING, look_at_dicom, look_at_ports
from agent.metrics import serve_metrics
from agent.spool import ASIDE, FOLDER
from tests.agent.doctor.site import Site, only
from tests.agent.test_metrics import health
from tests.brokers import free_port


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A healthy machine."""
    return Site(tmp_path)


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of a web server that is not ours."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_free_port_is_well(site: Site) -> None:
    """Neither metrics nor dashboard run: their ports could be had, and nothing listens there afterwards."""
    port = free_port()
    found = site.look(look_at_ports, metrics={"port": port}, dashboard={"port": free_port()})
    assert only(found, "metrics_port").found == f"127.0.0.1:{port} is free"
    assert only(found, "dashboard_port").verdict == "ok"


def test_metrics_that_are_served_are_recognised(site: Site) -> None:
    """The endpoint answers as the agent's does."""
    port = free_port()
    stop = serve_metrics(port, health)
    try:
        assert "the metrics answers" in only(site.look(look_at_ports, metrics={"port": port}), "metrics_port").found
    finally:
        stop()


def test_a_port_that_somebody_else_has_warns(site: Site, stranger: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Another program answers there: the command shows which."""
    found = site.look(look_at_ports, metrics={"port": stranger}, dashboard={"port": stranger})
    for check in ("metrics_port", "dashboard_port"):
        assert only(found, check).verdict == "warn"
        assert only(found, check).mend == f"ss -ltnp 'sport = :{stranger}'"


def test_metrics_that_are_off_are_told(site: Site) -> None:
    """Off is the default, and no fault."""
    assert "not set" in only(site.look(look_at_ports), "metrics_port").found


def test_a_dashboard_for_everybody_warns(site: Site) -> None:
    """An address that others reach shows them the results; one that this machine does not have cannot be used."""
    open_to_all, port = site.look(look_at_ports, dashboard={"host": str(IPv4Address(0)), "port": free_port()})[
        "dashboard_port"
    ]
    assert (open_to_all.verdict, port.verdict) == ("warn", "ok")
    _, elsewhere = site.look(look_at_ports, dashboard={"host": "192.0.2.1", "port": 8080})["dashboard_port"]
    assert elsewhere.verdict == "warn" and "ip -brief address" in elsewhere.mend


def test_dicom_results_need_a_folder(site: Site) -> None:
    """Not asked for: not looked at. Asked for: the folder must be there and writable."""
    assert site.look(look_at_dicom) == {}
    folder = site.home / "dicom"
    assert only(site.look(look_at_dicom, dicom_out={"folder": str(folder)}), "dicom_out").verdict == "warn"
    folder.mkdir()
    assert only(site.look(look_at_dicom, dicom_out={"folder": str(folder)}), "dicom_out").verdict == "ok"


def test_results_that_nobody_takes_are_told(site: Site) -> None:
    """A few waiting results are normal, many mean that dicom-out does not run; refused ones name their folder."""
    folder = site.home / "dicom"
    folder.mkdir()
    asked = {"dicom_out": {"folder": str(folder)}}
    assert only(site.look(look_at_dicom, **asked), "dicom_spool").verdict == "ok"
    spool = site.state / FOLDER
    (spool / ASIDE).mkdir(parents=True)
    for number in range(MANY_WAITING + 1):
        (spool / f"{number}.json").write_text("{}")
    (spool / ASIDE / "bad.json").write_text("{}")
    waiting, aside = site.look(look_at_dicom, **asked)["dicom_spool"]
    assert (waiting.verdict, aside.verdict) == ("warn", "warn")
    assert f"{MANY_WAITING + 1} results" in waiting.found and str(spool / ASIDE) in aside.mend


def test_the_archive_is_asked_for_a_connection(site: Site, stranger: int) -> None:
    """An archive that listens is ok, one that does not is a warning: objects wait in the folder."""
    folder = site.home / "dicom"
    folder.mkdir()
    for port, verdict in ((stranger, "ok"), (free_port(), "warn")):
        url = f"http://127.0.0.1:{port}/dicom-web"
        *_, stow = site.look(look_at_dicom, dicom_out={"folder": str(folder), "stow_url": url})["dicom_out"]
        assert stow.verdict == verdict
