"""The two promises: memory that does not grow with N², and statistics as accurate as float32 allows.

Memory is resident set size, sampled every 10 ms, less that just before the call and less the output; each case runs in
a process of its own.
"""

import math
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from regard import ALiBi, Causal, Padding, Watch, Window, attend, attend_observed

SCRIPT = Path(__file__).resolve().parents[1] / "attention.py"
MEMORY_SHAPE = (1, 8, 16384, 64)  # B, H, N, D
MEMORY_LIMIT = 400e6
MEMORY_QUICK = ("attend, causal", "attend_observed, causal")
EPSILON = torch.finfo(torch.float32).eps


def memory_cases(backend: str) -> dict[str, Callable[[Tensor], object]]:
    """What is measured: a function of x (1, 8, N, 64), its query, key and value at once."""
    plain, observed = partial(attend, backend=backend), partial(attend_observed, watch=Watch(), backend=backend)
    return {
        "attend": lambda x: plain(x, x, x),
        "attend, causal": lambda x: plain(x, x, x, mask=Causal()),
        "attend, window of 256": lambda x: plain(x, x, x, mask=Window(255, 0)),
        "attend, padding": lambda x: plain(x, x, x, mask=Padding(torch.tensor([x.shape[2] - 100]))),
        "attend, ALiBi": lambda x: plain(x, x, x, mask=Causal(), bias=ALiBi.standard(8)),
        "attend_observed": lambda x: observed(x, x, x),
        "attend_observed, causal": lambda x: observed(x, x, x, mask=Causal()),
    }


def memory(length: int, backend: str, names: Sequence[str], found: list[dict[str, object]]) -> bool:
    """Prints the cases and appends them to `found`; whether all keep the promise."""
    B, H, _, D = MEMORY_SHAPE
    matrix = B * H * length * length * 4
    print(f"\nmemory beyond inputs and output at (B, H, N, D) = {(B, H, length, D)}, float32;")
    print(f"the matrix of weights would take {matrix / 1e6:,.0f} MB, the promise is {MEMORY_LIMIT / 1e6:.0f} MB")
    kept = True
    for name in names:
        command = [sys.executable, str(SCRIPT), "--case", name, "--length", str(length), "--backend", backend]
        done = subprocess.run(command, capture_output=True, text=True)
        if "refuses this call" in done.stderr:
            print(f"  {name:26} {done.stderr.strip().splitlines()[-1]}")
            continue
        if done.returncode != 0:
            raise RuntimeError(f"the case {name!r} failed:\n{done.stderr}")
        seconds, peak = map(float, done.stdout.split())
        kept &= peak < MEMORY_LIMIT
        found.append({"case": name, "length": length, "bytes": peak, "matrix_bytes": matrix, "seconds": seconds})
        print(f"  {name:26} {peak / 1e6:7.1f} MB   1/{matrix / max(peak, 1):.0f} of the matrix   {seconds:6.1f} s")
    return kept


def memory_of(name: str, length: int, backend: str) -> str:
    """Measures one case in this process: seconds and bytes."""
    case = memory_cases(backend)[name]
    x = torch.randn(MEMORY_SHAPE[0], MEMORY_SHAPE[1], length, MEMORY_SHAPE[3])
    case(x[:, :, :128])  # what is allocated once, such as thread pools, belongs to no call
    done = threading.Event()
    before = _resident()
    highest = before

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.01):
            highest = max(highest, _resident())

    sampler = threading.Thread(target=sample)
    sampler.start()
    began = time.perf_counter()
    result = case(x)
    seconds = time.perf_counter() - began
    highest = max(highest, _resident())
    done.set()
    sampler.join()
    output = result[0] if isinstance(result, tuple) else result
    assert isinstance(output, Tensor)
    return f"{seconds} {highest - before - output.numel() * output.element_size()}"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def accuracy(backend: str, found: list[dict[str, object]]) -> bool:
    """Every statistic on plain, offset and peaked inputs; an error counts as the smaller of absolute and relative."""
    print("\nlargest error of a statistic against float64 (the smaller of absolute and relative);")
    print("the promise is max(1e-5, 8 eps |s|)")
    kept = True
    for name, shift, factor in (("plain", 0.0, 1.0), ("offset", 100.0, 1.0), ("peaked", 0.0, 30.0)):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 4, 700, 64) * factor + shift for _ in range(3))
        watch = Watch(top=8, segments=torch.arange(700) // 100)
        _, seen = attend_observed(q, k, v, mask=Causal(), watch=watch, backend=backend)
        exact, largest = _exact(q.double(), k.double(), watch)
        promise = max(1e-5, 8 * EPSILON * largest)
        errors = {field: _error(getattr(seen, field), value) for field, value in exact.items()}
        worst = max(errors, key=lambda field: errors[field])
        kept &= errors[worst] <= promise
        found.append({"inputs": name, "errors": errors, "allowed": promise})
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
    return float(torch.minimum(absolute, absolute / exact.abs().clamp(min=1e-300)).nan_to_num(torch.inf).max())
