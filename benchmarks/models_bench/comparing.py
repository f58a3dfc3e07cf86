"""Sides of a comparison that take turns in one process, and the peak memory of each in a process of its own."""

from __future__ import annotations

import importlib.util
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attention_bench.timing import Effort, clock_for, interleaved, paired

SCRIPT = Path(__file__).resolve().parents[1] / "models.py"
OURS, THEIRS = "regard", "transformers"


@dataclass
class Comparison:
    """What was measured of one job.

    Args:
        job: in a sentence.
        seconds: of every side, in rounds.
        goals: how many times as long as regard a side must take.
        peaks: bytes that a process with this side alone comes to hold.
        notes: what else was found: how far answers lie apart, batch sizes that were tried, what is not measured.
    """

    job: str
    seconds: dict[str, list[float]]
    goals: Mapping[str, float] = field(default_factory=dict[str, float])
    peaks: dict[str, int] = field(default_factory=dict[str, int])
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """The same as data, with ratios to regard."""
        sides: dict[str, dict[str, Any]] = {}
        for name, times in self.seconds.items():
            ratio = paired(times, self.seconds[OURS])
            sides[name] = {"seconds": statistics.median(times), "rounds": len(times)}
            if ratio is not None and name != OURS:
                sides[name] |= {"over_regard": ratio.median, "quartiles": [ratio.low, ratio.high]}
            if name in self.goals:
                sides[name] |= {"goal": self.goals[name]}
        return {"job": self.job, "sides": sides, "peak_bytes": self.peaks, **self.notes}

    def print(self) -> None:
        """A table, a line a side."""
        data = self.to_json()
        print(f"\n{self.job}\n{'':44}{'seconds':>9}{'regard is':>17}{'needed':>8}{'peak, MB':>10}")
        for name in dict.fromkeys((*data["sides"], *self.peaks)):
            side = data["sides"].get(name, {})
            seconds = f"{side['seconds']:.2f}" if side else ""
            faster = f"{side['over_regard']:.2f}× as fast" if "over_regard" in side else ""
            goal = f"{side['goal']:.1f}×" if "goal" in side else ""
            peak = f"{self.peaks[name] / 1e6:,.0f}" if name in self.peaks else ""
            print(f"{name:44}{seconds:>9}{faster:>17}{goal:>8}{peak:>10}")
        for name, value in self.notes.items():
            print(f"  {name.replace('_', ' ')}: {_written(value)}")


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_written(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_written, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def compare(sides: Mapping[str, Callable[[], object]], rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of every side, one sample a round, after a call that does not count; see `attention_bench.timing`."""
    return interleaved(sides, {}, clock_for(threads), Effort(sample=1e-4, seconds=0.0, least=rounds, most=rounds))


def absent(packages: Sequence[str]) -> str | None:
    """Which of these packages are not installed, in words; None where all are there."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not measured: {' and '.join(missing)} not installed" if missing else None


def peak_of(job: str, side: str, threads: int, arguments: Sequence[str]) -> int:
    """Bytes that a process of its own comes to hold, with one side's model and one job.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    command = [sys.executable, str(SCRIPT), job, "--threads", str(threads), "--peak", side, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the memory of {side!r} could not be measured:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def own_peak() -> int:
    """Bytes that this process has held at most: of getrusage's figure, a child's begins with its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
