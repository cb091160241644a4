"""`agent phantom`: writes synthetic slides in the imager's formats, with the truth beside them.

Decides which slides and names there are; pixels come from models.srh.phantom, files from agent.imager.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from agent.errors import AgentError, SettingsError
from agent.imager import LAYOUTS, Layout, PlannedFile, plan
from models.srh.phantom import CLASSES, STRIPS_BY_HEIGHT, PhantomSlide, strip

FIRST_SEED = 40_000
"""Phantom profiles are never trained on slides from this seed on (train.recipes)."""
NOTE = "synthetic phantom, not tissue"
TRUTH = "truth.json"

HELP = """Writes synthetic slides (not tissue) as the imager would leave them, and truth.json with their classes.

Patients have one or two slides of one class. The same seed gives the same bytes. Play them into a watched folder
with `python -m agent replay`.

layouts:
  strips-a     <patient>_<slide>_<n>.dcm              one file per scan strip and channel
  strips-b     <patient>/<slide>/strips/CH2/IMG...dcm one file per scan strip and channel
  strips-c     <patient>/img<slide>_<n>_<hash>.dcm    one file per scan strip and channel
  tiff-strip   <patient>/<slide>/strip_<n>.tif        one file per scan strip, both channels
  tiff-mosaic  <patient>/<slide>/mosaic.tif           one file per slide
  opensrh      studies/<patient>/<slide>/patches/     one file per patch, and meta/opensrh.json

example:
  python -m agent phantom --out phantom --slides 8 --seed 7 --layout strips-b
"""


@dataclass(frozen=True)
class NamedPhantom:
    """A synthetic slide with the names under which it is written."""

    patient: str
    slide: str
    source: PhantomSlide


def named_phantoms(count: int, seed: int, height_px: int = 2000) -> list[NamedPhantom]:
    """`count` slides of patients with one or two slides each; classes take turns in a shuffled order.

    Slide i has the phantom seed `seed` + i. Raises ValueError for a height that no phantom has.
    """
    chance = random.Random(seed)
    slides: list[NamedPhantom] = []
    labels: list[int] = []
    patient = 0
    while len(slides) < count:
        if not labels:
            labels = chance.sample(range(len(CLASSES)), len(CLASSES))
        label, patient = labels.pop(), patient + 1
        for number in range(1, min(chance.choice((1, 2)), count - len(slides)) + 1):
            source = PhantomSlide(seed + len(slides), label, height_px)
            slides.append(NamedPhantom(f"PHANTOM_{patient:03d}", str(number), source))
    return slides


def truth_of(slides: Iterable[NamedPhantom]) -> dict[str, object]:
    """The contents of truth.json."""
    return {
        "phantom": True,
        "note": NOTE,
        "classes": list(CLASSES),
        "slides": [
            {
                "patient": named.patient,
                "slide": named.slide,
                "label": named.source.label,
                "class": CLASSES[named.source.label],
                "seed": named.source.seed,
                "height_px": named.source.height_px,
            }
            for named in slides
        ],
    }


def files_of(named: NamedPhantom, layout: Layout) -> Iterable[PlannedFile]:
    """The files of one synthetic slide, in the imager's order; strips are rendered one by one."""
    strips = (strip(named.source, index) for index in range(named.source.strips))
    return plan(strips, layout, named.patient, named.slide)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent phantom`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--slides", type=int, default=4, metavar="N", help="how many slides (4)")
    parser.add_argument(
        "--seed", type=int, default=FIRST_SEED, metavar="S", help=f"seed of the first slide ({FIRST_SEED})"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="strips-a", help="files and names (strips-a)")
    parser.add_argument(
        "--height", type=int, default=2000, choices=sorted(STRIPS_BY_HEIGHT), help="rows of a scan strip (2000)"
    )


def main(args: argparse.Namespace) -> int:
    """Run `agent phantom` with parsed arguments; returns the exit code. Raises AgentError."""
    out: Path = args.out
    if args.slides < 1 or args.seed < 0:
        raise SettingsError("--slides must be at least 1 and --seed at least 0")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is there already and not an empty folder")
    slides = named_phantoms(args.slides, args.seed, args.height)
    try:
        with Progress(console=Console(stderr=True)) as bar:
            for named in bar.track(slides, description="phantom slides"):
                for file in files_of(named, args.layout):
                    path = out / file.relative
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(file.content)
        if args.layout == "opensrh":
            _write_json(out / "meta" / "opensrh.json", _opensrh_meta(out, slides))
        # Last: a folder with its truth is whole.
        _write_json(out / TRUTH, truth_of(slides))
    except OSError as error:
        raise AgentError(f"phantom slides into {out}: {error}") from error
    return 0


def _opensrh_meta(out: Path, slides: Iterable[NamedPhantom]) -> dict[str, object]:
    """OpenSRH's description of its patches; every patch of a phantom counts as tumour."""
    patients: dict[str, dict[str, Any]] = {}
    for named in slides:
        folder = out / "studies" / named.patient / named.slide / "patches"
        entry = {"patient_id": named.patient, "class": CLASSES[named.source.label], "slides": {}}
        patients.setdefault(named.patient, entry)["slides"][named.slide] = {
            "slide_id": named.slide,
            "tumor_patches": sorted(path.relative_to(out).as_posix() for path in folder.iterdir()),
            "normal_patches": [],
            "nondiagnostic_patches": [],
        }
    return dict(patients)


def _write_json(path: Path, document: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
