"""The benchmarks' own arithmetic, and each of them once on tiny data. Nothing here looks at a clock's figure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from agent.engine.eager import load_network
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile
from models.registry import MODALITIES
from models.srh.config import srh_input
from models.srh.phantom import PhantomSlide, render
from tests.bench import latency, memory
from tests.bench.__main__ import main
from tests.bench.figures import Spread
from tests.bench.latency import WriteLog, evaluate
from tests.bench.live import Heard
from tests.bench.machine import Spent, company, gflop_per_patch, rss_bytes
from tests.bench.memory import MIB, Sample
from tests.bench.naive import PatchFiles, published_way
from tests.bench.peak import Peak
from tests.bench.pipeline import max_difference, outcome, write_patches
from tests.bench.variants import Run, run_agent, run_naive
from tests.system.processes import PROFILE

QUIET = Console(quiet=True)
PATCHES = 6


@pytest.fixture(scope="module")
def profile() -> LoadedProfile:
    """The phantom profile."""
    return load_profile_folder(PROFILE)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory, profile: LoadedProfile) -> Path:
    """Six patch files of a phantom slide."""
    folder = tmp_path_factory.mktemp("patches")
    write_patches(folder, [render(PhantomSlide(41_001, 1), 600, -50, 600, 1000)], profile)
    assert len(list(folder.rglob("*.tif"))) == PATCHES
    return folder


def test_the_published_way_and_the_agent_give_the_same_probabilities(patches: Path) -> None:
    """On the same files both ways agree within 1e-4 on every patch."""
    naive, agent = run_naive(patches, PROFILE), run_agent(patches, PROFILE, "eager")
    assert naive.patches == agent.patches == len(naive.answers) == PATCHES
    assert max_difference(naive.answers, agent.answers) < 1e-4
    assert all(sum(row) == pytest.approx(1) for row in agent.answers.values())


def test_the_published_way_reads_what_the_agent_reads(patches: Path, profile: LoadedProfile) -> None:
    """Its transform gives the profile's own network input, and its batches every file in order."""
    paths = sorted(patches.rglob("*.tif"))
    spec = srh_input(profile.spec)
    x_NCHW = np.stack([tifffile.imread(path) for path in paths])
    expected = MODALITIES["srh"].to_network_input(profile.spec, x_NCHW)
    files = PatchFiles(paths, spec.scale, spec.third_channel_base)
    got = np.stack([files[index].numpy() for index in range(len(files))])
    np.testing.assert_allclose(got, expected, atol=1e-7)
    network = load_network(profile)
    with torch.no_grad():
        one_by_one = np.concatenate([network(torch.from_numpy(x[np.newaxis])).numpy() for x in expected])
    np.testing.assert_allclose(published_way(paths, profile, network), one_by_one, atol=1e-4)


def test_the_table_compares_with_the_published_way(patches: Path) -> None:
    """Ratios and shares of the table are those of the runs behind it, and other patches are refused."""

    def run(total_s: float, **more: Any) -> Run:
        return Run(PATCHES, total_s, 12.0, 1.5, "fp32", 1, {"0_0": [0.25, 0.75]}, **more)

    runs = {"naive": [run(6.0), run(3.0)], "openvino-strips": [run(1.0, host_ms=0.5), run(1.0, host_ms=0.7)]}
    found = outcome(runs, Peak(2.0, {"fp32": Spread.of([48.0])}))
    rows = found.figures["variants"]
    assert rows["openvino-strips"]["times_published"]["median"] == pytest.approx(4.5)
    assert rows["openvino-strips"]["share_of_engine"]["median"] == pytest.approx(0.5)
    assert rows["openvino-strips"]["share_of_peak"] == pytest.approx(12 / 24)
    assert rows["naive"]["cpu_ms"]["median"] == pytest.approx(250)
    assert found.figures["disturbed"]  # the published way took 6 s, then 3
    found.show(QUIET)
    with pytest.raises(ValueError, match="2 patches are in one of the two only"):
        max_difference({"0_0": [1.0]}, {"0_300": [1.0]})


def test_arithmetic_is_counted_as_by_hand(profile: LoadedProfile) -> None:
    """The counted GFLOP are those of the convolutions, summed in a slow loop, plus a few per cent for the head."""
    network = load_network(profile)
    by_hand = 0

    def count(module: nn.Conv2d, _: Any, out_BCHW: torch.Tensor) -> None:
        nonlocal by_hand
        for size in module.kernel_size:
            assert size == module.kernel_size[0]
        per_pixel = 2 * module.in_channels * module.kernel_size[0] ** 2
        by_hand += per_pixel * out_BCHW.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 300, 300))
    assert by_hand / 1e9 <= gflop_per_patch(profile) < 1.1 * by_hand / 1e9


def test_a_spread_is_median_range_and_the_value_that_99_of_100_do_not_exceed() -> None:
    """p99 of 1..200 is 198, the slow way; of few values it is the largest."""
    values = [float(value) for value in range(1, 201)]
    spread = Spread.of(values)
    slow = min(value for value in values if sum(v <= value for v in values) >= 0.99 * len(values))
    assert (spread.median, spread.low, spread.high, spread.p99) == (100.5, 1.0, 200.0, slow)
    assert Spread.of([3.0, 1.0, 2.0]).p99 == 3.0
    assert Spread.of([3.0, 1.0, 2.0]).text(1) == "2.0 (1.0-3.0)"


def heard(at: float, seen: int, used: int, kind: str = "slide.posterior") -> Heard:
    """A message about a slide."""
    body = {
        "kind": kind,
        "time": "2020-01-01T00:00:00Z",
        "counts": {"seen": seen, "used": used},
        "latency": {"inference_ms": 4.0},
    }
    return Heard(at, body)


def log_of(start_s: float, rounds: int, header: int) -> WriteLog:
    """Two files of 2000 rows in equal pieces, one piece of each a second."""
    log = WriteLog(2)
    size = header + latency.HEIGHT_PX * 2000
    edges = np.linspace(0, size, rounds + 1).astype(int)
    for number in range(rounds):
        log.rounds.append((start_s + number + 1, int(edges[number + 1])))
    return log


def test_latency_is_counted_from_the_bytes_that_complete_a_row(profile: LoadedProfile) -> None:
    """Share written, wait for the final and each row's way follow from when which byte was on disk."""
    logs = [log_of(0.0, 20, 1000), log_of(20.0, 20, 1000)]
    # One row of three patches is complete with rows 300, 600, ..., 1800 and 2000, hence at second 3 or 4, 7, ...
    complete = [4.0, 7.0, 10.0, 13.0, 16.0, 19.0, 20.0]
    said = [
        heard(20.0 * index + at + 0.25, 21 * index + 3 * (row + 1), 42 * index + 2 * row + 2)
        for index in range(2)
        for row, at in enumerate(complete)
    ]
    final = heard(40.5, 42, 42, "slide.final")
    found = evaluate([*said, final], logs, srh_input(profile.spec), batch=1)
    assert found.first_share == pytest.approx([4 / 20, 4 / 20], abs=0.01)
    assert found.first_s == pytest.approx([3.25, 3.25])
    assert found.final_s == pytest.approx(0.5)
    assert found.final_inference_share == pytest.approx(0.008)
    assert [row.total_ms for row in found.rows] == pytest.approx([250.0] * 14)
    assert [row.inference_ms for row in found.rows[:7]] == [8.0] * 7
    assert found.rows[0].added_ms == pytest.approx(242.0)
    with pytest.raises(ValueError, match="no final"):
        evaluate(said, logs, srh_input(profile.spec), batch=1)


def test_a_write_log_follows_the_shorter_file() -> None:
    """What every file has counts; nothing is on disk before the first round is whole."""
    log = WriteLog(2)
    for count in (10, 8, 10, 12):
        log.wrote(count)
    assert [size for _, size in log.rounds] == [8, 18]
    assert log.when(9) == log.rounds[1][0]
    assert log.share(log.rounds[0][0]) == 8 / 18
    assert log.share(log.rounds[0][0] - 1) == 0


@pytest.mark.parametrize(("growth_mib", "kept"), [(0.2, True), (2.0, False)])
def test_memory_that_grows_breaks_its_promise(growth_mib: float, kept: bool) -> None:
    """Fifty slides that add 0.2 MiB each to 200 MiB stay within a tenth; 2 MiB each do not."""
    sizes: NDArray[np.int64] = ((200 + growth_mib * np.arange(50)) * MIB).astype(np.int64)
    found = memory.outcome([Sample(int(s), int(s) + 40 * MIB, int(s), 360) for s in sizes], "eager fp32")
    assert found.promises[0].kept is kept
    assert found.figures["drift_mib"] == pytest.approx(40 * growth_mib, abs=0.01)
    found.show(QUIET)


@pytest.mark.system
def test_latency_runs() -> None:
    """A real agent and broker: every row of patches of one quickly written slide is matched with its bytes."""
    found = latency.measure(PROFILE, QUIET, repetitions=1, strip_s=0.5)
    (slide,) = found.figures["slides"]
    assert len(slide["rows"]) == 14
    assert all(0 < row["inference_ms"] < row["total_ms"] for row in slide["rows"][:1])
    assert slide["final_s"] > 0
    assert len(found.promises) == 2
    found.show(QUIET)


@pytest.mark.system
def test_memory_runs() -> None:
    """A real agent and broker: every slide is counted whole and leaves a figure of the agent's size."""
    found = memory.measure(PROFILE, QUIET, slides=6, source=PhantomSlide(41_003, 0, 2000))
    samples = found.figures["samples"]
    assert [sample["seen"] for sample in samples] == [42] * 6
    assert all(sample["peak"] > 50 * MIB and sample["after"] > 50 * MIB for sample in samples)
    found.show(QUIET)


def test_rss_is_this_process_own_size() -> None:
    """Touching 64 MiB shows in the resident memory."""
    before = rss_bytes(os.getpid())
    kept = np.ones(64 * MIB, np.uint8)
    assert rss_bytes(os.getpid()) - before >= 0.9 * kept.nbytes


def test_company_is_what_others_take_and_not_we() -> None:
    """Of 4 s on two cores, 5 s busy and 3 s of it ours, others took a quarter; ticks never lead out of 0..1."""
    assert company(Spent(10, 100, 7), Spent(14, 105, 10), 2) == 0.25
    assert company(Spent(0, 0, 0), Spent(0.01, 0, 0.02), 2) == 0
    assert company(Spent(0, 0, 0), Spent(0.01, 0.05, 0), 2) == 1


def test_clocks_count_what_we_do() -> None:
    """Work done here moves the clocks of this process, and none goes back."""
    before = Spent.now()
    while (after := Spent.now()).own < before.own + 0.05:
        sum(range(10_000))
    assert after.wall > before.wall and after.busy >= before.busy


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name ends with exit code 2 and the names that there are."""
    with pytest.raises(SystemExit) as ended:
        main(["latencies"])
    assert ended.value.code == 2
    assert "latency, pipeline, memory" in capsys.readouterr().err
