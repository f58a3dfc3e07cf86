"""The rows that the native kernel is held to, and whether they are met.

`reachable` is what a prototype of the kernel reached, `goal` what the kernel aims for. A row is met on every number of
threads that was measured or not at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attention_bench.shapes import Shape
from attention_bench.speed import Result
from attention_bench.timing import geometric_mean

Gather = Callable[[Sequence[float]], float]


def anywhere(shape: Shape) -> bool:
    """Every shape."""
    return True


def whole(shape: Shape) -> bool:
    """Prefill: a whole sequence at once."""
    return not shape.decode


def step(shape: Shape) -> bool:
    """Decoding: one row."""
    return shape.decode


def causal(shape: Shape) -> bool:
    """Prefill with the causal mask."""
    return whole(shape) and shape.causal


def plain(shape: Shape) -> bool:
    """Prefill without a mask."""
    return whole(shape) and not shape.causal


def brief_causal(shape: Shape) -> bool:
    """Causal prefill of at most 1,024 elements, heads of 64."""
    return causal(shape) and shape.D == 64 and shape.Lk <= 1024


def wide(shape: Shape) -> bool:
    """Prefill with heads of 128."""
    return whole(shape) and shape.D == 128


def long(shape: Shape) -> bool:
    """Prefill of 1,024 elements and more."""
    return whole(shape) and shape.Lk >= 1024


def short(shape: Shape) -> bool:
    """Prefill of 128 to 512 elements."""
    return whole(shape) and 128 <= shape.Lk <= 512


@dataclass(frozen=True)
class Goal:
    """One row.

    Args:
        row: what it says.
        ratio: a name of RATIOS, or "error of plain" or "error of observed".
        shapes: which shapes it is about.
        gather: from their values to one: `geometric_mean`, or the worst by `min` or `max`; with `max` less is better.
        reachable: None where nothing was promised.
        goal: None where nothing was promised.
        threads: the one number of threads that it is about; None for each.
    """

    row: str
    ratio: str
    shapes: Callable[[Shape], bool]
    gather: Gather
    reachable: float | None = None
    goal: float | None = None
    threads: int | None = None


GOALS = (
    Goal("forward against SDPA, geometric mean, 1 thread", "forward", whole, geometric_mean, 1.30, 1.40, 1),
    Goal("forward against SDPA, geometric mean, 2 threads", "forward", whole, geometric_mean, 1.45, 1.55, 2),
    Goal("causal, D=64, N ≤ 1024, worst", "forward", brief_causal, min, 1.7, 2.0),
    Goal("D=128, worst", "forward", wide, min, 1.1, 1.25),
    Goal("share of peak, D=64, N ≥ 1024, worst", "share of peak", lambda s: long(s) and s.D == 64, min, 0.78, 0.86),
    Goal("observed over plain, N ≥ 1024, worst", "observed over plain", long, max, 1.15, 1.08),
    Goal("observed over plain, N 128-512, worst", "observed over plain", short, max, 1.25, 1.15),
    Goal("observed against SDPA's plain, worst prefill", "observed against SDPA", whole, min, 1.0, 1.0),
    Goal("observed against SDPA's plain, worst decode", "observed against SDPA", step, min, None, 1.0),
    Goal("observed against softmax in the open, worst prefill", "observed against the open", whole, min, 5.0),
    Goal("observed against softmax in the open, worst causal", "observed against the open", causal, min, 5.0, 12.0),
    Goal("backward against SDPA's, plain, geometric mean", "backward", plain, geometric_mean, 1.3, 1.5),
    Goal("backward against SDPA's, causal, geometric mean", "backward", causal, geometric_mean, 1.8, 2.0),
    Goal("error against float64, multiple of SDPA's, worst", "error of plain", anywhere, max, 2.0, 1.0),
    Goal("the same of the observed output, worst", "error of observed", anywhere, max, 2.0, 1.0),
    Goal("decode against SDPA, geometric mean", "forward", step, geometric_mean, 1.45, 1.77),
    Goal("decode, observed over plain, worst", "observed over plain", step, max),
    Goal("decode, observed against softmax in the open, worst", "observed against the open", step, min),
    Goal("forward and backward against SDPA's, geometric mean", "step", whole, geometric_mean),
    Goal("observed with keep=True over plain, worst prefill", "kept over plain", whole, max),
)


@dataclass(frozen=True)
class Outcome:
    """A row with what was measured."""

    goal: Goal
    measured: dict[int, float]  # by number of threads; 0 where they do not matter
    covered: int  # shapes that were measured
    shapes: int  # shapes that the row is about

    @property
    def met(self) -> str | None:
        """The higher bound that is met, "goal" or "reachable", or "no"; None: nothing was promised or measured."""
        smaller = self.goal.gather is max
        if not self.measured or (self.goal.reachable is None and self.goal.goal is None):
            return None
        worst = max(self.measured.values()) if smaller else min(self.measured.values())
        for name, bound in (("goal", self.goal.goal), ("reachable", self.goal.reachable)):
            if bound is not None and (worst <= bound if smaller else worst >= bound):
                return name
        return "no"


def outcome(goal: Goal, results: Sequence[Result], every: Sequence[Shape]) -> Outcome:
    """What the results say about a row; `every` is all shapes that there are."""
    chosen = [result for result in results if goal.shapes(result.shape)]
    found: dict[int, list[float]] = {}
    for result in chosen:
        for threads, value in _values(goal, result).items():
            found.setdefault(threads, []).append(value)
    covered = max(map(len, found.values()), default=0)
    return Outcome(
        goal, {t: goal.gather(v) for t, v in sorted(found.items())}, covered, sum(goal.shapes(s) for s in every)
    )


def _values(goal: Goal, result: Result) -> dict[int, float]:
    if goal.ratio.startswith("error of "):
        error = result.error_ratio(goal.ratio.removeprefix("error of "))
        return {} if error is None else {0: error}
    threads = result.times if goal.threads is None else (goal.threads,)
    ratios = {t: result.ratio(goal.ratio, t) for t in threads}
    return {t: ratio.median for t, ratio in ratios.items() if ratio is not None}
