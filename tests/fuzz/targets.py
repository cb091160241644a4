"""What is fuzzed: for each target, how a case is made from a number, and what is promised about every case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from agent.formats import Parser, Window
from agent.formats.detect import open_parser
from agent.formats.dicom import DicomParser
from agent.formats.tiff import TiffParser
from tests.fuzz import dicom_mutation, documents, names, parsing, seeds, tiff_mutation
from tests.fuzz.mutation import Mutator, mutated
from tests.fuzz.parsing import LIMITS, PLAN_BYTES
from tests.fuzz.target import Target

Seeds = Callable[[], Sequence[bytes]]


def _file(rng: Random, files: Seeds, knowing: Sequence[Mutator]) -> bytes:
    """A plan and a file."""
    return rng.randbytes(PLAN_BYTES) + mutated(rng, files(), knowing)


def _tiff(window: Window, planes: int | None) -> Parser:
    return TiffParser(LIMITS, planes)


def _dicom(window: Window, planes: int | None) -> Parser:
    return DicomParser(LIMITS, planes)


def _either(window: Window, planes: int | None) -> Parser | None:
    return open_parser(window, LIMITS, planes)


def _every_file() -> Sequence[bytes]:
    return (*seeds.tiffs(), *seeds.dicoms(), b"GIF89a" + bytes(range(200)), b"\x89PNG\r\n\x1a\n", b"{}", bytes(300))


TARGETS = {
    target.name: target
    for target in (
        Target(
            "tiff",
            "any bytes are pixels within their header's shape, a FormatError or not enough, in pieces as at once",
            partial(_file, files=seeds.tiffs, knowing=tiff_mutation.KNOWING),
            partial(parsing.check, _tiff),
            0.32,
        ),
        Target(
            "dicom",
            "the same, with nested and undefined-length sequences, wrong lengths, character sets and coded frames",
            partial(_file, files=seeds.dicoms, knowing=dicom_mutation.KNOWING),
            partial(parsing.check, _dicom),
            0.32,
        ),
        Target(
            "detect",
            "the same for files of either kind or none, whose parser the first bytes choose",
            partial(_file, files=_every_file, knowing=()),
            partial(parsing.check, _either),
            0.1,
        ),
        Target(
            "layouts",
            "any path and tags are placed under pseudonyms, or not at all, quickly",
            names.make_path,
            names.check_path,
            0.06,
        ),
        Target(
            "patterns",
            "an own naming pattern is refused, or answers for any name quickly",
            names.make_pattern,
            names.check_pattern,
            0.04,
        ),
        Target(
            "settings",
            "any settings file is read or is a SettingsError of some lines",
            documents.make_settings,
            documents.check_settings,
            0.05,
        ),
        Target(
            "commands",
            "any body of a command is one, or one sentence that repeats nothing of it",
            documents.make_command,
            documents.check_command,
            0.03,
        ),
        Target(
            "profile",
            "any profile folder is loaded or a ProfileError; nothing outside it is opened",
            documents.make_profile,
            documents.check_profile,
            0.05,
        ),
        Target(
            "engine",
            "any engine record is verified or an EngineError; nothing outside its folder is opened",
            documents.make_engine,
            documents.check_engine,
            0.03,
        ),
    )
}
"""By name."""
