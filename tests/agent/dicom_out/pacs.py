"""A small DICOMweb store on 127.0.0.1: takes STOW-RS apart as the standard says, and answers as told."""

from __future__ import annotations

import email.parser
import email.policy
import json
import ssl
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pydicom
from pydicom.dataset import FileDataset

Answer = tuple[int, dict[str, Any] | None]


class Pacs:
    """Keeps the objects that it takes by SOP Instance UID; `answers` are given first, each to one request."""

    def __init__(self, *answers: Answer, tls: tuple[Path, Path] | None = None) -> None:
        """`tls` is certificate and key (PEM)."""
        self.answers = deque(answers)
        self.objects: dict[str, FileDataset] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and headers of every request."""
        self.duplicates = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="pacs")

    @property
    def url(self) -> str:
        """What dicom_out.stow_url would say."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}/dicom-web"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request; a part that is no DICOM file fails loudly."""
        self.requests.append((path, headers))
        if self.answers:
            return self.answers.popleft()
        assert path == "/dicom-web/studies"
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
            f"Content-Type: {headers['content-type']}\r\n\r\n".encode() + body
        )
        assert message.get_content_type() == "multipart/related"
        assert message["content-type"].params["type"] == "application/dicom"
        for part in message.iter_parts():
            assert part.get_content_type() == "application/dicom"
            dataset = pydicom.dcmread(BytesIO(_exact(body, headers["content-type"])))
            self.duplicates += dataset.SOPInstanceUID in self.objects
            self.objects[dataset.SOPInstanceUID] = dataset
        return 200, {"00081199": {"vr": "SQ", "Value": [{}]}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pacs = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, document = pacs.take(self.path, headers, body)
                said = b"" if document is None else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def failed(*reasons: int) -> dict[str, Any]:
    """An answer's Failed SOP Sequence (PS3.18, table 10.5.3-1)."""
    return {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}} for reason in reasons]}}


def _exact(body: bytes, content_type: str) -> bytes:
    """The bytes of the only part: the mail parser may touch line ends of binary ones."""
    boundary = content_type.rsplit("boundary=", 1)[1].strip('"').encode()
    pieces = body.split(b"--" + boundary)
    assert len(pieces) == 3
    assert pieces[0] == b"" and pieces[2] == b"--\r\n"
    _, content = pieces[1].split(b"\r\n\r\n", 1)
    return content.removesuffix(b"\r\n")
