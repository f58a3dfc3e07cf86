"""The native library: found, checked and loaded once, when it is first asked for.

The environment can say three things about it: REGARD_NATIVE=0 leaves it alone, REGARD_ISA names the instruction set to
use instead of the best one that the processor runs, and REGARD_LIBRARY the path of another build of it.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

ABI = 5
"""The number that the library must give itself: entry.cpp and lowering.py agree on what it stands for."""

SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
PATH = Path(__file__).with_name(f"libregard_native{SUFFIX}")
REASON = PATH.with_suffix(".txt")  # written by CMakeLists.txt where the library could not be built

REINSTALL = "install a C++ compiler (GCC or Clang) and reinstall regard"


class SettingError(ValueError):
    """A variable of the environment with a value that it may not have."""


@dataclass(frozen=True)
class _Found:
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    why_missing: str | None


_lock = threading.Lock()
_found: _Found | None = None


def load() -> ctypes.CDLL | None:
    """The library, loaded and checked, or None where there is none: `why_missing` says why.

    Raises:
        SettingError: REGARD_NATIVE or REGARD_ISA has a value that it may not have.
    """
    return _find().library


def why_missing() -> str | None:
    """In one line why there is no library and how to get it; None where there is one.

    Raises:
        SettingError: as `load`.
    """
    return _find().why_missing


# What torch.compiler.assume_constant_result sets, without importing the compiler: a compiled function that is the first
# to ask must not be traced into the loading.
why_missing.__dict__["_dynamo_marked_constant"] = True


def isa() -> str | None:
    """The instruction set in use; None without the library."""
    library = load()
    return None if library is None else _text(library.regard_isa())


def isas() -> list[str]:
    """The instruction sets that the library has and this processor runs, best first; none without the library."""
    library = load()
    return [] if library is None else _usable(library)


def use_isa(name: str) -> None:
    """Computes with another instruction set from here on, in all threads.

    Raises:
        ValueError: the library has no such set, or this processor does not run it.
        RuntimeError: there is no library.
    """
    library = load()
    if library is None:
        raise RuntimeError(f"the native library is not there: {why_missing()}")
    if library.regard_use_isa(name.encode()) != 0:
        raise ValueError(_refusal("name", name, library))


def openmp() -> int | None:
    """The address of `GOMP_parallel` in the OpenMP runtime that torch has brought into this process, or None.

    Threads of a second runtime, or of one's own, would fight with torch's for the cores. Nothing is loaded here.
    """
    import ctypes

    if sys.platform == "win32":
        return None
    address = _address(ctypes.CDLL(None))
    if address is None:
        # Without RTLD_NOLOAD a library that is in the process by another name could come in a second time.
        only_loaded = getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_LAZY
        for path in _openmp_paths():
            try:
                address = _address(ctypes.CDLL(path, mode=only_loaded))
            except OSError:
                continue
            if address is not None:
                break
    return address


def _address(library: ctypes.CDLL) -> int | None:
    import ctypes

    try:
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except AttributeError:
        return None


def _openmp_paths() -> list[str]:
    """OpenMP runtimes that this process has mapped, torch's own first."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux
        return []
    paths = set(re.findall(r"/.*/lib(?:gomp|omp|iomp5)\b[^/\n]*\.so[^/\n]*$", maps, re.MULTILINE))
    return sorted(paths, key=lambda path: ("/torch" not in path, path))


def _find() -> _Found:
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _open()
    return _found


def _open() -> _Found:
    wanted = os.environ.get("REGARD_NATIVE", "")
    if wanted not in ("", "0", "1"):
        raise SettingError(f"REGARD_NATIVE is {wanted!r}; it may be 0 (leave the native kernel alone) or 1")
    if wanted == "0":
        return _Found(None, "it is switched off by REGARD_NATIVE=0")
    path = Path(os.environ.get("REGARD_LIBRARY") or PATH)
    if not path.exists():
        return _Found(None, _why_not_built() if path == PATH else f"REGARD_LIBRARY is {path}, which does not exist")
    import ctypes

    try:
        library = ctypes.CDLL(str(path))
        abi = library.regard_abi
    except OSError as error:
        return _Found(None, f"{path} cannot be loaded: {' '.join(str(error).split())}")
    except AttributeError:
        return _Found(None, f"{path} is no library of regard; reinstall regard")
    abi.restype = ctypes.c_int32
    if (number := abi()) != ABI:
        return _Found(None, f"{path} has interface {number}, and this regard needs {ABI}; reinstall regard")
    _declare(library)
    forced = os.environ.get("REGARD_ISA", "")
    if forced and forced not in _usable(library):
        raise SettingError(_refusal("REGARD_ISA", forced, library))
    library.regard_set_openmp(openmp())
    return _Found(library, None)


def _why_not_built() -> str:
    try:
        reason = " ".join(REASON.read_text(encoding="utf-8").split())
    except OSError:
        reason = "there was no C++ compiler that works"
    return f"it was not built when regard was installed, because {reason}; {REINSTALL}"


def _declare(library: ctypes.CDLL) -> None:
    """Tells ctypes the types of the functions that are called here."""
    import ctypes

    library.regard_isas.restype = ctypes.c_char_p
    library.regard_isa.restype = ctypes.c_char_p
    library.regard_isa_supported.argtypes = [ctypes.c_char_p]
    library.regard_isa_supported.restype = ctypes.c_int32
    library.regard_use_isa.argtypes = [ctypes.c_char_p]
    library.regard_use_isa.restype = ctypes.c_int32
    library.regard_fma_gflops.argtypes = [ctypes.c_double]
    library.regard_fma_gflops.restype = ctypes.c_double
    library.regard_set_openmp.argtypes = [ctypes.c_void_p]
    library.regard_set_openmp.restype = None
    # Structures of call.h, packed by lowering.py: a pointer to bytes.
    library.regard_attend.argtypes = [ctypes.c_char_p]
    library.regard_attend_observed.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.regard_backward.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.regard_push.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.regard_linear.argtypes = [ctypes.c_char_p]


def _text(name: bytes) -> str:
    return name.decode("ascii")


def _compiled(library: ctypes.CDLL) -> list[str]:
    return _text(library.regard_isas()).split(",")


def _usable(library: ctypes.CDLL) -> list[str]:
    return [name for name in _compiled(library) if library.regard_isa_supported(name.encode())]


def _refusal(argument: str, name: str, library: ctypes.CDLL) -> str:
    reason = "this processor does not run it" if name in _compiled(library) else "no such instruction set is built in"
    return f"{argument} is {name!r}: {reason}; it may be {' or '.join(_usable(library))}"
