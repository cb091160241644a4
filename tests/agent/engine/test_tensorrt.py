"""TensorRT without TensorRT: what we call is checked against the package's own source, the rest with our own parts.

The wheel is downloaded (it cannot be installed without NVIDIA's package index), parsed and never imported. What needs
a card or the library (building, deserialising, running) is not covered.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agent.engine import BACKENDS
from agent.engine import tensorrt as backend_module
from agent.engine.backend import BuildRequest
from agent.engine.layers import check_census, layer_census
from agent.engine.tensorrt import DEBUGGER_KEYWORDS, FIXED, KEYWORDS, TensorRtBackend, check_keywords, serialised
from models.profile import LoadedProfile
from tests.agent.engine.small_profile import write_profile

VERSION = "2.13.0"
COMPILER = "torch_tensorrt/dynamo/_compiler.py"
DEBUGGER = "torch_tensorrt/dynamo/debug/_Debugger.py"
SOURCE = Path(backend_module.__file__)


@pytest.fixture(scope="session")
def wheel() -> Iterator[zipfile.ZipFile]:
    """The package as published; kept between runs. Skips where no registry answers."""
    folder = Path(tempfile.gettempdir()) / f"spinextract-tests-{os.getuid()}-torch-tensorrt-{VERSION}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        pytest.fail(f"{folder} belongs to somebody else")
    if not list(folder.glob("*.whl")):
        with tempfile.TemporaryDirectory(dir=folder) as arriving:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary", ":all:", "--dest", arriving, f"torch-tensorrt=={VERSION}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["pip failed"]
                pytest.skip(f"torch-tensorrt {VERSION} cannot be downloaded: {lines[-1]}")
            (file,) = Path(arriving).iterdir()
            file.replace(folder / file.name)  # whole or not at all, whoever else downloads it
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def parsed(wheel: zipfile.ZipFile, name: str) -> ast.Module:
    """A file of the wheel."""
    return ast.parse(wheel.read(name))


def parameters(tree: ast.AST, function: str) -> set[str]:
    """The named parameters of the function (or method) of this name: not what `**kwargs` swallows."""
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    return {argument.arg for argument in (*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs)}


def names_in(tree: ast.AST) -> set[str]:
    """Every name that a module binds or imports."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {item.asname or item.name for item in node.names}
    return names


class TestAgainstThePackage:
    """torch-tensorrt swallows what it does not know: nothing that we pass may be unknown."""

    def test_every_keyword_is_a_parameter(self, wheel: zipfile.ZipFile) -> None:
        """Each keyword of the conversion is a named parameter of the real function, which does swallow others."""
        tree = parsed(wheel, COMPILER)
        known = parameters(tree, "convert_exported_program_to_serialized_trt_engine")
        assert set(KEYWORDS) <= known
        assert {"enabled_precisions", "use_explicit_typing"}.isdisjoint(known)

    def test_every_keyword_of_the_debugger_is_a_parameter(self, wheel: zipfile.ZipFile) -> None:
        """So are those of the debugger, with which an engine keeps the types of its layers."""
        (debugger,) = [
            n for n in parsed(wheel, DEBUGGER).body if isinstance(n, ast.ClassDef) and n.name == "Debugger"
        ]
        assert set(DEBUGGER_KEYWORDS) <= parameters(debugger, "__init__")

    def test_what_we_import_is_there(self, wheel: zipfile.ZipFile) -> None:
        """torch_tensorrt.dynamo has the function and the debugger under the names that we use."""
        names = names_in(parsed(wheel, "torch_tensorrt/dynamo/__init__.py"))
        used = set(re.findall(r"dynamo\.(\w+)", SOURCE.read_text()))
        assert {"convert_exported_program_to_serialized_trt_engine", "Debugger"} <= used <= names

    def test_types_are_strong(self, wheel: zipfile.ZipFile) -> None:
        """The network takes types as they stand in the graph, as our conversion of the module supposes."""
        assert "STRONGLY_TYPED" in wheel.read("torch_tensorrt/dynamo/conversion/_TRTInterpreter.py").decode()

    def test_details_come_with_the_debugger_alone(self, wheel: zipfile.ZipFile) -> None:
        """The one place that keeps the types of layers does so for a debugger: without it there is no census."""
        text = wheel.read("torch_tensorrt/dynamo/conversion/_TRTInterpreter.py").decode()
        assert re.search(r"ProfilingVerbosity\.DETAILED\s+if self\._debugger_config\s+else", text)

    def test_every_name_of_tensorrt_is_used_there_too(self, wheel: zipfile.ZipFile) -> None:
        """What we call of TensorRT itself, which cannot be had, the package calls as well, under the same name."""
        tree = ast.parse(SOURCE.read_text())
        owners = ("engine", "context", "inspector", "tensorrt")
        ours = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners
        }
        assert {"Runtime", "create_execution_context", "execute_async_v3", "num_io_tensors"} <= ours
        names = [name for name in wheel.namelist() if name.endswith(".py")]
        theirs = "\n".join(wheel.read(name).decode() for name in names)
        assert [name for name in sorted(ours) if not re.search(rf"\.{name}\b", theirs)] == []

    def test_versions(self, wheel: zipfile.ZipFile) -> None:
        """The wheel is the version that our extra asks for, for the torch that is installed."""
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        text = wheel.read(name).decode()
        assert f"Version: {VERSION}" in text
        assert re.search(r"Requires-Dist: torch<2\.14\.0,>=2\.13\.0", text)
        assert torch.__version__.startswith("2.13.")


def test_a_keyword_that_would_be_swallowed_is_refused() -> None:
    """What is only caught by **kwargs or *args is no parameter: RuntimeError with its name."""

    def convert(program: object, *inputs: object, device: str = "", **kwargs: object) -> bytes:
        return b""

    check_keywords(convert, ["program", "device"])
    for unknown in ("enabled_precisions", "kwargs", "inputs"):
        with pytest.raises(RuntimeError, match=f"does not know {unknown} of convert"):
            check_keywords(convert, ["device", unknown])


class Recorder:
    """Stands for torch_tensorrt.dynamo, with the same parameters as far as we use them."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.events: list[str] = []
        self.Debugger = self.debugger

    @contextmanager
    def debugger(self, log_level: str, engine_builder_monitor: bool, logging_dir: str) -> Iterator[None]:
        """Notes when it is active."""
        assert Path(logging_dir).is_dir()
        self.events.append("details on")
        yield
        self.events.append("details off")

    def convert_exported_program_to_serialized_trt_engine(
        self,
        exported_program: object,
        *,
        arg_inputs: Any = None,
        device: Any = None,
        timing_cache_path: str = "/shared",
        disable_tf32: bool = False,
        truncate_double: bool = True,
        require_full_compilation: bool = False,
        min_block_size: int = 5,
        optimization_level: int = 3,
        version_compatible: bool = True,
        hardware_compatible: bool = True,
        immutable_weights: bool = False,
        lazy_engine_init: bool = True,
        cache_built_engines: bool = True,
        reuse_cached_engines: bool = True,
        **kwargs: object,
    ) -> bytes:
        """Notes what it was given."""
        self.given = {name: value for name, value in locals().items() if name not in ("self", "kwargs")}
        self.events.append("convert")
        assert not kwargs
        return b"plan"


def test_the_conversion(tmp_path: Path) -> None:
    """The engine is built with details, with every fixed option, and with a timing cache in the private folder."""
    dynamo, example = Recorder(), torch.zeros(2, 3)
    assert serialised(dynamo, "program", example, tmp_path) == b"plan"
    assert dynamo.events == ["details on", "convert", "details off"]
    assert dynamo.given["exported_program"] == "program" and dynamo.given["arg_inputs"] == [example]
    assert Path(dynamo.given["timing_cache_path"]).parent == tmp_path
    assert {name: dynamo.given[name] for name in FIXED} == FIXED
    assert set(KEYWORDS) == dynamo.given.keys() - {"exported_program"}


def test_no_engine_is_a_clear_error(tmp_path: Path) -> None:
    """The package asserts that an engine was built: its failure is one of the errors that a build may raise."""

    def fail(exported_program: object, **given: object) -> bytes:
        raise AssertionError("no kernel")

    real = Recorder().convert_exported_program_to_serialized_trt_engine
    failing = SimpleNamespace(
        Debugger=Recorder().Debugger, convert_exported_program_to_serialized_trt_engine=wraps(real)(fail)
    )
    with pytest.raises(RuntimeError, match="built no engine: no kernel"):
        serialised(failing, "program", torch.zeros(1), tmp_path)


def layer(kind: str, datatype: str) -> dict[str, Any]:
    """A layer as an engine inspector tells it."""
    tensor = {"Name": "t", "Dimensions": [32, 64, 75, 75], "Format/Datatype": datatype}
    return {"Name": "n", "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor]}


def test_layers_are_counted_by_precision() -> None:
    """Layers that compute count by the type that they read; those that move data, and those without input, do not."""
    layers = [
        layer("CaskConvolution", "Channel major FP16 format where channel % 8 == 0"),
        layer("CaskConvolution", "Half"),
        layer("kgen", "BFloat16"),
        layer("CaskGemmConvolution", "Row major linear FP32"),
        layer("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format"),
        layer("gemm", "FP8"),
        layer("Reformat", "Float"),
        layer("NoOp", "Half"),
        {"Name": "c", "LayerType": "Constant", "Inputs": [], "Outputs": []},
        layer("gemm", "Complex"),
    ]
    expected = {"fp16": 2, "bf16": 1, "fp32": 1, "int8": 1, "fp8": 1, "Complex": 1}
    assert layer_census(json.dumps({"Layers": layers, "Bindings": []})) == expected


def test_an_engine_without_details_is_refused() -> None:
    """Layers told by name alone have no types: nothing is taken on trust."""
    with pytest.raises(RuntimeError, match="does not tell the types"):
        layer_census(json.dumps({"Layers": ["conv1 + relu"], "Bindings": []}))


@pytest.mark.parametrize(
    ("census", "precision", "is_right"),
    [
        ({"fp16": 60, "fp32": 3}, "fp16", True),
        ({"fp32": 60, "fp16": 3}, "fp16", False),
        ({"fp32": 60}, "fp32", True),
        ({"fp16": 60}, "bf16", False),
        ({"int8": 53, "fp32": 20}, "int8", True),
        ({"fp32": 73}, "int8", False),
        ({}, "fp16", False),
    ],
)
def test_an_engine_in_another_precision_is_refused(census: dict[str, int], precision: str, is_right: bool) -> None:
    """An «fp16» engine that runs in fp32 is not one."""
    if is_right:
        check_census(census, precision)
    else:
        with pytest.raises(RuntimeError, match=f"asked for {precision}, but the layers run in"):
            check_census(census, precision)


def test_without_the_package_one_line_says_what_to_install() -> None:
    """Neither torch-tensorrt nor TensorRT is imported to find out, and the line names the extra and the index."""
    backend = BACKENDS["tensorrt"]
    assert isinstance(backend, TensorRtBackend)
    for device in ("cuda", "cuda:1"):
        reason = backend.unavailable(device)
        if reason is None:
            pytest.skip("TensorRT is installed here")
        assert "\n" not in reason
        assert re.fullmatch(r".* is not installed: pip install 'spinextract-agent\[trt\]' .*index\)|torch .*", reason)
    assert "torch_tensorrt" not in sys.modules


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> LoadedProfile:
    """A small profile."""
    return write_profile(tmp_path_factory.mktemp("profile"), sizes={"layers": 1})


def test_a_build_without_the_package_is_a_clear_error(profile: LoadedProfile, tmp_path: Path) -> None:
    """Whoever calls the build anyway gets RuntimeError with the same advice; int8 needs one package more."""
    if TensorRtBackend().unavailable() is None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(RuntimeError, match="spinextract-agent"):
        TensorRtBackend().build(BuildRequest(profile, tmp_path, "fp16", 1, 1, "cuda"))
    with pytest.raises(RuntimeError, match="fp8 needs nvidia-modelopt: pip install"):
        TensorRtBackend().build(BuildRequest(profile, tmp_path, "fp8", 1, 1, "cuda"))
    with pytest.raises(ValueError, match="needs a built engine"):
        TensorRtBackend().load(profile, None, 1)
