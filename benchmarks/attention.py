"""Memory, accuracy and cost of attention that says what it saw.

    python benchmarks/attention.py            everything, about three minutes
    python benchmarks/attention.py memory     peak memory at 16,384 elements, each case in a process of its own
    python benchmarks/attention.py accuracy   largest error of every statistic against float64
    python benchmarks/attention.py speed      observed and plain against torch's SDPA, ratios of CPU time

Memory is resident set size, sampled every 10 ms, less that just before the call and less the output.
"""

import argparse
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from regard import ALiBi, Causal, Padding, Watch, Window, attend, attend_observed

MEMORY_SHAPE = (1, 8, 16384, 64)  # B, H, N, D
MEMORY_LIMIT = 400e6
EPSILON = torch.finfo(torch.float32).eps


def main() -> int:
    """Run what was asked for; 1 if a promised figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[[], "memory", "accuracy", "speed"], help="default: all")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one memory measurement, in this process
    parser.add_argument("--length", type=int, default=MEMORY_SHAPE[2], help="elements, for memory")
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(_peak(memory_cases()[arguments.case], arguments.length))
        return 0
    what = arguments.what or ["memory", "accuracy", "speed"]
    kept = True
    if "memory" in what:
        kept &= _memory(arguments.length)
    if "accuracy" in what:
        kept &= _accuracy()
    if "speed" in what:
        _speed()
    return 0 if kept else 1


def memory_cases() -> dict[str, Callable[[Tensor], object]]:
    """What is measured: a function of x (1, 8, N, 64), its query, key and value at once."""
    return {
        "attend": lambda x: attend(x, x, x),
        "attend, causal": lambda x: attend(x, x, x, mask=Causal()),
        "attend, window of 256": lambda x: attend(x, x, x, mask=Window(255, 0)),
        "attend, padding": lambda x: attend(x, x, x, mask=Padding(torch.tensor([x.shape[2] - 100]))),
        "attend, ALiBi": lambda x: attend(x, x, x, mask=Causal(), bias=ALiBi.standard(8)),
        "attend_observed": lambda x: attend_observed(x, x, x, watch=Watch()),
        "attend_observed, causal": lambda x: attend_observed(x, x, x, mask=Causal(), watch=Watch()),
    }


def _memory(length: int) -> bool:
    B, H, _, D = MEMORY_SHAPE
    matrix = B * H * length * length * 4
    print(f"memory beyond inputs and output at (B, H, N, D) = {(B, H, length, D)}, float32;")
    print(f"the matrix of weights would take {matrix / 1e6:,.0f} MB, the promise is {MEMORY_LIMIT / 1e6:.0f} MB")
    kept = True
    for name in memory_cases():
        command = [sys.executable, str(Path(__file__)), "--case", name, "--length", str(length)]
        seconds, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        kept &= peak < MEMORY_LIMIT
        print(f"  {name:26} {peak / 1e6:7.1f} MB   1/{matrix / max(peak, 1):.0f} of the matrix   {seconds:6.1f} s")
    return kept


def _peak(case: Callable[[Tensor], object], length: int) -> str:
    x = torch.randn(MEMORY_SHAPE[0], MEMORY_SHAPE[1], length, MEMORY_SHAPE[3])
    case(x[:, :, :128])  # what is allocated once, such as thread pools, belongs to no call
    page, done = 4096, threading.Event()
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * page  # noqa: E731
    before = resident()
    highest = before

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.01):
            highest = max(highest, resident())

    sampler = threading.Thread(target=sample)
    sampler.start()
    began = time.perf_counter()
    result = case(x)
    seconds = time.perf_counter() - began
    highest = max(highest, resident())
    done.set()
    sampler.join()
    output = result[0] if isinstance(result, tuple) else result
    assert isinstance(output, Tensor)
    return f"{seconds} {highest - before - output.numel() * output.element_size()}"


def _accuracy() -> bool:
    """Every statistic on plain, offset and peaked inputs; an error counts as the smaller of absolute and relative."""
    print("largest error against float64 (the smaller of absolute and relative), and the promise max(1e-5, 8 eps |s|)")
    kept = True
    for name, shift, factor in (("plain", 0.0, 1.0), ("offset", 100.0, 1.0), ("peaked", 0.0, 30.0)):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 4, 700, 64) * factor + shift for _ in range(3))
        watch = Watch(top=8, segments=torch.arange(700) // 100)
        _, seen = attend_observed(q, k, v, mask=Causal(), watch=watch)
        exact, largest = _exact(q.double(), k.double(), watch)
        promise = max(1e-5, 8 * EPSILON * largest)
        errors = {field: _error(getattr(seen, field), value) for field, value in exact.items()}
        worst = max(errors, key=lambda field: errors[field])
        kept &= errors[worst] <= promise
        print(f"  {name:7} {errors[worst]:.1e} ({worst}) of {promise:.1e} allowed; largest |score| {largest:.0f}")
    return kept


def _exact(q: Tensor, k: Tensor, watch: Watch) -> tuple[dict[str, Tensor], float]:
    """The statistics of causal attention in float64, from the matrix, and the largest score."""
    n = q.shape[2]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    raw = q @ k.transpose(-1, -2) / math.sqrt(q.shape[3])
    s = raw.masked_fill(j > i, -torch.inf)
    p = s.softmax(-1)
    assert watch.segments is not None
    onehot = (watch.segments[:, None] == torch.arange(int(watch.segments.max()) + 1)).double()
    top = p.topk(watch.top, -1).values
    exact = {
        "logsumexp": s.logsumexp(-1),
        "max_weight": p.amax(-1),
        "top_weights": top,
        "rest": 1 - top.sum(-1),
        "entropy": torch.special.entr(p).sum(-1),
        "mean_position": (p * j).sum(-1),
        "mean_distance": (p * (i - j).abs()).sum(-1),
        "received": p.sum(-2),
        "segment_mass": p @ onehot,
    }
    return exact, float(raw[s > -torch.inf].abs().max())


def _error(found: Tensor, exact: Tensor) -> float:
    absolute = (found.double() - exact).abs()
    return float(torch.minimum(absolute, absolute / exact.abs().clamp(min=1e-300)).max())


def _speed() -> None:
    """CPU time on one thread."""
    torch.set_num_threads(1)
    print("CPU time on one thread: torch's SDPA, and ratios to it (medians of 4, the sides in turn)")
    print(f"  {'B H N D':18} {'SDPA':>9} {'attend':>8} {'observed':>9} {'in the open, same statistics':>30}")
    for shape, causal in (
        ((8, 12, 128, 64), False),
        ((1, 12, 512, 64), False),
        ((1, 8, 2048, 64), False),
        ((1, 8, 2048, 64), True),
    ):
        sdpa, plain, observed, opened = _times(shape, causal)
        name = " ".join(map(str, shape)) + (" causal" if causal else "")
        print(f"  {name:18} {sdpa * 1e3:6.1f} ms {plain / sdpa:7.2f}x {observed / sdpa:8.2f}x {opened / sdpa:29.2f}x")


def _times(shape: tuple[int, int, int, int], causal: bool) -> list[float]:
    """Seconds of each side."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(shape) for _ in range(3))
    mask = Causal() if causal else None
    sides: tuple[Callable[[], object], ...] = (
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
        lambda: attend(q, k, v, mask=mask),
        lambda: attend_observed(q, k, v, mask=mask, watch=Watch()),
        lambda: _in_the_open(q, k, v, causal),
    )
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(5):
        for side, taken in zip(sides, times, strict=True):
            began = time.process_time()
            side()
            taken.append(time.process_time() - began)
    return [statistics.median(taken[1:]) for taken in times]


def _in_the_open(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> object:
    """What one writes by hand: the whole matrix, then its statistics."""
    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[3])
    if causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    p = s.softmax(-1)
    j = torch.arange(k.shape[2], dtype=torch.float32)
    distance = (j - j[:, None]).abs()
    return (
        p @ v,
        p.topk(8, -1),
        p.sum(-2),
        torch.special.entr(p).sum(-1),
        p @ j,
        (p * distance).sum(-1),
        s.logsumexp(-1),
    )


if __name__ == "__main__":
    sys.exit(main())
