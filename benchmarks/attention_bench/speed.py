"""Every shape, on every number of threads."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from attention_bench.cases import Case, backward_sides, errors, forward_sides
from attention_bench.machine import gemm_reading, peak_reading
from attention_bench.shapes import Shape
from attention_bench.timing import Clock, Effort, Ratio, Times, clock_for, interleaved, paired

PARTS = ("forward", "observed", "backward", "decode")

# Each ratio: the side above and the side below. Where the rival is above, more is better.
RATIOS = {
    "forward": ("sdpa", "plain"),
    "observed over plain": ("observed", "plain"),
    "kept over plain": ("kept", "plain"),
    "observed against SDPA": ("sdpa", "observed"),
    "observed against the open": ("open", "observed"),
    "backward": ("sdpa_backward", "backward"),
    "step": ("sdpa_step", "step"),
    "share of peak": ("peak", "plain"),
    "SDPA's share of peak": ("peak", "sdpa"),
    "share of torch.mm": ("gemm", "plain"),
    "peak over torch.mm": ("gemm", "peak"),
}


@dataclass
class Result:
    """What was measured of one shape."""

    shape: Shape
    backends: dict[str, str] = field(default_factory=dict)  # which one served "forward" and "backward"
    times: dict[int, Times] = field(default_factory=dict)  # by number of threads
    errors: dict[str, float] = field(default_factory=dict)  # by side, against float64

    def ratio(self, name: str, threads: int) -> Ratio | None:
        """One of RATIOS, or None where it was not measured."""
        above, below = RATIOS[name]
        times = self.times.get(threads, {})
        return paired(times.get(above, []), times.get(below, []))

    def error_ratio(self, side: str = "plain") -> float | None:
        """The largest error of a side as a multiple of SDPA's."""
        if not self.errors:
            return None
        return self.errors[side] / max(self.errors["sdpa"], 1e-30)


class Progress:
    """Lines on stderr, with the seconds since the start."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """What to measure: parts of PARTS, numbers of threads, for how long, on which backend, laid out how."""

    shapes: Sequence[Shape]
    parts: Sequence[str]
    threads: Sequence[int]
    effort: Effort
    backend: str
    apart: bool = False  # see `Case`


def measure(plan: Plan, results: dict[str, Result], say: Progress) -> None:
    """Fills in `results` shape by shape, so that what is there survives an interruption.

    One number of threads is finished before the next begins: idle workers of a larger team would otherwise spin into
    the CPU time of a smaller one.
    """
    shapes = [shape for shape in plan.shapes if _parts_of(shape, plan.parts)]
    for threads in plan.threads:
        torch.set_num_threads(threads)
        for number, shape in enumerate(shapes, 1):
            say(f"{threads} thread{'s' * (threads > 1)}, {number} of {len(shapes)}: {shape.name}")
            result = results.get(shape.name, Result(shape))
            try:
                _measure_shape(plan, result, threads)
            except ValueError as refusal:
                if "refuses this call" not in str(refusal):
                    raise
                say(f"left out: {refusal}")
            else:
                results[shape.name] = result


def _parts_of(shape: Shape, parts: Sequence[str]) -> list[str]:
    """Which parts measure a shape: decoding is a part of its own."""
    return [part for part in parts if (part == "decode") == shape.decode]


def _measure_shape(plan: Plan, result: Result, threads: int) -> None:
    shape, clock, times = result.shape, clock_for(threads), {}
    parts = _parts_of(shape, plan.parts)
    if parts != ["backward"]:
        case = Case(shape, plan.backend, apart=plan.apart)
        result.backends["forward"] = case.served_by()
        observed = shape.decode or "observed" in parts
        with torch.no_grad():
            if not result.errors:
                result.errors = errors(case)
            sides = forward_sides(case, observed=observed)
            times |= interleaved(sides, _readings(shape, clock, threads), clock, plan.effort)
    if "backward" in parts:
        case = Case(shape, plan.backend, grad=True, apart=plan.apart)
        result.backends["backward"] = case.served_by()
        times |= interleaved(backward_sides(case), {}, clock, plan.effort)
    result.times[threads] = times


def _readings(shape: Shape, clock: Clock, threads: int) -> dict[str, Callable[[], float]]:
    """The ceilings of one core, which torch.mm stands in for where nothing measures the peak.

    None for decoding, which reads memory more than it computes.
    """
    if threads > 1 or shape.decode:
        return {}
    gemm = gemm_reading(shape.flops, clock)
    return {"gemm": gemm, "peak": peak_reading(shape.flops) or gemm}
