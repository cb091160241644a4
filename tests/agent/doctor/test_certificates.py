"""Promises of the certificate reader: the times that openssl reads, and a clear no to everything else."""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.doctor.broker import judge_end
from agent.doctor.certificates import ends_of, validity
from tests.agent.doctor.site import make_certificate
from tests.brokers import need


def openssl_end(path: Path) -> datetime:
    """What openssl reads."""
    words = [need("openssl", "openssl"), "x509", "-noout", "-enddate", "-in", str(path)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return datetime.strptime(said, "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)


@pytest.mark.parametrize("days", [-1, 1, 365, 20_000])
def test_the_end_is_the_one_that_openssl_reads(tmp_path: Path, days: int) -> None:
    """Near ends are UTCTime, those behind 2049 are GeneralizedTime; both agree with openssl."""
    make_certificate(tmp_path, "some", days=days)
    path = tmp_path / "some.crt"
    assert ends_of(path.read_text()) == [openssl_end(path)]
    begin, end = validity(ssl.PEM_cert_to_DER_cert(path.read_text()))
    assert end - begin == timedelta(days=days)


def test_a_file_of_several_has_several_ends(tmp_path: Path) -> None:
    """A chain or a bundle of authorities: each certificate's end, whatever text stands between them."""
    for name, days in (("a", 1), ("b", 400)):
        make_certificate(tmp_path, name, days=days)
    both = f"a first\n{(tmp_path / 'a.crt').read_text()}\nthen b\n{(tmp_path / 'b.crt').read_text()}"
    assert ends_of(both) == [openssl_end(tmp_path / "a.crt"), openssl_end(tmp_path / "b.crt")]


@pytest.mark.parametrize("text", ["", "nothing", "-----BEGIN PRIVATE KEY-----\nabcd\n-----END PRIVATE KEY-----"])
def test_a_file_without_a_certificate_is_refused(text: str) -> None:
    """A key, or nothing at all, is not taken for a certificate."""
    with pytest.raises(ValueError, match="no certificate"):
        ends_of(text)


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(content: bytes) -> None:
    """Whatever the bytes are, the answer is ValueError."""
    with pytest.raises(ValueError, match="not an X"):
        validity(content)


def test_a_certificate_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """At every length short of its own."""
    make_certificate(tmp_path, "some")
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "some.crt").read_text())
    for length in range(len(der)):
        with pytest.raises(ValueError, match="not an X"):
            validity(der[:length])


@pytest.mark.parametrize(
    ("left", "verdict", "told"),
    [
        (timedelta(days=90), "ok", "valid until"),
        (timedelta(days=29), "warn", "ends in 29 days"),
        (timedelta(hours=1), "warn", "ends in 0 days"),
        (timedelta(0), "fail", "expired"),
        (timedelta(days=-5), "fail", "expired on 2026-01-01"),
    ],
)
def test_an_end_is_judged_by_what_is_left(left: timedelta, verdict: str, told: str) -> None:
    """Less than thirty days is a warning, none left is a failure."""
    now = datetime(2026, 1, 6, tzinfo=UTC)
    finding = judge_end("broker_certificate", now + left, now, "the broker's")
    assert finding.verdict == verdict
    assert told in finding.found
