"""What else leads out: ports of metrics and dashboard, and where DICOM results go."""

from __future__ import annotations

import errno
import http.client
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from agent.doctor.finding import Finding, is_there
from agent.settings import Settings
from agent.spool import ASIDE, FOLDER

TIMEOUT_S = 2.0
LONGEST_ANSWER_BYTES = 1 << 16
MANY_WAITING = 20


def look_at_ports(settings: Settings) -> Iterator[Finding]:
    """The metrics endpoint and the dashboard: served by us, free, or taken by something else."""
    port = settings.metrics.port
    if port is None:
        yield Finding("metrics_port", "ok", "metrics.port is not set: nothing is served")
    else:
        yield _port("metrics", "127.0.0.1", port, "/metrics", "srh_uptime_seconds")
    page = settings.dashboard
    if not _is_local(page.host):
        why = "everyone who reaches this address may see the results"
        mend = "set dashboard.host to 127.0.0.1, or let a reverse proxy ask for a login"
        yield Finding("dashboard_port", "warn", f"the dashboard listens on {page.host}", why, mend)
    if page.port:
        yield _port("dashboard", page.host, page.port, "/healthz", '"broker"')


def _port(name: str, host: str, port: int, path: str, sign: str) -> Finding:
    check, where = f"{name}_port", f"{host}:{port}"
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    try:
        socket.create_connection((asked, port), timeout=TIMEOUT_S).close()
    except OSError:
        return _free(check, name, host, port)
    if sign in _get(asked, port, path):
        return Finding(check, "ok", f"{where}: the {name} answers")
    why = f"the {name} cannot be served there"
    return Finding(check, "warn", f"{where} is taken by another program", why, f"ss -ltnp 'sport = :{port}'")


def _get(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read(LONGEST_ANSWER_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _free(check: str, name: str, host: str, port: int) -> Finding:
    """Whether we could listen there, tried by listening for a moment."""
    where = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        mend = {
            errno.EADDRNOTAVAIL: f"set {name}.host to an address of this machine: ip -brief address",
            errno.EACCES: f"set {name}.port to one above 1023",
        }.get(error.errno or 0, f"ss -ltnp 'sport = :{port}'")
        why = f"the {name} cannot be served there"
        return Finding(check, "warn", f"{where}: {error.strerror or error}", why, mend)
    return Finding(check, "ok", f"{where} is free")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def look_at_dicom(settings: Settings) -> Iterator[Finding]:
    """The folder of DICOM results, and the service that takes them."""
    folder, url = settings.dicom_out.folder, settings.dicom_out.stow_url
    why = "DICOM results are not written"
    if folder is None:
        return
    if not is_there(folder):
        mend = f"install -d -m 700 -o spinextract -g spinextract {folder}"
        yield Finding("dicom_out", "warn", f"{folder} is not there yet", why, mend)
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("dicom_out", "fail", f"{folder} cannot be written", why, f"chown spinextract {folder}")
    else:
        yield Finding("dicom_out", "ok", str(folder))
    yield from _spool(settings.state_dir / FOLDER)
    if url is not None:
        yield _stow(url)


def _spool(spool: Path) -> Iterator[Finding]:
    """Finals that `dicom-out` has not taken yet, and those that it could not use."""
    try:
        waiting, aside = _results_in(spool), _results_in(spool / ASIDE)
    except OSError as error:
        mend = f"run doctor as the service's user; if it is: chown -R spinextract: {spool}"
        yield Finding("dicom_spool", "fail", f"{spool}: {error.strerror}", "results cannot wait there", mend)
        return
    if waiting > MANY_WAITING:
        mend = "systemctl status spinextract-dicom-out; journalctl -u spinextract-dicom-out"
        yield Finding("dicom_spool", "warn", f"{waiting} results wait in {spool}", "dicom-out may not run", mend)
    else:
        yield Finding("dicom_spool", "ok", f"{waiting} results wait")
    if aside:
        why = "these results have become no DICOM objects"
        mend = f"read the reasons in {spool / ASIDE}, then move the results back to {spool} or delete them"
        yield Finding("dicom_spool", "warn", f"{aside} results were set aside", why, mend)


def _results_in(folder: Path) -> int:
    try:
        return sum(path.suffix == ".json" for path in folder.iterdir())
    except FileNotFoundError:
        return 0


def _stow(url: str) -> Finding:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError as error:
        why = "objects are written to the folder and sent later"
        mend = "ask whoever runs the archive, or correct dicom_out.stow_url"
        return Finding("dicom_out", "warn", f"{host}:{port}: {error.strerror or error}", why, mend)
    if parts.scheme != "https" and not _is_local(host):
        why = "everyone on the way can read the results"
        return Finding("dicom_out", "warn", f"{url} is not encrypted", why, "use https in dicom_out.stow_url")
    return Finding("dicom_out", "ok", f"{host}:{port} accepts connections")
