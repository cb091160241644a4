"""Identifiers of a made-up patient, files that bear them everywhere, and a search for them in any spelling."""

from __future__ import annotations

import base64
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pydicom
import tifffile
from numpy.typing import NDArray

from agent.imager import dicom_strip, plan, tiff_two_pages

FAMILY, GIVEN = "Müßterfrau-Ågren", "Jörg-Erika"
ASCII_NAME = "MUSTERFRAU_ERIKA"
KANJI, KANA = "山田^太郎", "やまだ^たろう"
GREEK, CYRILLIC = "Παπαδόπουλος", "Кузнецова"
PATIENT_ID, ACCESSION, SLIDE = "PID-4711-QZXW", "ACC77-QJWX-03", "LUMBAR-L4-QXZ"
OPERATOR, DEVICE, STATION = "Operatorova-Xenia", "SN-QXJ-90210", "STATION-WQXK"
BIRTH = "19370214"
REMARK = "Verdacht auf Metastase bei Frau M."
IDENTIFIERS = (
    FAMILY, GIVEN, ASCII_NAME, KANJI, KANA, GREEK, CYRILLIC, PATIENT_ID, ACCESSION, SLIDE, OPERATOR, DEVICE, STATION,
    REMARK, "Müßterfrau", "MUSTERFRAU", "4711-QZXW", "QJWX-03", f"{BIRTH[:4]}-{BIRTH[4:6]}-{BIRTH[6:]}", f"DA{BIRTH}",
)  # fmt: skip
"""What must be found nowhere. The bare birth date is no more telling than a random number of eight digits."""
CHARSETS = {
    "ISO_IR 100": f"{FAMILY}^{GIVEN}",
    "ISO_IR 192": f"{FAMILY}^{GIVEN}={KANJI}={KANA}",
    "ISO_IR 126": GREEK,
    "ISO_IR 144": CYRILLIC,
    "ISO_IR 13": ASCII_NAME,
}
"""Specific Character Set → patient's name (PS3.3, C.12.1.1.2)."""
Pixels = NDArray[np.uint16]


def strips(count: int) -> list[Pixels]:
    """Scan strips [2, 2000, 1000] that look like something: the same each time."""
    rng = np.random.default_rng(11)
    made = []
    for _ in range(count):
        strip = np.kron(rng.integers(3000, 20000, (2, 20, 10)), np.ones((1, 100, 100))).astype(np.uint16)
        made.append(strip + rng.integers(0, 500, strip.shape).astype(np.uint16))
    return made


def telling(content: bytes, charset: str, **values: object) -> bytes:
    """A DICOM file with everything that could name somebody, in this character set."""
    data = pydicom.dcmread(io.BytesIO(content))
    data.SpecificCharacterSet = charset
    data.PatientName, data.PatientBirthDate, data.PatientSex = CHARSETS[charset], BIRTH, "F"
    data.PatientID, data.AccessionNumber, data.OtherPatientIDs = PATIENT_ID, ACCESSION, PATIENT_ID
    data.OperatorsName = data.ReferringPhysicianName = OPERATOR
    data.DeviceSerialNumber, data.StationName = DEVICE, STATION
    data.ImageComments = data.StudyDescription = REMARK
    data.ContainerIdentifier = SLIDE
    for keyword, value in values.items():
        setattr(data, keyword, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def good_files() -> dict[str, bytes]:
    """Two slides that can be answered: one in telling folders, one that its tags place; and one as TIFF."""
    found: dict[str, bytes] = {}
    charsets = sorted(CHARSETS)
    for number, file in enumerate(plan(strips(2), "strips-b", f"{FAMILY}_{GIVEN}_{PATIENT_ID}", SLIDE)):
        found[str(file.relative)] = telling(file.content, charsets[number % len(charsets)])
    for number, plane in enumerate(strips(1)[0]):
        content = dicom_strip(plane, accession="a", container="c", instance_number=1, comment=f"CH{2 + number}")
        found[f"export/{ASCII_NAME}.{number}.dcm"] = telling(
            content, "ISO_IR 192", InstanceNumber=1, ImageComments=f"CH{2 + number} {REMARK}"
        )
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for plane in strips(1)[0]:
            tags = [(315, "s", 0, f"{ASCII_NAME} {OPERATOR}", True), (316, "s", 0, STATION, True)]
            description = f"{ASCII_NAME} {BIRTH} {PATIENT_ID}"
            writer.write(plane, photometric="minisblack", description=description, metadata=None, extratags=tags)
    found[f"{KANJI}/{SLIDE}/strip_0.tif"] = buffer.getvalue()
    return found


def bad_files() -> dict[bytes, bytes]:
    """Files that are refused, wait or cannot be placed, each for another reason; names as bytes."""
    small = dicom_strip(strips(1)[0][0], accession="a", container="c", instance_number=1)
    no_number = telling(small, "ISO_IR 192", NumberOfFrames=77).replace(b"IS\x02\x0077", b"IS\x02\x00MU")
    bits = b"\x28\x00\x01\x01US\x02\x00\x10\x00"
    odd_number = telling(small, "ISO_IR 192").replace(bits, bits[:6] + b"\x0b\x00MUSTERFRAU_")
    assert bits not in odd_number and b"IS\x02\x00MU" in no_number
    floats = io.BytesIO()
    tifffile.imwrite(floats, np.zeros((64, 64), np.float32), description=f"{ASCII_NAME} {PATIENT_ID}")
    text = f"{ASCII_NAME} {PATIENT_ID} {FAMILY} {ACCESSION}\n".encode() * 40
    named: dict[str, bytes] = {
        f"notes_{ASCII_NAME}.txt": text,
        f"{ASCII_NAME}-{PATIENT_ID}.dcm": text,
        f"{FAMILY}.tif": b"II*\0" + text,
        f"float-{OPERATOR}.tif": floats.getvalue(),
        f"{ACCESSION}.tif": tiff_two_pages(np.full((2, 64, 64), 900, np.uint16)),
        f"{OPERATOR}_{SLIDE}_5.dcm": telling(small, "ISO_IR 100"),
        f"export/number-{ASCII_NAME}.dcm": no_number,
        f"export/odd-{ASCII_NAME}.dcm": odd_number,
        f"export/syntax-{ASCII_NAME}.dcm": _with_syntax(small, ASCII_NAME),
        f"{ASCII_NAME}/{SLIDE}/strips/CH2/IMG00006.dcm": telling(small, "ISO_IR 100")[:600_000],
        f"{ASCII_NAME}/{SLIDE}-2/strips/CH2/IMG00006.dcm": text,
        f"{ASCII_NAME}/{SLIDE}-3/mosaic.tif": floats.getvalue(),
    }
    found = {os.fsencode(name): content for name, content in named.items()}
    # A name that is no UTF-8.
    found[f"{FAMILY}.dcm".encode("latin-1")] = telling(small, "ISO_IR 100")
    return found


def _with_syntax(content: bytes, name: str) -> bytes:
    """The file under a transfer syntax of this name."""
    uid = b"1.2.840.10008.1.2.1\0"
    assert content.count(uid) == 1
    return content.replace(uid, name.encode().ljust(len(uid))[: len(uid)])


def spellings(text: str) -> set[bytes]:
    """How an identifier may stand in a file: cases, normal forms, encodings, escapes."""
    forms = {text, text.upper(), text.lower(), text.title(), text.casefold()}
    forms |= {unicodedata.normalize(kind, form) for form in tuple(forms) for kind in ("NFC", "NFD")}
    forms |= {form.replace("^", between) for form in tuple(forms) for between in (" ", ", ")}
    return {spelled for form in forms for spelled in _encoded(form)}


def _encoded(text: str) -> Iterator[bytes]:
    encodings = ("utf-8", "utf-16-le", "utf-16-be", "latin-1", "iso8859-5", "iso8859-7", "shift_jis", "iso2022_jp")
    raws = {raw for name in encodings if (raw := text.encode(name, "ignore")) and len(raw) >= 4 * len(text) // 5}
    raws = {raw for raw in raws if len(raw) >= 4}
    yield from raws
    yield text.encode("unicode_escape")
    yield json.dumps(text)[1:-1].encode()
    yield json.dumps(text.encode().decode("ascii", "surrogateescape"))[1:-1].encode()
    yield quote(text).encode()
    yield quote(text).lower().encode()
    yield text.encode("ascii", "xmlcharrefreplace")
    for raw in raws:
        yield repr(raw)[2:-1].encode()
        yield raw.hex().encode()
        yield raw.hex().upper().encode()
        if len(raw) >= 6:
            yield from _base64(raw)


def _base64(raw: bytes) -> Iterator[bytes]:
    """The characters that depend on `raw` alone, wherever in a longer text it stands."""
    for shift, skip in ((0, 0), (1, 2), (2, 3)):
        coded = base64.b64encode(b"\0" * shift + raw)[: (shift + len(raw)) * 8 // 6]
        yield coded[skip:]
        yield coded[skip:].translate(bytes.maketrans(b"+/", b"-_"))


def found_in(places: Mapping[str, bytes]) -> list[str]:
    """Where an identifier stands: place and identifier. The search does not mind the case of letters."""
    hay = {place: (content, content.lower()) for place, content in places.items()}
    seen = np.zeros(1 << 24, bool)
    for _, lower in hay.values():
        seen[_triples(lower)] = True
    found = []
    for identifier in IDENTIFIERS:
        # Two thousand spellings in tens of megabytes: most have three bytes in a row that stand nowhere.
        for needle in (needle for needle in spellings(identifier) if seen[_triples(needle.lower())].all()):
            low = needle.lower()
            found += [
                f"{place}: {identifier} as {needle!r}"
                for place, (exact, lower) in hay.items()
                if needle in exact or (low in lower and len(low) > 6)
            ]
    return sorted(set(found))


def _triples(content: bytes) -> NDArray[np.int32]:
    """Each three bytes in a row, as one number."""
    values = np.frombuffer(content, np.uint8).astype(np.int32)
    return values[:-2] << 16 | values[1:-1] << 8 | values[2:]


def files_below(folder: Path) -> dict[str, bytes]:
    """Names and contents of everything below a folder, whatever it is."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path)] = os.fsencode(path.relative_to(folder)) + b"\n" + path.read_bytes()
        else:
            found[str(path)] = os.fsencode(path.relative_to(folder))
    return found
