"""Sending one DICOM object to a DICOMweb service (STOW-RS, PS3.18 section 10.5), with the standard library alone.

Decides whether an answer means stored, refused, or try again. Tells nobody what an answer's body says in words: it
may quote the object.
"""

from __future__ import annotations

import http.client
import json
import ssl
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.errors import AgentError, SettingsError

TIMEOUT_S = 60.0
MOST_ANSWER_BYTES = 1 << 20
DUPLICATE = 0x0111
"""Failure Reason «duplicate SOP instance»: it is there already, sent before something interrupted us."""
OUT_OF_RESOURCES = range(0xA700, 0xA800)
NOT_THE_OBJECTS_FAULT = {
    401: "the service does not know the token: renew the file of dicom_out.stow_token_file",
    403: "the token does not allow storing: ask who runs the service, or renew dicom_out.stow_token_file",
    404: "there is no STOW-RS service: check dicom_out.stow_url, which ends before /studies",
    405: "nothing can be stored there: check dicom_out.stow_url, which ends before /studies",
    407: "a proxy asks for a login",
    408: "the service waited too long",
    423: "the service is locked",
    425: "the service is not ready",
    429: "the service asks for a pause",
}
"""Answers that speak of settings or of the moment: the object is tried again. Other 4xx refuse the object."""


class Unreachable(AgentError):
    """The service cannot take anything now; try again later."""


class Refused(AgentError):
    """The service does not want this object; the same object again would not help."""


class StowClient:
    """One service."""

    def __init__(
        self, url: str, ca_file: Path | None = None, token_file: Path | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        """`url` ends before `/studies`. Raises SettingsError for a CA file that cannot be used."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") + "/studies"
        self._token_file = token_file
        self._timeout_s = timeout_s
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
                self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
            except OSError as error:
                raise SettingsError(f"dicom_out.stow_ca_file {ca_file}: {error.strerror or error}") from error

    def store(self, content: bytes) -> None:
        """Store one DICOM file; returns when the service has it. Raises Unreachable or Refused."""
        boundary = uuid.uuid4().hex
        body = b"".join(
            (
                f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(),
                content,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
            **self._login(),
        }
        status, answer = self._post(body, headers)
        _judge(status, _failures(answer))

    def _login(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            # Read each time: tokens are renewed while we run.
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unreachable(f"dicom_out.stow_token_file {self._token_file} cannot be read") from error
        return {"Authorization": f"Bearer {token}"}

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        # Not urllib: it would follow a redirection with a GET, and take its 200 for ours.
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=self._tls
            )
        try:
            connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            return response.status, response.read(MOST_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._host}: {_said(error)}") from error
        finally:
            connection.close()


def _said(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}): check dicom_out.stow_ca_file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _failures(answer: bytes) -> list[int]:
    """The Failure Reasons of the answer's Failed SOP Sequence; empty when it has none or is no DICOM JSON."""
    try:
        document: dict[str, Any] = json.loads(answer)
        items = document.get("00081198", {}).get("Value", [])
        return [int(item["00081197"]["Value"][0]) for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return []


def _judge(status: int, failures: list[int]) -> None:
    if status in (200, 202, 409) and failures:
        _judge_failures(failures)
    elif status in (200, 202):
        return  # 202 without a failure: stored with a warning, e.g. that the service changed something
    elif status in NOT_THE_OBJECTS_FAULT:
        raise Unreachable(f"HTTP {status}: {NOT_THE_OBJECTS_FAULT[status]}")
    elif 400 <= status < 500:
        raise Refused(f"HTTP {status}")
    else:
        raise Unreachable(f"HTTP {status}")


def _judge_failures(failures: list[int]) -> None:
    serious = [failure for failure in failures if failure != DUPLICATE]
    said = ", ".join(f"{failure:04X}" for failure in serious)
    if any(failure in OUT_OF_RESOURCES for failure in serious):
        raise Unreachable(f"out of resources (failure reason {said})")
    if serious:
        raise Refused(f"failure reason {said} (DICOM PS3.4, table B.2-1)")
