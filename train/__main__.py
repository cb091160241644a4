"""`python -m train`: commands, exit codes (0 done, 1 failed, 2 bad arguments). Decides nothing itself."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.profile import ProfileInvalid
from models.srh.phantom import CLASSES, STRIPS_BY_HEIGHT
from train.evaluate import eager, evaluate_slides, read_profile
from train.evaluation_table import record_of, show, summary_of
from train.finetune import TrainingDiverged
from train.foreign import GROSS, SUBTLE
from train.phantom_profile import build
from train.recipes import EVALUATION_FIRST_SEED, RecipeInvalid, load_recipe

_RECIPE = Path("configs/train/phantom.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except RecipeInvalid as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ProfileInvalid, TrainingDiverged, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train", description="Makes and evaluates weights.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    make = commands.add_parser(
        "phantom-profile",
        help="train, calibrate and export the phantom's profile (a few CPU minutes)",
        epilog="example: python -m train phantom-profile --out /tmp/quick optimisation.batch=16 data.train.count=40",
    )
    make.add_argument("--out", type=Path, required=True, help="folder of the profile, made if missing")
    make.add_argument("--recipe", type=Path, default=_RECIPE, help="default: %(default)s")
    make.add_argument("--json", action="store_true", help="print the figures as JSON")
    make.add_argument("overrides", nargs="*", metavar="key=value", help="replace a field of the recipe")
    make.set_defaults(run=_phantom_profile)

    judge = commands.add_parser(
        "evaluate-phantom",
        help="judge unseen synthetic slides with a profile",
        epilog="example: python -m train evaluate-phantom --profile configs/profiles/phantom --slides 40",
    )
    judge.add_argument("--profile", type=Path, required=True, help="folder of the profile")
    judge.add_argument("--slides", type=_positive, default=40, help="default: %(default)s")
    judge.add_argument("--first-seed", type=_positive, default=EVALUATION_FIRST_SEED, help="default: %(default)s")
    judge.add_argument(
        "--height",
        type=int,
        choices=STRIPS_BY_HEIGHT,
        default=2000,
        help="rows of a scan strip (default: %(default)s)",
    )
    judge.add_argument(
        "--foreign",
        type=int,
        default=0,
        metavar="N",
        help="also judge N of these slides as foreign pictures of every kind (train/foreign.py): are they noticed?",
    )
    judge.add_argument("--at-least", type=int, default=0, help="exit 1 when fewer slides are correct")
    judge.add_argument("--json", action="store_true", help="print the results as JSON")
    judge.set_defaults(run=_evaluate_phantom)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _phantom_profile(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("training", total=None)

        def report(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, description=f"training, loss {loss:.3f}")

        figures = build(recipe, arguments.out, bar.console.print, report)
    if arguments.json:
        print(json.dumps(asdict(figures)))
    else:
        print(f"wrote {arguments.out}")
        print(
            f"test: {figures.slides_correct} of {figures.slides} slides correct, patches {figures.patch_accuracy:.1%}"
        )
        print(f"expected calibration error {figures.ece_before:.3f} before, {figures.ece_after:.3f} after")
    return 0


def _evaluate_phantom(arguments: argparse.Namespace) -> int:
    loaded = read_profile(arguments.profile)
    if loaded.spec.classes != CLASSES:
        raise ValueError(f"{arguments.profile}: its classes are not the phantom's ({', '.join(CLASSES)})")
    judge = partial(evaluate_slides, loaded.spec, eager(loaded.spec, loaded.weights), loaded.reference)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.slides)
    results, foreign = [], {}
    with Console(stderr=True).status("judging slides") as status:
        for result in judge(seeds, arguments.height):
            results.append(result)
            status.update(f"judging slides: {len(results)} of {len(seeds)}")
        for name, kind in {**GROSS, **SUBTLE}.items() if arguments.foreign else ():
            status.update(f"judging foreign pictures: {name}")
            foreign[name] = list(judge(seeds[: arguments.foreign], arguments.height, kind))
    correct = sum(result.correct for result in results)
    if arguments.json:
        document = {"correct": correct, "of": len(results), "slides": [record_of(r) for r in results]}
        document["foreign"] = {name: summary_of(judged) for name, judged in foreign.items()}
        print(json.dumps(document))
    else:
        show(loaded.spec, results, foreign)
        print(f"{correct} of {len(results)} correct")
    return 0 if correct >= arguments.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
