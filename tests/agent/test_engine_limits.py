"""agent.engine_limits: strict by default, each a setting of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.engine.backend import PRECISIONS
from agent.engine_limits import BOUNDS, STRICT, EngineLimits, PrecisionLimits
from agent.errors import SettingsError
from agent.settings import load_settings


def test_the_defaults_are_the_strict_ones() -> None:
    """What the design demands of each precision."""
    found = {name: (STRICT.of(name).max_dp, STRICT.of(name).argmax_agreement) for name in PRECISIONS}
    half, eight = (0.02, 0.999), (0.05, 0.995)
    assert found == {"fp32": (1e-4, 0.999), "bf16": half, "fp16": half, "int8": eight, "fp8": eight}
    assert STRICT.of("int8").mean_dp == 0.003
    assert {STRICT.of(name).slide_change for name in PRECISIONS} == {1e-4, 0.01}
    assert {STRICT.of(name).speed_ratio for name in PRECISIONS} == {1.0}


def test_every_limit_has_a_direction() -> None:
    """A figure can be judged by each of them."""
    assert set(BOUNDS) == set(PrecisionLimits.model_fields)


def test_a_precision_that_this_version_does_not_know_is_judged_as_fp32() -> None:
    """A name from a later version loosens nothing."""
    assert STRICT.of("fp4") == STRICT.of("of") == STRICT.of("fp32")


def settings(folder: Path, engine: str) -> EngineLimits:
    """The limits of a settings file with these lines in its engine section."""
    path = folder / "agent.yaml"
    path.write_text(f"folder: in\nstate_dir: state\nprofile: p\nengine:\n{engine}\n")
    return load_settings(path).engine.limits


def test_one_limit_is_set_and_the_others_stay(tmp_path: Path) -> None:
    """Setting one of a precision leaves its others, and other precisions, at their defaults."""
    limits = settings(tmp_path, "  limits:\n    int8: {max_dp: 0.04}")
    assert limits.int8.max_dp == 0.04
    assert limits.int8.mean_dp == 0.003 and limits.int8.layer_share == 0.4
    assert limits.model_copy(update={"int8": STRICT.int8}) == STRICT
    assert settings(tmp_path, "  limits:\n    bf16:") == STRICT


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        ("  limits: {int8: {max_dp: 0}}", "engine.limits.int8.max_dp: input should be greater than 0"),
        ("  limits: {int8: {max_dp: .nan}}", "engine.limits.int8.max_dp: "),
        ("  limits: {int8: {maxdp: 0.1}}", "did you mean 'max_dp'"),
        ("  limits: {int4: {max_dp: 0.1}}", "engine.limits.int4: unknown setting; did you mean 'int8'"),
    ],
    ids=["nothing", "no number", "no such limit", "no such precision"],
)
def test_limits_that_make_no_sense(tmp_path: Path, engine: str, line: str) -> None:
    """Told with the line and the name."""
    with pytest.raises(SettingsError) as caught:
        settings(tmp_path, engine)
    assert "agent.yaml:5: " in str(caught.value) and line in str(caught.value)
