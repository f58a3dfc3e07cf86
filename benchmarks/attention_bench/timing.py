"""Interleaved samples, and ratios that machine noise cancels from.

All sides of a comparison run in one process and take turns: every round takes one sample of each, in an order that
rotates from round to round and is reversed in every other one. A sample is the mean of as many calls as last five
milliseconds. A ratio is the median of the ratios of the rounds, so that whatever slows a round down, another process
or a clock rate that falls, slows down both sides of its ratio. On one thread the clock is the CPU time of the process,
which does not count the time given to others; on more it is wall time.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
Times = dict[str, list[float]]
"""Seconds a call, by side, one sample a round from the first round on."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        sample: seconds that a sample lasts at least.
        seconds: what the samples of one side of one shape may take together, unless `least` needs more.
        least: rounds at least.
        most: rounds at most.
    """

    sample: float = 5e-3
    seconds: float = 1.0
    least: int = 7
    most: int = 60


FULL = Effort()
QUICK = Effort(seconds=0.15, least=2, most=9)
TINY = Effort(sample=1e-4, seconds=1e-3, least=2, most=3)


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios, and their quartiles."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


def clock_for(threads: int) -> Clock:
    """CPU time on one thread, wall time on more."""
    return time.process_time if threads == 1 else time.perf_counter


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    readings: Mapping[str, Callable[[], float]],
    clock: Clock,
    effort: Effort,
) -> Times:
    """Samples of all sides, taken in turn.

    Args:
        sides: calls to be timed, by name.
        readings: functions that time something themselves and return seconds, read once a round.
        clock: what the sides are timed with.
        effort: how long to measure. A side that has had its rounds drops out, the others go on.
    """
    samplers: dict[str, Callable[[], float]] = {}
    rounds: dict[str, int] = {}
    for name, call in sides.items():
        calls, took = warm_up(call, clock, effort.sample)
        samplers[name] = lambda call=call, calls=calls: batch(call, calls, clock) / calls
        rounds[name] = _rounds(took, effort)
    for name, read in readings.items():
        samplers[name] = read
        rounds[name] = min(_rounds(batch(read, 1, time.perf_counter), effort), max(rounds.values()))
    times: Times = {name: [] for name in samplers}
    for number in range(max(rounds.values(), default=0)):
        for name in turn(list(samplers), number):
            if number < rounds[name]:
                times[name].append(samplers[name]())
    return times


def turn(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: another one is first each time, and every other round runs backwards."""
    first = number % len(names)
    order = [*names[first:], *names[:first]]
    return order if number % 2 == 0 else order[::-1]


def warm_up(call: Callable[[], object], clock: Clock, sample: float) -> tuple[int, float]:
    """How many calls last for `sample` seconds, and what they took; the first call does not count unless it is slow."""
    took = batch(call, 1, clock)
    if took > 50 * sample:
        return 1, took
    calls = 1
    while (took := batch(call, calls, clock)) < sample:
        calls = math.ceil(calls * min(10.0, 1.2 * sample / max(took, 1e-9)))
    return calls, took


def batch(call: Callable[[], object], calls: int, clock: Clock) -> float:
    """Seconds of `calls` calls."""
    began = clock()
    for _ in range(calls):
        call()
    return clock() - began


def _rounds(took: float, effort: Effort) -> int:
    return min(max(int(effort.seconds / max(took, 1e-9)), effort.least), effort.most)


def paired(above: Sequence[float], below: Sequence[float]) -> Ratio | None:
    """The ratio of two sides, from the rounds that have both; None without any."""
    ratios = [a / b for a, b in zip(above, below, strict=False)]
    if not ratios:
        return None
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product of n positive values.

    Raises:
        ValueError: there are none, or one is not positive.
    """
    if not values or min(values) <= 0:
        raise ValueError(f"values are {list(values)}; a geometric mean needs at least one, all positive")
    return math.exp(sum(map(math.log, values)) / len(values))
