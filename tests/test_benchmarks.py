"""The benchmark of attention: its arithmetic is right, its rivals compute the same, and its figures reach the JSON."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from regard import Causal, attend_observed

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from attention_bench import cases, goals, limits, report, shapes, timing
from attention_bench.speed import RATIOS, Result

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "attention.py"
NAMED = {shape.name: shape for shape in (*shapes.PREFILL, *shapes.DECODE)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def test_every_figure_is_printed_and_written(tmp_path: Path):
    file = tmp_path / "figures.json"
    done = run("speed", "accuracy", "--tiny", "--threads", "1", "--backend", "fused", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "1 thread, 3 of 3" in done.stderr
    record = json.loads(file.read_text(encoding="utf-8"))
    assert list(tmp_path.iterdir()) == [file]
    assert record["complete"] and record["promises_kept"]
    assert [entry["name"] for entry in record["shapes"]] == [shape.name for shape in shapes.TINY]
    for entry in record["shapes"]:
        assert entry["name"] in done.stdout
        assert entry["backends"]["forward"] == "fused"
        assert set(entry["errors"]) == {"sdpa", "plain", "observed"}
        ceilings = {name for name in RATIOS if "peak" in name or "mm" in name}
        absent = {"backward", "step", *ceilings} if entry["decode"] else set()
        assert set(entry["ratios"]["1"]) == set(RATIOS) - absent
        for side in entry["times"]["1"]["seconds_a_call"].values():
            assert 0 < side["minimum"] <= side["median"] and side["samples"] >= 2
    assert [row["row"] for row in record["goals"]] == [goal.row for goal in goals.GOALS]
    assert len(record["accuracy"]) == 3
    for goal in goals.GOALS:
        assert goal.row in done.stdout


def test_memory_is_measured_in_bytes_beyond_the_output():
    seconds, peak = map(float, limits.memory_of("attend_observed, causal", 256, "fused").split())
    assert seconds > 0
    assert abs(peak) < limits.MEMORY_LIMIT
    assert set(limits.MEMORY_QUICK) <= set(limits.memory_cases("fused"))


def test_a_shape_that_is_not_there_is_an_error():
    done = run("--shapes", "nowhere")
    assert done.returncode == 2
    assert "no shape has such a name" in done.stderr


@pytest.mark.parametrize("name", [n for n, s in NAMED.items() if s.Lq * s.Lk <= 1024 * 1024])
def test_pairs_are_those_that_the_mask_allows(name: str):
    shape = NAMED[name]
    mask = Causal().dense(range(shape.Lq), shape.Lk, shape.start)
    allowed = int(mask.sum()) if shape.causal else shape.Lq * shape.Lk
    assert shape.pairs == allowed
    assert shape.flops == 4 * shape.B * shape.Hq * allowed * shape.D


def test_names_are_unique_and_select_shapes():
    assert len(shapes.PREFILL) == 10 and len(NAMED) == 15
    assert [s.name for s in shapes.select(["1x12x512x64"])] == ["1x12x512x64", "1x12x512x64 causal"]
    assert all(s.decode for s in shapes.select(["decode"]))
    quick = shapes.select(quick=True)
    for goal in goals.GOALS:  # a quick run has figures in every row
        assert any(goal.shapes(shape) for shape in quick), goal.row


def test_geometric_mean():
    assert timing.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert timing.geometric_mean([3.0]) == pytest.approx(3.0)
    for wrong in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="geometric mean"):
            timing.geometric_mean(wrong)


def test_every_side_is_first_in_turn():
    names = ["a", "b", "c"]
    orders = [timing.turn(names, number) for number in range(6)]
    assert all(sorted(order) == names for order in orders)
    assert {order[0] for order in orders} == {order[-1] for order in orders} == set(names)


def test_paired_ratios_cancel_what_slows_a_round_down():
    slowdown = [1.0, 5.0, 2.0, 9.0, 3.0]
    ratio = timing.paired([3 * s for s in slowdown], [2 * s for s in slowdown])
    assert ratio is not None
    assert (ratio.median, ratio.spread) == (pytest.approx(1.5), pytest.approx(0.0))
    assert timing.paired([1.0], []) is None
    alone = timing.paired([4.0, 1.0], [2.0])
    assert alone is not None and alone.median == 2.0


def test_samples_batch_short_calls_and_long_calls_have_fewer_rounds():
    now = 0.0
    calls = {"short": 0, "long": 0}

    def side(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            now += seconds
            calls[name] += 1

        return call

    sides = {"short": side("short", 1e-3), "long": side("long", 0.1)}
    effort = timing.Effort(sample=5e-3, seconds=0.12, least=2, most=10)
    times = timing.interleaved(sides, {"ceiling": lambda: 7.0}, lambda: now, effort)
    assert times["short"] == pytest.approx([1e-3] * 10)
    assert times["long"] == pytest.approx([0.1] * 2)
    assert times["ceiling"] == [7.0] * 10
    assert calls["short"] >= 50


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("shape", shapes.TINY, ids=lambda shape: shape.name)
def test_softmax_in_the_open_finds_what_is_observed(shape: shapes.Shape, apart: bool):
    case = cases.Case(shape, "fused", apart=apart)
    output, values, indices, largest, received, entropy, position, distance, logsumexp = case.in_the_open()
    torch.testing.assert_close(output, case.sdpa())
    torch.testing.assert_close(output, case.plain())
    _, seen = attend_observed(*case.inputs, watch=cases.WATCH, mask=case.mask, start=shape.start, backend="reference")
    assert seen.top_keys is not None and seen.top_weights is not None
    seeing = seen.top_keys >= 0
    torch.testing.assert_close(values, seen.top_weights)
    torch.testing.assert_close(indices[seeing], seen.top_keys[seeing].long())
    for found, exact in (
        (largest, seen.max_weight),
        (received, seen.received),
        (entropy, seen.entropy),
        (position, seen.mean_position),
        (distance, seen.mean_distance),
        (logsumexp, seen.logsumexp),
    ):
        torch.testing.assert_close(found, exact)


def test_both_sides_have_the_same_gradients():
    sides = cases.backward_sides(cases.Case(shapes.TINY[1], "reference", grad=True))
    expected = sides["sdpa_backward"]()
    for name in ("backward", "sdpa_step", "step", "backward"):  # the graph can be gone through again
        torch.testing.assert_close(sides[name](), expected)


def test_errors_are_those_of_the_output(monkeypatch: pytest.MonkeyPatch):
    case = cases.Case(shapes.TINY[2], "fused")
    found = cases.errors(case)
    assert all(0 < error < 1e-5 for error in found.values())
    wrong = case.sdpa().index_fill(1, torch.tensor([3]), torch.nan)
    monkeypatch.setattr(case, "plain", lambda: wrong)
    assert cases.errors(case)["plain"] == float("inf")


def results(forward: float, over: float) -> list[Result]:
    """Every prefill shape at these two ratios, on two numbers of threads."""
    times = {"sdpa": [forward] * 3, "plain": [1.0] * 3, "observed": [over] * 3}
    errors = {"sdpa": 1e-6, "plain": 1.5e-6, "observed": 3e-6}
    return [Result(shape, times={1: dict(times), 2: dict(times)}, errors=errors) for shape in shapes.PREFILL]


def test_goals_are_judged_by_the_worse_number_of_threads():
    found = results(1.5, 1.1)
    found[0].times[2]["observed"] = [1.3] * 3
    outcomes = {o.goal.row: o for o in report.outcomes_of(found)}
    assert outcomes["forward against SDPA, geometric mean, 1 thread"].met == "goal"
    assert outcomes["forward against SDPA, geometric mean, 2 threads"].met == "reachable"
    assert outcomes["causal, D=64, N ≤ 1024, worst"].met == "no"
    assert outcomes["observed over plain, N ≥ 1024, worst"].met == "reachable"
    short = outcomes["observed over plain, N 128-512, worst"]
    assert short.met == "no"
    assert short.measured == {1: pytest.approx(1.1), 2: pytest.approx(1.3)}
    assert outcomes["error against float64, multiple of SDPA's, worst"].met == "reachable"
    assert outcomes["the same of the observed output, worst"].met == "no"
    nothing = outcomes["decode against SDPA, geometric mean"]
    assert (nothing.met, nothing.covered, nothing.shapes) == (None, 0, 5)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path):
    file = tmp_path / "figures.json"
    report.write_json(file, {"error": float("inf"), "N ≤": 1.5})
    assert json.loads(file.read_text(encoding="utf-8")) == {"error": "Infinity", "N ≤": 1.5}
    before = file.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        report.write_json(file, {"error": object()})
    assert file.read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [file]
