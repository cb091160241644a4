"""The benchmarks' own arithmetic, and each of them once on tiny data. Nothing here looks at a clock's figure."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor
from rich.console import Console
from torch import nn

from agent.engine.eager import load_network
from agent.profile_folder import load_profile_folder
from models.profile import LoadedProfile
from models.registry import MODALITIES
from models.srh.config import srh_input
from models.srh.gate import judge
from models.srh.phantom import PhantomSlide, render
from tests.bench import engines, latency, memory, peak, start
from tests.bench.__main__ import main, write_json
from tests.bench.chart import COLOURS, SPACING_PX, Level, Line, draw_lines, spaced
from tests.bench.engines import Rates
from tests.bench.figures import Spread
from tests.bench.latency import Repetition, Saturation, Told, WriteLog, evaluate
from tests.bench.live import Heard
from tests.bench.machine import Spent, company, gflop_per_patch, rss_bytes
from tests.bench.memory import MIB, Sample
from tests.bench.naive import PatchFiles, published_way
from tests.bench.peak import Peak
from tests.bench.pipeline import max_difference, outcome, write_patches
from tests.bench.start import Started
from tests.bench.summary import summary
from tests.bench.variants import Run, run_agent, run_naive
from tests.bench.ways import Way, missing, opened, phantom_patches
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

    agent = [run(1.0, host_ms=0.5, cut=2 * PATCHES), run(1.0, host_ms=0.7, cut=2 * PATCHES)]
    runs = {"naive": [run(6.0), run(3.0)], "bf16-strips": agent}
    found = outcome(runs, Peak(2.0, {"fp32": Spread.of([48.0])}))
    rows = found.figures["variants"]
    assert rows["bf16-strips"]["times_published"]["median"] == pytest.approx(4.5)
    assert rows["bf16-strips"]["share_of_engine"]["median"] == pytest.approx(0.5)
    assert rows["bf16-strips"]["share_of_peak"] == pytest.approx(12 / 24)
    assert rows["bf16-strips"]["host_ms_per_cut"]["median"] == pytest.approx(0.3)
    assert found.promises == []  # a small network owes no rate
    assert rows["naive"]["cpu_ms"]["median"] == pytest.approx(250)
    assert found.figures["disturbed"]  # the published way took 6 s, then 3
    found.show(QUIET)
    with pytest.raises(ValueError, match="2 patches are in one of the two only"):
        max_difference({"0_0": [1.0]}, {"0_300": [1.0]})


@pytest.mark.parametrize(
    ("rate", "engine_rate", "host_ms", "kept"),
    [
        (90.0, 93.0, 0.4, [True, True, True]),
        (79.0, 80.0, 0.4, [False, True, True]),
        (90.0, 99.0, 0.9, [True, False, False]),
    ],
)
def test_a_pipeline_owes_its_rate_on_the_full_size_network(
    rate: float, engine_rate: float, host_ms: float, kept: list[bool]
) -> None:
    """× published, share of the engine alone and host work are judged each; what was not measured is not kept."""

    def run(rate: float, **more: Any) -> Run:
        return Run(100, 100 / rate, engine_rate, 1.5, "bf16", 1, {"0_0": [1.0]}, **more)

    agent = [run(rate, host_ms=host_ms, cut=110)]
    runs = {"naive": [run(10.0)], "bf16-strips": agent, "bf16-patches": agent}
    promises = outcome(runs, Peak(15.3, {"bf16": Spread.of([1000.0])})).promises
    assert [promise.kept for promise in promises] == [*kept, False]
    assert promises[-1].measured == "not measured"


ENGINE_RATES: dict[str, Rates] = {
    "naive": {1: [10.0, 20.0], 32: [5.0, 10.0]},
    "openvino-bf16": {1: [40.0, 60.0], 32: [45.0, 80.0]},
}


def test_engines_are_compared_at_the_same_batch_and_with_the_largest() -> None:
    """Ratios are those of each round; shares are of the peak of the same precision and number of threads."""
    peaks = {1: Peak(20.0, {"bf16": Spread.of([700.0])}), 2: Peak(20.0, {"bf16": Spread.of([1400.0])})}
    found = engines.outcome({1: ENGINE_RATES, 2: ENGINE_RATES}, peaks, {"openvino-bf16": {"bf16": 35}})
    cell = found.figures["threads"]["2"]["ways"]["openvino-bf16"]["batches"]["1"]
    assert cell["times_published"]["median"] == pytest.approx((4 + 3) / 2)
    assert cell["times_published_largest"]["median"] == pytest.approx((8 + 6) / 2)
    assert cell["share_of_peak"] == pytest.approx(50 / 70)
    alone = found.figures["threads"]["1"]["ways"]
    assert alone["openvino-bf16"]["batches"]["32"]["share_of_peak"] == pytest.approx(62.5 / 35)
    assert alone["naive"]["batches"]["1"]["share_of_peak"] is None  # no fp32 peak was measured
    assert [promise.kept for promise in found.promises] == [True, True, True, False]
    assert found.promises[0].measured == "8.5 × (openvino-bf16, batch 32)"
    assert found.promises[2].measured == "89.3% (openvino-bf16, batch 32)"
    assert found.promises[3].measured == "0.0% (not measured)"
    found.show(QUIET)


def test_a_small_network_owes_no_rate() -> None:
    """The same rates of a network of little arithmetic are figures without promises."""
    peak = Peak(0.5, {"bf16": Spread.of([1400.0])})
    assert engines.outcome({2: ENGINE_RATES}, {2: peak}, {}).promises == []


def test_every_way_is_measured_or_says_why_not() -> None:
    """A backend that is not there has a reason, and the published call needs nothing."""
    assert missing(Way("", "naive", "fp32")) is None
    assert missing(Way("", "eager", "fp32")) is None
    assert missing(Way("", "abacus", "fp32")) == "this version has no backend abacus"
    assert missing(Way("", "eager", "int8")) == "this processor has no int8"


def test_ways_give_the_same_answers(profile: LoadedProfile, tmp_path: Path) -> None:
    """What is timed is the same network: eager at batch 4 gives what the published call gives."""
    x_BCHW = np.resize(profile.golden_inputs, (4, *profile.golden_inputs.shape[1:]))
    published, _ = opened("naive", profile, tmp_path, 4, 1)
    eager, census = opened("eager", profile, tmp_path, 4, 1)
    answers = eager(x_BCHW)
    assert isinstance(answers, dict) and census == {}
    np.testing.assert_allclose(np.asarray(published(x_BCHW)), next(iter(answers.values())), atol=1e-4)


def test_calibration_patches_are_tissue(profile: LoadedProfile) -> None:
    """int8 is calibrated on patches that the gate lets pass."""
    patches_NCHW = phantom_patches(profile, 3)
    assert patches_NCHW.shape == (3, *profile.golden_inputs.shape[1:])
    assert all(judge(patch, srh_input(profile.spec).gate) is None for patch in patches_NCHW)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_peak_is_measured_in_its_own_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain products run in the precision that they are the peak of, else the graph is refused."""
    if precision not in peak.precisions():
        pytest.skip(f"this processor has no {precision}")
    monkeypatch.setattr(peak, "SIDES", (64,))
    monkeypatch.setattr(peak, "CONVOLUTIONS", ((64, 8),))
    monkeypatch.setattr(peak, "SIZE_S", 0.0)
    assert peak.peak_gflops(precision, 1) > 0


def test_starts_are_judged_by_backend() -> None:
    """OpenVINO has 1.5 s, the others 3 s, each by its median."""
    slow = [Started(2.0, 300 * MIB), Started(2.5, 310 * MIB), Started(9.0, 320 * MIB)]
    found = start.outcome({"openvino-bf16": slow, "eager": slow})
    assert [promise.kept for promise in found.promises] == [False, True]
    assert found.figures["engines"]["eager"]["rss_mib"]["median"] == 310
    found.show(QUIET)


def test_added_latency_is_judged_at_the_pace_of_the_imager() -> None:
    """50 ms beside inference are allowed; how long rows wait at saturation is told and not judged."""

    def repetition(total_ms: float) -> Repetition:
        return Repetition([0.16], [1.5], 0.1, 8.0, [Told(total_ms, 30.0, 4.0)])

    for total_ms, kept in ((80.0, True), (81.0, False)):
        saturated = Saturation([100.0, 5000.0], 60.0)
        found = latency.outcome([repetition(total_ms)], saturated, "openvino bf16", 10.0)
        assert [promise.kept for promise in found.promises] == [True, True, kept]
        assert found.figures["saturation"]["row_ms"]["p99"] == 5000


def test_the_summary_has_a_row_for_what_was_measured() -> None:
    """One row an engine, from whatever ran; what did not run stays open, and nothing at all gives no row."""
    peak_of = {2: Peak(20.0, {"bf16": Spread.of([1400.0])})}
    starts = start.outcome({"openvino-int8": [Started(1.25, 200 * MIB)]}).document()
    table = summary({"engines": engines.outcome({2: ENGINE_RATES}, peak_of, {}).document(), "start": starts})
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert [row[0] for row in rows] == ["published way", "openvino bf16", "openvino int8"]
    assert rows[1][1:5] == ("50.0", "62.5", "3.5, 8.5", "89%")
    assert rows[2] == ("openvino int8", *["–"] * 8, "1.25", "200")
    assert summary({}).row_count == 0


def test_json_keeps_what_it_holds_of_other_profiles(tmp_path: Path) -> None:
    """A run replaces its own profile's part of the file only."""
    path = tmp_path / "performance.json"
    write_json(path, "phantom", {"start": 1})
    write_json(path, "full-size", {"start": 2})
    write_json(path, "phantom", {"start": 3})
    assert json.loads(path.read_text()) == {"phantom": {"start": 3}, "full-size": {"start": 2}}


def test_a_picture_shows_every_line(tmp_path: Path) -> None:
    """Each line's colour is in the PNG, and names on the right do not overlap."""
    lines = [Line("one", [1.0, 2.0]), Line("two", [2.0, 2.1])]
    draw_lines(tmp_path / "lines.png", "rates", ["1", "32"], lines, [Level("peak", 2.5)])
    with Image.open(tmp_path / "lines.png") as image:
        found = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert {ImageColor.getrgb(colour) for colour in COLOURS[:2]} <= found
    placed = spaced([100.0, 101.0, 395.0, 399.0], 400.0)
    assert all(b - a >= SPACING_PX for a, b in pairwise(placed))
    assert placed[-1] <= 400


def test_a_picture_is_of_one_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    """--picture with none or both of those that draw ends with exit code 2."""
    for names in (["latency"], ["engines", "soak"]):
        with pytest.raises(SystemExit) as ended:
            main([*names, "--picture", "x.png"])
        assert ended.value.code == 2
        assert "--picture is for one of engines, soak" in capsys.readouterr().err


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
    found = latency.measure(PROFILE, QUIET, repetitions=1, strip_s=0.5, engines=["eager"], at_once=2)
    (slide,) = found.figures["engines"]["eager"]["slides"]
    assert found.figures["engines"]["eager"]["saturation"]["row_ms"]["count"] == 2 * 14
    assert len(slide["rows"]) == 14
    assert all(0 < row["inference_ms"] < row["total_ms"] for row in slide["rows"][:1])
    assert slide["final_s"] > 0
    assert len(found.promises) == 3
    found.show(QUIET)


@pytest.mark.system
def test_start_runs() -> None:
    """A real agent says READY, and has a size then."""
    found = start.measure(PROFILE, QUIET, engines=["eager"], starts=1)
    assert found.figures["engines"]["eager"]["ready_s"]["count"] == 1
    assert found.figures["engines"]["eager"]["rss_mib"]["median"] > 50


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
