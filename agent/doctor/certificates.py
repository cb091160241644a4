"""How long an X.509 certificate is valid (RFC 5280, 4.1): just enough DER for that. Pure: bytes in, times out."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

_SEQUENCE, _EXPLICIT_VERSION = 0x30, 0xA0
_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""UTCTime and GeneralizedTime, as RFC 5280 allows them; years of two digits turn at 50 there, at 69 in strptime."""
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)


def ends_of(pem: str) -> list[datetime]:
    """When each certificate of a PEM file ends; raises ValueError for what is not one."""
    blocks = _PEM.findall(pem)
    if not blocks:
        raise ValueError("no certificate in PEM form is in it")
    return [validity(ssl.PEM_cert_to_DER_cert(block))[1] for block in blocks]


def validity(der: bytes) -> tuple[datetime, datetime]:
    """notBefore and notAfter of a certificate; raises ValueError when it is not one."""
    try:
        (_, certificate), *_ = _parts(der)
        (_, signed), *_ = _parts(certificate)
        fields = [part for part in _parts(signed) if part[0] != _EXPLICIT_VERSION]
        tag, times = fields[3]  # behind serial number, signature algorithm and issuer
        if tag != _SEQUENCE:
            raise ValueError("no validity where it should be")
        begin, end = (_time(*part) for part in _parts(times))
    except (IndexError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"not an X.509 certificate: {error}") from error
    return begin, end


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element that stands in `der`."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        if at + length > len(der):
            raise ValueError("cut off")
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _time(tag: int, content: bytes) -> datetime:
    time = datetime.strptime(content.decode("ascii"), _TIMES[tag]).replace(tzinfo=UTC)
    return time.replace(year=time.year + 100) if tag == 0x17 and time.year < 1950 else time
