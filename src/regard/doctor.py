"""What `regard doctor` finds out: versions, attention backends, and whether they compute what they should.

`examine` returns everything as plain data; `lines` is the same for a person, a line at a time as it is found.
"""

from __future__ import annotations

import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from regard.attention.dispatch import BACKENDS, attend, attend_observed, choose
from regard.attention.mask import Causal, Mask, Padding, Window
from regard.attention.native import library
from regard.attention.observation import Observation, Watch
from regard.attention.position import ALiBi
from regard.attention.request import Bias, checked

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LARGEST_ERROR = {"float32": 1e-5, "bfloat16": 2**-7}
"""How far an output may be from the definition in float64, as a share of the largest number in it."""

LARGEST_STATISTICS_ERROR = 1e-4
"""The same for what was seen, which is accumulated in float32 whatever the input."""

STATISTICS = ("logsumexp", "max_weight", "rest", "entropy", "mean_distance", "received", "top_weights")
SPEED_SHAPE = (1, 8, 1024, 64)
SPEED_SECONDS = 0.6

Examination = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One small call that every backend is tried on."""

    name: str
    Lq: int
    Lk: int
    Hkv: int = 4
    mask: Mask | None = None
    bias: Bias | None = None
    start: int = 0
    softcap: float | None = None
    sinks: bool = False


HEADS = 4
TOP = 4
CASES = (
    Case("every key", 130, 130),
    Case("causal, two key heads", 200, 200, Hkv=2, mask=Causal()),
    Case("causal, from the cache", 1, 333, Hkv=1, mask=Causal(), start=332),
    Case("padded window", 96, 96, mask=Padding(torch.tensor([70, 0])) & Window(left=20, right=5)),
    Case("distances, cap and sinks", 64, 90, bias=ALiBi(torch.tensor([0.5, 0.25, 0.1, 0.0])), softcap=5.0, sinks=True),
)


def examine(found: Callable[[str, Any], None] = lambda name, value: None) -> Examination:
    """Everything, with a self-check of about a second.

    Args:
        found: called with the name and value of each part as soon as it is known.

    Returns:
        What `regard doctor --json` prints; "healthy" says whether all is well.
    """
    examination: Examination = {}

    def note(name: str, value: Any) -> None:
        examination[name] = value
        found(name, value)

    note("versions", _versions())
    note("native", _native())
    note("threads", _threads())
    note("models", _models())
    note("attention", {"backends": list(BACKENDS), "automatic": _automatic()})
    note("self_check", _self_check())
    failed = any(result["state"] == "failed" for result in examination["self_check"])
    note("speed", None if failed or not examination["native"]["available"] else _speed())
    note("healthy", not failed and examination["native"]["setting_error"] is None)
    return examination


def _versions() -> dict[str, str]:
    """Of Python, of regard, and of what regard needs."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    try:
        needed = [text for text in metadata.requires("regard") or [] if "extra ==" not in text]
        names = ["regard", *(re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in needed)]
    except metadata.PackageNotFoundError:  # run from the sources, without an install
        names = ["torch", "numpy"]
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def _native() -> dict[str, Any]:
    setting_error = None
    why = None
    try:
        why = library.why_missing()
    except library.SettingError as error:
        setting_error = why = str(error)
    there = why is None
    return {
        "available": there,
        "why_missing": why,
        "setting_error": setting_error,
        "isa": library.isa() if there else None,
        "isas": library.isas() if there else [],
        "path": getattr(library.load(), "_name", None) if there else None,
    }


def _threads() -> dict[str, Any]:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "torch": torch.get_num_threads(),
        "processors": processors,
        "openmp": library.openmp() is not None,
    }


def _models() -> dict[str, str]:
    from regard.models.registry import embedded_models

    return {name: str(directory) for name, directory in embedded_models().items()}


def _automatic() -> str | None:
    """The backend that `auto` takes for an ordinary call on the CPU, or None where a setting keeps it from choosing."""
    tensor = torch.zeros(1, 8, 128, 64)
    try:
        chosen = choose(checked(tensor, tensor, tensor))
    except ValueError:
        return None
    return next(name for name, backend in BACKENDS.items() if backend is chosen)


# -- The self-check


def _self_check() -> list[dict[str, Any]]:
    """One result for each backend and dtype."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # PyTorch's threads wait for each other at every step: on a busy machine for long
        for case in CASES:
            for dtype in DTYPES:
                _truth(case, dtype)
        results: list[dict[str, Any]] = []
        for backend in BACKENDS:
            torch.set_num_threads(threads if backend == "native" else 1)  # how native shares its work is checked, too
            results += [_checked_backend(backend, dtype) for dtype in DTYPES]
        return results
    finally:
        torch.set_num_threads(threads)


def _checked_backend(backend: str, dtype: str) -> dict[str, Any]:
    """The largest error over all cases and fields, as a share of what is allowed."""
    result: dict[str, Any] = {"backend": backend, "dtype": dtype, "state": "passed", "error": None}
    refused: dict[str, str] = {}
    worst = -1.0
    for case in CASES:
        tensors, options = _call(case, DTYPES[dtype])
        try:
            reason = BACKENDS[backend].refuses(checked(*tensors, **options))
            errors = {} if reason is not None else _errors(backend, case, dtype)
        except Exception as error:  # whatever it is, it is what was to be found out
            message = " ".join(f"{type(error).__name__}: {error}".split())
            return {**result, "state": "failed", "error": None, "case": case.name, "reason": message}
        if reason is not None:
            refused[case.name] = reason
        for field, error in errors.items():
            if not math.isfinite(error):
                reason = f"{field} has no value, or none that is finite, where it should"
                return {**result, "state": "failed", "error": None, "case": case.name, "reason": reason}
            allowed = LARGEST_ERROR[dtype] if field == "output" else LARGEST_STATISTICS_ERROR
            if error / allowed > worst:
                worst = error / allowed
                result |= {"error": error, "allowed": allowed, "case": case.name, "field": field}
    if len(refused) == len(CASES):
        return {**result, "state": "refused", "reason": next(iter(refused.values()))}
    return {**result, "state": "passed" if worst <= 1 else "failed", "refused": refused}


def _call(case: Case, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Inputs, the same at every examination and for every backend."""
    random = torch.Generator().manual_seed(0)
    shapes = ((HEADS, case.Lq, 64), (case.Hkv, case.Lk, 64), (case.Hkv, case.Lk, 64))
    query, key, value = (torch.randn(2, *shape, generator=random).to(dtype) for shape in shapes)
    sinks = torch.randn(HEADS, generator=random) if case.sinks else None
    options = {"mask": case.mask, "bias": case.bias, "start": case.start, "softcap": case.softcap, "sink_logits": sinks}
    return (query, key, value), options


@cache
def _truth(case: Case, dtype: str) -> tuple[Tensor, Observation, Tensor]:
    """By the definition, in float64: the output, what was seen, and every weight."""
    tensors, options = _call(case, DTYPES[dtype])
    exact = (tensor.double() for tensor in tensors)
    output, seen = attend_observed(*exact, **options, watch=Watch(top=TOP), backend="reference")
    return output, seen, seen.weights()


def _errors(backend: str, case: Case, dtype: str) -> dict[str, float]:
    """Of the output, observed and not, and of each statistic."""
    tensors, options = _call(case, DTYPES[dtype])
    expected, truth, weights = _truth(case, dtype)
    output = attend(*tensors, **options, backend=backend)
    observed, seen = attend_observed(*tensors, **options, watch=Watch(top=TOP), backend=backend)
    errors = {name: _error(getattr(seen, name), getattr(truth, name)) for name in STATISTICS}
    errors["output"] = max(_error(output, expected), _error(observed, expected))
    errors["top_keys"] = _error(_weights_at(weights, seen.top_keys), truth.top_weights)
    return errors


def _weights_at(weights: Tensor, keys: Tensor | None) -> Tensor | None:
    """The exact weights of the keys that a backend names as those with the largest ones."""
    return None if keys is None else weights.gather(-1, keys.long().clamp(min=0)).masked_fill(keys < 0, 0)


def _error(found: Tensor | None, expected: Tensor | None) -> float:
    """The largest difference, as a share of the largest number expected; infinite where something is missing."""
    if found is None or expected is None or found.shape != expected.shape:
        return float("inf")
    found, expected = found.double(), expected.double()
    same = (found == expected) | (found.isnan() & expected.isnan())  # -inf and NaN are right where they are expected
    if bool(same.all()):
        return 0.0
    scale = float(expected[expected.isfinite()].abs().max()) or 1.0
    return float((found - expected)[~same].abs().max()) / scale


# -- Speed


def _speed() -> dict[str, Any]:
    """How long the native kernel takes, plain and observed, as a share of what PyTorch's fused attention takes."""
    query, key, value = torch.randn(3, *SPEED_SHAPE).unbind()
    watch = Watch(keep=False)
    calls: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value),
        "native": lambda: attend(query, key, value, backend="native"),
        "observed": lambda: attend_observed(query, key, value, watch=watch, backend="native"),
    }
    fastest = dict.fromkeys(calls, float("inf"))
    rounds, end = 0, time.perf_counter() + SPEED_SECONDS
    while rounds < 3 or time.perf_counter() < end:
        for name, call in calls.items():  # in turns, so that what else the machine does meets all alike
            begin = time.perf_counter()
            call()
            fastest[name] = min(fastest[name], time.perf_counter() - begin)
        rounds += 1
    return {
        "shape": list(SPEED_SHAPE),
        "rounds": rounds,
        "native_over_torch": round(fastest["native"] / fastest["torch"], 3),
        "observed_over_torch": round(fastest["observed"] / fastest["torch"], 3),
    }


# -- For a person


def lines(part: str, value: Any) -> Iterator[str]:
    """One part of an examination, as `examine` calls `found`."""
    yield from _WRITERS[part](value)


def _write_versions(versions: dict[str, str]) -> Iterator[str]:
    rest = dict(versions)
    yield f"regard {rest.pop('regard', '(not installed)')}, Python {rest.pop('python')}, {rest.pop('platform')}"
    yield "  " + ", ".join(f"{name} {version}" for name, version in rest.items())


def _write_native(native: dict[str, Any]) -> Iterator[str]:
    if native["setting_error"] is not None:
        yield f"native kernel: {native['setting_error']}"
        return
    if not native["available"]:
        yield f"native kernel: not there: {native['why_missing']}"
        yield "  regard works without it, on PyTorch's kernels, and observing takes longer"
        return
    others = [name for name in native["isas"] if name != native["isa"]]
    yield f"native kernel: {native['isa']}" + (f" (this processor also runs {', '.join(others)})" if others else "")


def _write_threads(threads: dict[str, Any]) -> Iterator[str]:
    runtime = "the OpenMP runtime of PyTorch" if threads["openmp"] else "no OpenMP runtime found"
    yield f"threads: {threads['torch']} on {threads['processors']} processors, {runtime}"


def _write_models(models: dict[str, str]) -> Iterator[str]:
    yield f"models: {', '.join(models) or 'none'}"


def _write_attention(attention: dict[str, Any]) -> Iterator[str]:
    chosen = attention["automatic"] or "none of them"
    yield f"attention: {', '.join(attention['backends'])}; an ordinary call on the CPU goes to {chosen}"


def _write_self_check(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "self-check, largest error against the definition in float64:"
    for result in results:
        name = f"  {result['backend']:9} {result['dtype']:8}"
        if result["state"] == "refused":
            yield f"{name}  left out: {result['reason'].partition(': ')[0]}"
        elif result["error"] is None:
            yield f"{name}  FAILED on {result['case']}: {result['reason']}"
        else:
            verdict = "ok" if result["state"] == "passed" else f"FAILED on {result['case']}: {result['field']}"
            yield f"{name}  {result['error']:.1e} of {result['allowed']:.0e} allowed  {verdict}"


def _write_speed(speed: dict[str, Any] | None) -> Iterator[str]:
    if speed is not None:
        shape = " × ".join(map(str, speed["shape"]))
        yield f"speed: of the time of PyTorch's fused attention ({shape}, float32), which sees nothing,"
        yield f"  native takes {speed['native_over_torch']:.2f}, and observing {speed['observed_over_torch']:.2f}"


def _write_healthy(healthy: bool) -> Iterator[str]:
    yield "all is well" if healthy else "something is wrong: see above"


_WRITERS: dict[str, Callable[[Any], Iterator[str]]] = {
    "versions": _write_versions,
    "native": _write_native,
    "threads": _write_threads,
    "models": _write_models,
    "attention": _write_attention,
    "self_check": _write_self_check,
    "speed": _write_speed,
    "healthy": _write_healthy,
}
