"""What ran the benchmark, its instruction set, and the ceiling of its arithmetic."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from attention_bench.timing import Clock, batch
from regard import __version__
from regard.attention.dispatch import BACKENDS

# What torch and the libraries below it must be told, before they are loaded, to use no wider vectors than these.
TORCH_ISA = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
_GEMM = 1024  # rows and columns of the product that stands for torch.mm
_PEAK_SECONDS = 10e-3


def restart_with_isa(isa: str) -> None:
    """Starts this process anew with torch held to the same instruction set, unless it already is."""
    wanted = TORCH_ISA.get(isa, {})
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def native_library() -> ModuleType | None:
    """The module that loads the native kernel, or None where the kernel is not there."""
    try:
        from regard.attention.native import library
    except ModuleNotFoundError:
        return None
    return None if library.load() is None else library


def use_isa(isa: str) -> None:
    """Sets the instruction set of the native kernel, where there is one, here and in processes started from here.

    Raises:
        ValueError: the kernel has no such set, or this processor does not run it.
    """
    library = native_library()
    if library is not None:
        library.use_isa(isa)
        os.environ["REGARD_ISA"] = isa


def describe() -> dict[str, object]:
    """What the figures depend on."""
    library = native_library()
    limits = {name: os.environ[name] for name in TORCH_ISA["avx2"] if name in os.environ}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_held_to": limits,
        "mkl": torch.backends.mkl.is_available(),
        "regard": __version__,
        "native_isa": None if library is None else library.isa(),
        "native_backend": "native" in BACKENDS,
        "peak_is": "FMA peak" if library is not None else "rate of torch.mm",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def gemm_reading(flops: int, clock: Clock) -> Callable[[], float]:
    """A reading: the seconds that torch.mm needs for as many operations, at its rate on two square matrices."""
    a, b = torch.randn(_GEMM, _GEMM), torch.randn(_GEMM, _GEMM)
    return lambda: batch(lambda: torch.mm(a, b), 1, clock) * flops / (2 * _GEMM**3)


def peak_reading(flops: int) -> Callable[[], float] | None:
    """A reading: the seconds that one core needs for as many operations if it does nothing but multiply and add.

    The native library measures it, the best of many short bursts; None without it.
    """
    library = native_library()
    if library is None:
        return None
    measure = library.load().regard_fma_gflops
    measure.argtypes, measure.restype = [ctypes.c_double], ctypes.c_double
    return lambda: flops / (1e9 * measure(_PEAK_SECONDS))
