"""The tables and the JSON."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention_bench.goals import GOALS, Outcome, outcome
from attention_bench.shapes import DECODE, PREFILL
from attention_bench.speed import RATIOS, Result
from attention_bench.timing import Times
from regard.files import write_atomically

NOTHING = "–"

LEGEND = """\
forward     SDPA's time / attend's          obs/plain  attend_observed's time / attend's (less is better)
obs:SDPA    SDPA's plain time / observed    obs:open   softmax in the open with the same statistics / observed
backward    SDPA's / attend's               peak       attend's share of the {peak}, on one core
err         largest error of the output against float64, attend's and SDPA's, and the one over the other
a/b: {threads}. Ratios are medians over paired rounds; above 1 is faster, except in obs/plain."""


def print_machine(machine: dict[str, Any], backend: str, threads: Sequence[int]) -> None:
    """The lines at the top."""
    isa, load, cores = machine["native_isa"], machine["load_average"], machine["cores"]
    held = "".join(f", {name}={value}" for name, value in machine["torch_held_to"].items())
    print(f"{machine['processor']}, {cores} cores for this process, {machine['system']}")
    print(f"torch {machine['torch']}, vectors: {machine['torch_capability']}{held}")
    print(f"regard {machine['regard']}, backend {backend}; native kernel: {isa or 'there is none'}")
    if isa is None:
        print("nothing here measures the FMA peak: the rate of torch.mm stands in for it")
    elif not machine["native_backend"]:
        print("the native kernel is no backend here: it serves no call")
    if load > 0.5:
        print(f"load average {load:.1f}: other work is running; times and ratios mean little")
    if cores < max(threads):
        print(f"{max(threads)} threads on {cores} cores: their times mean nothing")


def print_table(results: Sequence[Result], threads: Sequence[int], peak: str) -> None:
    """A line a shape."""
    heads = ("forward", "obs/plain", "obs:SDPA", "obs:open", "backward")
    print(f"\n{'shape':23}{'SDPA ms':>9}", *(f"{head:>11}" for head in heads), sep="", end="")
    print(f"{'peak':>6}{'err':>10}{'SDPA err':>10}{'ratio':>7}")
    for result in results:
        print(_line(result, threads))
    clocks = {t: "1 thread, CPU time" if t == 1 else f"{t} threads, wall time" for t in threads}
    print(LEGEND.format(peak=peak, threads=" / ".join(clocks.values())))
    _print_notes(results, threads)
    low = [ratio for r in results if (ratio := r.ratio("peak over torch.mm", 1)) and ratio.median < 0.95]
    if low and peak == "FMA peak":
        print(f"torch.mm beat the {peak} beside {len(low)} shapes: it has wider vectors, or the peak is wrong")


def _print_notes(results: Sequence[Result], threads: Sequence[int]) -> None:
    """How far the ratios spread, and who served the calls."""
    spreads = sorted(
        (ratio.spread, f"{name}, {t} thread{'s' * (t > 1)}, {result.shape.name}")
        for result in results
        for t in threads
        for name in RATIOS
        if (ratio := result.ratio(name, t)) is not None
    )
    if spreads:
        middle, (widest, where) = statistics.median(spread for spread, _ in spreads), spreads[-1]
        print(f"half the distance between a ratio's quartiles: {middle:.1%} of it in the middle,", end=" ")
        print(f"{widest:.1%} at most ({where})")
    print(f"served by: {', '.join(sorted({name for result in results for name in result.backends.values()}))}")


def _line(result: Result, threads: Sequence[int]) -> str:
    columns = ("forward", "observed over plain", "observed against SDPA", "observed against the open", "backward")
    sdpa = [t["sdpa"] for t in result.times.values() if t.get("sdpa")]
    first = f"{statistics.median(sdpa[0]) * 1e3:.2f}" if sdpa else NOTHING
    cells = "".join(f"{_cell(result, name, threads):>11}" for name in columns)
    share = result.ratio("share of peak", 1)
    peak = NOTHING if share is None else f"{share.median:.0%}"
    error = result.error_ratio()
    errors = f"{NOTHING:>10}{NOTHING:>10}{NOTHING:>7}"
    if error is not None:
        errors = f"{result.errors['plain']:10.1e}{result.errors['sdpa']:10.1e}{error:7.2f}"
    return f"{result.shape.name:23}{first:>9}{cells}{peak:>6}{errors}"


def _cell(result: Result, name: str, threads: Sequence[int]) -> str:
    ratios = [result.ratio(name, t) for t in threads]
    if not any(ratios):
        return NOTHING
    return "/".join(NOTHING if r is None else number(r.median) for r in ratios)


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def print_goals(outcomes: Sequence[Outcome]) -> None:
    """The summary: every row with its figures."""
    print(f"\n{'':56}{'reachable':>10}{'goal':>7}  {'measured (by threads)':28}{'shapes':>8}  met")
    for o in outcomes:
        found = ", ".join(f"{number(v)} ({t})" if t else number(v) for t, v in o.measured.items()) or NOTHING
        sign = "≤ " if o.goal.gather is max else ""
        bounds = [NOTHING if b is None else sign + number(b) for b in (o.goal.reachable, o.goal.goal)]
        met = o.met or NOTHING
        print(f"{o.goal.row:56}{bounds[0]:>10}{bounds[1]:>7}  {found:28}{f'{o.covered}/{o.shapes}':>8}  {met}")
    few = [o for o in outcomes if 0 < o.covered < o.shapes]
    if few:
        print("Rows over fewer shapes than there are stand for those alone.")


def outcomes_of(results: Sequence[Result]) -> list[Outcome]:
    """Every row of GOALS."""
    return [outcome(goal, results, (*PREFILL, *DECODE)) for goal in GOALS]


def shapes_to_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """Sizes, times (seconds), ratios and errors of each shape."""
    return [
        {
            "name": result.shape.name,
            "why": result.shape.why,
            "sizes": {name: getattr(result.shape, name) for name in ("B", "Hq", "Hkv", "Lq", "Lk", "D")},
            "causal": result.shape.causal,
            "decode": result.shape.decode,
            "flops": result.shape.flops,
            "backends": result.backends,
            "times": {str(t): _times_to_json(t, times) for t, times in result.times.items()},
            "ratios": {str(t): _ratios_to_json(result, t) for t in result.times},
            "errors": result.errors,
            "error_ratio": result.error_ratio(),
        }
        for result in results
    ]


def _times_to_json(threads: int, times: Times) -> dict[str, object]:
    sides = {
        side: {"median": statistics.median(samples), "minimum": min(samples), "samples": len(samples)}
        for side, samples in times.items()
        if samples
    }
    return {"clock": "cpu" if threads == 1 else "wall", "seconds_a_call": sides}


def _ratios_to_json(result: Result, threads: int) -> dict[str, object]:
    ratios = {name: result.ratio(name, threads) for name in RATIOS}
    return {
        name: {"median": r.median, "low_quartile": r.low, "high_quartile": r.high}
        for name, r in ratios.items()
        if r is not None
    }


def goals_to_json(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Every row with its bounds, what was measured, and whether it is met."""
    return [
        {
            "row": o.goal.row,
            "reachable": o.goal.reachable,
            "goal": o.goal.goal,
            "less_is_better": o.goal.gather is max,
            "measured": {str(t) if t else "any": value for t, value in o.measured.items()},
            "shapes_measured": o.covered,
            "shapes": o.shapes,
            "met": o.met,
        }
        for o in outcomes
    ]


def write_json(path: Path, record: dict[str, object]) -> None:
    """Writes a file that is there whole or not at all; an infinite figure becomes the text "Infinity"."""
    finite = json.loads(json.dumps(record), parse_constant=str)
    write_atomically(path, (json.dumps(finite, indent=1, ensure_ascii=False) + "\n").encode())
