"""Policies that matter, as tests: the command surface, sizes, names, imports, notices, and that tests say why."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from agent.__main__ import COMMANDS
from agent.__main__ import main as agent_main
from agent.build_trt import main as build_main
from agent.profile_folder import load_profile_folder
from models.contract import Modality
from models.profile import LoadedProfile
from models.registry import MODALITIES
from tests.logs import logging_undone

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agent", "models", "train")
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "misc", "core", "base", "manager", "handler"}
LONGEST_FILE = 250
LONGEST_FUNCTION = 60
MEDIAN_FUNCTION = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[Path]:
    """Every Python file of these folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """How a file is called in messages."""
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[Function]:
    """Every function of a file, methods and inner functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def length(function: Function) -> int:
    """Lines from `def` to the last one, decorators left out."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


# The command surface: other people's scripts call it

SURFACE = {
    "run": ({"--config"}, ""),
    "demo": ({"--headless"}, ""),
    "replay": ({"--rate", "--as", "--chunk-kib"}, "dicom-strips tiff-mosaic patches"),
    "score": ({"--profile", "--out", "--backend", "--json"}, ""),
    "phantom": ({"--out", "--slides", "--seed", "--layout"}, "strips-a strips-b strips-c tiff-mosaic opensrh"),
    "doctor": ({"--config", "--json"}, ""),
    "dashboard": ({"--config"}, ""),
    "dicom-out": ({"--config", "--once"}, ""),
    "quarantine": ({"--config", "--json", "--release"}, ""),
    "verify": (
        {"--config", "--log", "--event", "--slide", "--patient", "--head", "--partial", "--folder", "--json"},
        "",
    ),
    "settings": ({"--example", "--schema", "--check"}, ""),
    "contract": ({"--out"}, ""),
}
"""Commands of `python -m agent` → options that must stay, and choices among them."""
BUILD_OPTIONS = {"--profile", "--backend", "--precision", "--device"}
BUILD_CHOICES = "tensorrt inductor openvino auto fp32 fp16 bf16 int8"


def usage(main: object, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The usage that --help prints: options and their choices."""
    assert callable(main)
    with logging_undone(), pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out.split("\n\n", 1)[0]


def words_of(text: str) -> set[str]:
    """Every word of a usage, options and choices alike."""
    return set(re.findall(r"[\w-]+", text))


def test_the_commands_are_the_promised_ones() -> None:
    """`python -m agent` has exactly the commands of the design and those of docs/decisions.md."""
    assert [command.name for command in COMMANDS] == list(dict.fromkeys(command.name for command in COMMANDS))
    assert {command.name for command in COMMANDS} == set(SURFACE)


@pytest.mark.parametrize("command", SURFACE)
def test_every_promised_option_is_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command takes the options and choices of the design."""
    options, choices = SURFACE[command]
    assert options | set(choices.split()) <= words_of(usage(agent_main, [command], capsys))


def test_build_trt_takes_the_promised_options(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m agent.build_trt` takes every backend, precision and device of the design."""
    assert BUILD_OPTIONS | set(BUILD_CHOICES.split()) <= words_of(usage(build_main, [], capsys))


@pytest.mark.parametrize("module", ["agent", "agent.build_trt", "train"])
def test_every_package_with_commands_can_be_started(module: str) -> None:
    """python -m MODULE --help works in a fresh process."""
    words = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m " + module)


# Sizes and names


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    """No file of the packages is longer than 250 lines, and no function longer than 60."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    assert [f"{f.name}: {length(f)}" for f in functions(path) if length(f) > LONGEST_FUNCTION] == []


def test_most_functions_are_very_short() -> None:
    """Half of all functions have at most ten lines."""
    assert statistics.median(length(f) for path in sources(*PACKAGES) for f in functions(path)) <= MEDIAN_FUNCTION


def test_no_module_has_a_name_that_says_nothing() -> None:
    """Modules and packages are named by what they decide."""
    parts = {(part, name_of(path)) for path in sources(*PACKAGES, "tests") for part in path.relative_to(ROOT).parts}
    assert [name for part, name in parts if PurePosixPath(part).stem.removeprefix("test_") in FORBIDDEN] == []


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    """Each module opens with a docstring, in at most eight lines."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, name_of(path)
    assert len(text.splitlines()) <= 8


@pytest.mark.parametrize("path", sources("tests"), ids=name_of)
def test_every_test_states_its_promise(path: Path) -> None:
    """Each test function has a docstring, and contains something that can fail."""
    for function in functions(path):
        if function.name.startswith("test_"):
            assert ast.get_docstring(function), f"{function.name} has no docstring"
            assert _can_fail(function), f"{function.name} asserts nothing"


def _can_fail(function: Function) -> bool:
    """Whether a test asserts, expects an exception, or hands over to something that does (a call at its end)."""
    checks = any(isinstance(node, ast.Assert) for node in ast.walk(function))
    calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    return checks or bool(calls & {"pytest.raises", "pytest.fail"}) or any(_asserts(name) for name in calls)


def _asserts(call: str) -> bool:
    """Whether a function is called like one that checks something."""
    return re.search(r"(^|[._])(assert|check|expect|wait_until|agree|refuse|same|validate|must)", call) is not None


# Imports


def module_level_imports(path: Path) -> set[str]:
    """Top-level packages that importing this file imports by itself."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
                visit(node.body)

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


@pytest.mark.parametrize("path", sources("agent"), ids=name_of)
def test_no_agent_module_loads_an_engine_library_by_itself(path: Path) -> None:
    """torch, openvino and TensorRT are imported when an engine is built or loaded, never by an import."""
    assert not module_level_imports(path) & {"torch", "openvino", "torch_tensorrt", "tensorrt"}


@pytest.mark.parametrize("module", ["agent.pipeline", "agent.score", "agent.doctor", "agent.engine.openvino"])
def test_the_daemon_starts_without_torch(module: str) -> None:
    """In a fresh process the joiner, with every room and the list of engines, loads neither torch nor openvino."""
    code = f"import sys, {module}\nprint(sorted({{'torch', 'openvino', 'sklearn', 'lightning'}} & set(sys.modules)))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# Modalities


@pytest.fixture(params=MODALITIES)
def modality(request: pytest.FixtureRequest) -> Modality:
    """Every registered modality."""
    return MODALITIES[request.param]


@pytest.fixture
def profile(modality: Modality) -> LoadedProfile:
    """A shipped profile of this modality: each must have one, so that it can be shown and tested."""
    folders = [path.parent for path in (ROOT / "configs" / "profiles").glob("*/profile.yaml")]
    profiles = [load_profile_folder(folder) for folder in folders]
    return next(profile for profile in profiles if profile.spec.modality == modality.name)


def test_a_modality_is_a_folder_of_its_name(modality: Modality) -> None:
    """models/<name>/ holds it, the registry names it, and its channels are named."""
    assert MODALITIES[modality.name] is modality
    assert (ROOT / "models" / modality.name / "__init__.py").is_file()
    assert modality.channels and len(set(modality.channels)) == len(modality.channels)


def test_a_modality_has_every_part(modality: Modality, profile: LoadedProfile) -> None:
    """Assembler, host input and checks work on a shipped profile's own golden inputs."""
    modality.check(profile.spec)
    assembler = modality.make_assembler(profile.spec)
    assert all(callable(getattr(assembler, name)) for name in ("begin", "add", "planned", "forget"))
    prepared = modality.to_network_input(profile.spec, profile.golden_inputs)
    assert prepared.dtype == np.float32
    assert len(prepared) == len(profile.golden_inputs)


def test_a_wrong_section_is_refused_by_its_modality(modality: Modality, profile: LoadedProfile) -> None:
    """Unknown keys in the modality's own sections are refused, not ignored."""
    for section in ("input", "network"):
        wrong = {**getattr(profile.spec, section), "no_such_key": 1}
        with pytest.raises(ValueError, match="no_such_key"):
            modality.check(profile.spec.model_copy(update={section: wrong}))


def test_only_its_own_folder_knows_a_modality(modality: Modality) -> None:
    """No rule of the agent's stream names a modality: outside models/ only makers of phantoms and pictures may."""
    allowed = {"agent/imager.py", "agent/phantom_command.py", "agent/demo.py"}
    knows = {
        name_of(path) for path in sources("agent") if f"models.{modality.name}" in path.read_text(encoding="utf-8")
    }
    assert knows <= allowed


# Notices


def test_the_phantom_is_called_synthetic_wherever_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model card, profile, help of demo and phantom, and truth.json say that no tissue was seen."""
    folder = ROOT / "configs" / "profiles" / "phantom"
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "phantom model" in card and "not on tissue" in card and "nothing about\npatients" in card
    assert "synthetic" in load_profile_folder(folder).spec.intended_use
    for command in ("demo", "phantom"):
        with logging_undone(), pytest.raises(SystemExit):
            agent_main([command, "--help"])
        text = capsys.readouterr().out
        assert "synthetic" in text and "not tissue" in text
    with logging_undone():
        assert (
            agent_main(["phantom", "--out", str(tmp_path / "out"), "--slides", "1", "--layout", "tiff-mosaic"]) == 0
        )
    truth = json.loads((tmp_path / "out" / "truth.json").read_text())
    assert truth["phantom"] is True and truth["note"] == "synthetic phantom, not tissue"


def test_every_profile_is_for_research() -> None:
    """Each shipped profile says what it is for, and comes with a model card."""
    for manifest in (ROOT / "configs" / "profiles").glob("*/profile.yaml"):
        assert load_profile_folder(manifest.parent).spec.intended_use.startswith("research use only")
        assert (manifest.parent / "MODEL_CARD.md").is_file()
    assert "research use only" in (ROOT / "README.md").read_text(encoding="utf-8").lower()


TEXTS = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".service", ".conf", ".json", ""}
HOMES = re.compile("|".join(f"/{name}/[a-z]" for name in ("home", "root", "Users", "work")))


def test_no_path_of_somebodys_machine_is_left() -> None:
    """No text of the project names a home folder or a place on the machine where it was written."""
    folders = (*PACKAGES, "tests", "configs", "docs", "systemd", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    texts = [p for p in files if p.suffix in TEXTS and not {"__pycache__", "engines"} & set(p.parts)]
    assert len(texts) > 100
    found = [name_of(p) for p in texts if HOMES.search(p.read_text(encoding="utf-8", errors="replace"))]
    assert found == []
