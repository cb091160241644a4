"""Promises of doctor about profile and engines: each one's reason, and a real prediction."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.doctor.engines import judge_use, look_at_profile
from agent.engine import BACKENDS
from agent.engine.manifest import engine_folder
from agent.profile_folder import load_profile_folder
from tests.agent.doctor.site import Site, only
from tests.agent.engine.small_profile import need_openvino
from tests.agent.engine.unproven import build_unproven


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A healthy machine."""
    return Site(tmp_path)


def test_a_whole_profile_is_verified_and_run(site: Site) -> None:
    """Name, sha256, use, engine in service, and what a patch takes here."""
    found = site.look(look_at_profile)
    assert only(found, "profile").found.startswith("phantom v")
    assert only(found, "engine").found == "eager fp32: in service, golden pair agrees"
    assert "ms a patch" in only(found, "prediction").found


def test_a_damaged_profile_fails(site: Site) -> None:
    """A changed file fails the profile, and no engine is tried on it."""
    broken = site.bare_profile()
    (broken / "golden.safetensors").write_bytes(b"changed")
    found = site.look(look_at_profile, profile=str(broken))
    assert only(found, "profile").verdict == "fail"
    assert "golden.safetensors has sha256" in only(found, "profile").found
    assert "engine" not in found


def test_an_engine_that_is_passed_over_warns(site: Site) -> None:
    """A preferred engine that is not built warns with the command that builds it; the one that runs is ok."""
    bare = site.bare_profile()
    order = {"order": ["openvino", "eager"], "threads": 1}
    passed, runs = site.look(look_at_profile, profile=str(bare), engine=order)["engine"]
    assert (passed.verdict, runs.verdict) == ("warn", "ok")
    assert passed.found.startswith("openvino: not built")
    assert passed.mend == f"python -m agent.build_trt --profile {bare} --backend openvino"
    assert runs.found.startswith("eager fp32: in service")


def test_an_engine_behind_the_one_in_service_is_looked_at_too(site: Site) -> None:
    """What would stand in is told before it is needed."""
    bare = site.bare_profile()
    order = {"order": ["eager", "openvino"], "threads": 1}
    runs, behind = site.look(look_at_profile, profile=str(bare), engine=order)["engine"]
    assert runs.found.endswith("in service, golden pair agrees")
    assert behind.verdict == "warn" and "not built" in behind.found


def test_an_entry_may_name_an_engine_more_exactly(site: Site) -> None:
    """The command builds what was asked for: its precision and its batch."""
    bare = site.bare_profile()
    order = {"order": ["eager", "openvino-int8-b32", "openvino-bf16"], "threads": 1}
    runs, exact, loose = site.look(look_at_profile, profile=str(bare), engine=order)["engine"]
    build = f"python -m agent.build_trt --profile {bare} --backend openvino"
    assert runs.verdict == "ok"
    assert (exact.found.partition(":")[0], exact.mend) == (
        "openvino-int8-b32",
        f"{build} --precision int8 --batch 32",
    )
    assert (loose.found.partition(":")[0], loose.mend) == ("openvino-bf16", f"{build} --precision bf16")


def test_what_stands_in_names_for_whom(site: Site) -> None:
    """Every engine behind the one in service has passed the same test before it is needed."""
    need_openvino()
    bare = site.bare_profile()
    target = engine_folder(bare, "openvino", "fp32", 1)
    build_unproven(BACKENDS["openvino"], load_profile_folder(bare), target, "fp32", 1)
    order = {"order": ["openvino", "eager"], "threads": 1}
    runs, behind = site.look(look_at_profile, profile=str(bare), engine=order)["engine"]
    assert runs.found == "openvino fp32: in service, golden pair agrees"
    assert behind.found == "eager fp32: stands in for openvino-fp32-b1, golden pair agrees"


@pytest.mark.parametrize(("order", "told"), [(["openvino"], "not built"), (["abacus"], "unknown engine")])
def test_no_engine_at_all_fails(site: Site, order: list[str], told: str) -> None:
    """When none of the list can run, the agent does not start, and every reason is told."""
    found = site.look(look_at_profile, profile=str(site.bare_profile()), engine={"order": order})
    assert only(found, "engine").verdict == "fail"
    assert told in only(found, "engine").found
    assert "prediction" not in found


def test_a_profile_for_tissue_needs_no_warning() -> None:
    """Only the synthetic phantom is warned about; the words of the profile are shown as they are."""
    finding = judge_use("research use only; spinal tumours")
    assert (finding.verdict, finding.found) == ("ok", "research use only; spinal tumours")
