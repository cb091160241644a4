"""Arguments of `python -m agent.build_trt`, and the help that teaches them."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.engine import BACKENDS
from agent.engine.backend import PRECISIONS
from agent.engine.build import PARITY_PATCHES, PHANTOM_SLIDES

_DESCRIPTION = """\
Compile a profile's network for this machine and prove that the answers stay the same.

The new engine is built beside the old one and must pass every gate. Only then does it replace the old one, in one
step; the daemon picks it up at its next start. If a gate fails, the old one stays, and the gate is named.

  golden pair    the profile's own inputs and outputs
  census         the layers really run in the precision that was asked for
  independence   the same bits whatever else is in the batch
  reload         the same bits from a fresh process, from batches that are full, half full or hold one patch
  speed          not slower than eager fp32 on the same device, measured in turns
  slides         the posteriors of whole synthetic slides
  parity         single patches: phantom, golden and, half of them, blends of two classes, where answers are unsure

Limits are settings (engine.limits), strict by default: max |Δp| 1e-4 in fp32, 0.02 in bf16 and fp16, 0.05 in int8."""
_EPILOG = """\
examples:
  python -m agent.build_trt --profile configs/profiles/phantom
  python -m agent.build_trt --profile DIR --backend openvino --precision fp32
  python -m agent.build_trt --profile DIR --precision int8 --calibrate-on SLIDES
  python -m agent.build_trt --profile DIR --device cuda --batch 32
  python -m agent.build_trt --config agent.yaml      profile, threads, limits and public key from the settings
  python -m agent.build_trt report --profile DIR     what is built, what its gates measured, whether it may be used
  python -m agent.build_trt check --profile DIR      load the newest engine as the daemon would
  python -m agent.build_trt schema                   JSON Schema of engine.json
signed engines (engine.public_key makes the agent refuse all others):
  openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out engines.pub
  python -m agent.build_trt --config agent.yaml --sign-with key.pem
exit codes: 0 done, 1 failed (the gate is named) or interrupted, 2 bad arguments"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m agent.build_trt",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("action", nargs="?", choices=("build", "report", "check", "schema"), default="build")
    add("--profile", type=Path, metavar="DIR", help="folder with profile.yaml (default: that of --config)")
    add("--config", type=Path, metavar="FILE", help="the agent's settings: `profile` and `engine` are taken from it")
    add(
        "--backend",
        choices=("auto", *BACKENDS),
        default="auto",
        help="auto: openvino on the cpu; tensorrt, else inductor, on a card",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        help="default: the best that the device has and that passes every gate, fp32 at last; int8 must be asked for",
    )
    add("--device", metavar="D", help="cpu, cuda or cuda:N (default: cpu where the backend has it)")
    add("--batch", type=_positive, metavar="N", help="the one batch shape (default: best measured)")
    add("--threads", type=_natural, metavar="N", help="0: every core (default: that of --config, else 0)")
    add("--patches", type=_positive, default=PARITY_PATCHES, metavar="N", help="parity inputs (%(default)s)")
    add("--slides", type=_positive, default=PHANTOM_SLIDES, metavar="N", help="whole phantom slides (%(default)s)")
    add(
        "--calibrate-on",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="int8: finished slides to measure ranges on, read as `agent score` reads them; best are slides of the"
        " patients' kind (default: phantom slides for a phantom profile, else the golden inputs)",
    )
    add("--sign-with", type=Path, metavar="KEY.pem", help="sign the engine with this ed25519 private key")
    add("--engine", type=Path, metavar="DIR", help="check: this engine folder")
    add("--json", action="store_true", help="print the result as JSON, no progress")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value
