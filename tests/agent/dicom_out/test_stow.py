"""STOW-RS against a real HTTP server: what is sent, and what each answer means."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from agent.dicom_out.stow import Refused, StowClient, Unreachable
from agent.errors import SettingsError
from tests.agent.dicom_out.pacs import Answer, Pacs, failed
from tests.brokers import free_port, need

UID = "2.25.1"


@pytest.fixture(scope="module")
def content() -> bytes:
    """A DICOM file whose bytes hold line ends and dashes, as boundaries do."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, UID
    dataset.EncapsulatedDocument = b"\r\n--\r\n\r\n--boundary--\r\n" * 100
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_an_object_arrives_bit_for_bit(content: bytes) -> None:
    """One POST to /studies, multipart/related, one part, and the object is the same."""
    with Pacs() as pacs:
        StowClient(f"{pacs.url}/").store(content)
    assert pacs.objects[UID].EncapsulatedDocument == b"\r\n--\r\n\r\n--boundary--\r\n" * 100
    ((path, headers),) = pacs.requests
    assert path == "/dicom-web/studies"
    assert headers["accept"] == "application/dicom+json"
    assert "authorization" not in headers


STORED: list[Answer] = [
    (200, None),
    (202, None),
    (202, {"00081199": {}}),
    (409, failed(0x0111)),
    (200, failed(0x0111)),
]
REFUSED: list[Answer] = [
    (400, None),
    (409, None),
    (409, failed(0x0122)),
    (413, None),
    (415, None),
    (202, failed(0xC000)),
]
LATER: list[Answer] = [
    *((status, None) for status in (301, 302, 307, 401, 403, 404, 405, 407, 408, 429, 500, 502, 503, 504)),
    (409, failed(0xA700)),
]


@pytest.mark.parametrize("answer", STORED, ids=str)
def test_these_answers_mean_stored(answer: Answer, content: bytes) -> None:
    """200, warnings, and an object that is there already."""
    with Pacs(answer) as pacs:
        StowClient(pacs.url).store(content)
    assert len(pacs.requests) == 1


@pytest.mark.parametrize("answer", REFUSED, ids=str)
def test_these_answers_refuse_the_object(answer: Answer, content: bytes) -> None:
    """What is wrong with the object itself would be wrong the next time too."""
    with Pacs(answer) as pacs, pytest.raises(Refused):
        StowClient(pacs.url).store(content)


@pytest.mark.parametrize("answer", LATER, ids=str)
def test_these_answers_ask_for_another_try(answer: Answer, content: bytes) -> None:
    """Servers in trouble, logins, wrong addresses and redirections never cost an object."""
    with Pacs(answer) as pacs, pytest.raises(Unreachable):
        StowClient(pacs.url).store(content)


def test_an_answer_that_is_no_json_counts_by_its_status(content: bytes) -> None:
    """Bodies of any form, lists and numbers among them, do no harm."""
    documents: list[Any] = [[], 7, "text", {"00081198": 3}, {"00081198": {"Value": [{}]}}]
    for document in documents:
        with Pacs((200, document)) as pacs:
            StowClient(pacs.url).store(content)
        assert len(pacs.requests) == 1


def test_nobody_there_means_later(content: bytes) -> None:
    """A refused connection is Unreachable."""
    with pytest.raises(Unreachable, match="refused"):
        StowClient(f"http://127.0.0.1:{free_port()}/dicom-web").store(content)


def test_the_token_is_read_anew_for_each_object(content: bytes, tmp_path: Path) -> None:
    """A renewed token needs no restart; a missing file means later."""
    token = tmp_path / "token"
    with Pacs() as pacs:
        client = StowClient(pacs.url, token_file=token)
        with pytest.raises(Unreachable, match="token"):
            client.store(content)
        for word in ("first", "second"):
            token.write_text(f"{word}\n")
            client.store(content)
    assert [headers["authorization"] for _, headers in pacs.requests] == ["Bearer first", "Bearer second"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    pair = folder / "cert.pem", folder / "key.pem"
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=pacs",
    ]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(pair[0]), "-keyout", str(pair[1])]
    subprocess.run([need("openssl", "openssl"), *words], check=True, capture_output=True)
    return pair


def test_tls_with_the_sites_authority(certificate: tuple[Path, Path], content: bytes) -> None:
    """The CA file is what makes the service trusted; without it nothing is sent."""
    with Pacs(tls=certificate) as pacs:
        StowClient(pacs.url, ca_file=certificate[0]).store(content)
        assert UID in pacs.objects
        with pytest.raises(Unreachable, match="stow_ca_file"):
            StowClient(pacs.url).store(content)
    assert len(pacs.requests) == 1


def test_a_ca_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    """Settings are checked before anything waits."""
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(SettingsError, match="stow_ca_file"):
            StowClient("https://pacs.example/dicom-web", ca_file=tmp_path / name)
