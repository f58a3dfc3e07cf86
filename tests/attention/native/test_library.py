"""Finding and loading the native library: what it says where it cannot, and what the environment may ask of it."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

from regard.attention.native import library as installed

BUILT = pytest.mark.skipif(not installed.PATH.exists(), reason="the native library was not built")
COMPILER = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
SETTINGS = ("REGARD_NATIVE", "REGARD_ISA", "REGARD_LIBRARY")
CAN_BUILD = COMPILER is not None and platform.machine() in {"x86_64", "aarch64", "arm64"}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as a process has it that has just begun; it needs nothing but the standard library."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return fresh()


def fresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fresh_library", installed.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def in_new_process(code: str, **environment: str) -> list[str]:
    """The lines that `code` prints, with the module as `library` and without torch."""
    given = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    load = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('library', {installed.__file__!r})\n"
        "library = sys.modules['library'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(library)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", load + code], env=given | environment, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


def assert_missing(library: ModuleType, *words: str) -> None:
    """There is no library, nothing pretends that there is one, and the reason is one line with these words."""
    assert library.load() is None
    why = library.why_missing()
    assert "\n" not in why
    for word in words:
        assert word in why
    assert library.isa() is None
    assert library.isas() == []
    with pytest.raises(RuntimeError, match="not there"):
        library.use_isa("baseline")


# -- Where there is none


@pytest.mark.skipif(not CAN_BUILD, reason="there is no C++ compiler on the PATH, or no kernel for this processor")
def test_it_is_there_where_there_is_a_compiler(library: ModuleType):
    assert library.load() is not None, library.why_missing()


def test_it_was_not_built(library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "PATH", tmp_path / "none.so")
    monkeypatch.setattr(library, "REASON", tmp_path / "none.txt")
    assert_missing(library, "was not built", "there was no C++ compiler", "install a C++ compiler", "reinstall")


def test_the_reason_of_the_build_is_told(library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reason = tmp_path / "libregard_native.txt"
    reason.write_text("it needs GCC or Clang,\n  and the C++ compiler is MSVC\n", encoding="utf-8")
    monkeypatch.setattr(library, "PATH", tmp_path / "none.so")
    monkeypatch.setattr(library, "REASON", reason)
    assert_missing(library, "because it needs GCC or Clang, and the C++ compiler is MSVC; install")


def test_a_file_that_is_no_library(library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "broken.so"
    path.write_bytes(b"\x7fELF and no more")
    monkeypatch.setattr(library, "PATH", path)
    assert_missing(library, str(path), "cannot be loaded")


def test_a_library_of_something_else(library: ModuleType, monkeypatch: pytest.MonkeyPatch):
    others = sorted(Path(torch.__file__).parent.glob(f"lib/libtorch_global_deps*{library.SUFFIX}"))
    if not others:
        pytest.skip("torch has no such library here")
    monkeypatch.setattr(library, "PATH", others[0])
    assert_missing(library, str(others[0]), "no library of regard")


@BUILT
def test_a_library_of_another_version(library: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    assert_missing(library, str(library.PATH), f"has interface {library.ABI - 1}", f"needs {library.ABI}", "reinstall")


# -- What the environment says


def test_switched_off(library: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGARD_NATIVE", "0")
    assert_missing(library, "REGARD_NATIVE=0")


@BUILT
def test_switched_on(library: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGARD_NATIVE", "1")
    assert library.load() is not None


@pytest.mark.parametrize("value", ["no", "off", "2"])
def test_a_switch_that_says_neither(library: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("REGARD_NATIVE", value)
    for ask in (library.load, library.why_missing, library.isa, library.load):  # the second time as the first
        with pytest.raises(ValueError, match=f"REGARD_NATIVE is '{value}'; it may be 0 .* or 1"):
            ask()


@BUILT
def test_each_instruction_set_can_be_asked_for():
    for name in installed.isas():
        assert in_new_process("print(library.isa(), *library.isas())", REGARD_ISA=name) == [
            " ".join([name, *installed.isas()])
        ]


@BUILT
def test_the_best_instruction_set_is_taken():
    assert in_new_process("print(library.isa())") == installed.isas()[:1]
    assert in_new_process("print(library.isa())", REGARD_ISA="") == installed.isas()[:1]


@BUILT
def test_an_instruction_set_that_there_is_not(library: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGARD_ISA", "sse9")
    with pytest.raises(ValueError) as caught:
        library.load()
    allowed = " or ".join(installed.isas())
    assert str(caught.value) == f"REGARD_ISA is 'sse9': no such instruction set is built in; it may be {allowed}"


@BUILT
def test_an_instruction_set_that_the_processor_lacks(library: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "_usable", lambda _: ["plain"])
    best = installed.isas()[0]
    monkeypatch.setenv("REGARD_ISA", best)
    with pytest.raises(ValueError, match=f"REGARD_ISA is '{best}': this processor does not run it; it may be plain"):
        library.load()


@BUILT
def test_another_build(library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = tmp_path / f"other{library.SUFFIX}"
    monkeypatch.setenv("REGARD_LIBRARY", str(other))
    assert_missing(library, f"REGARD_LIBRARY is {other}, which does not exist")
    shutil.copyfile(library.PATH, other)
    monkeypatch.setattr(library, "_found", None)
    assert library.load()._name == str(other)


@pytest.mark.parametrize("arguments", [["see", "Two dogs play."], ["translate", "-"]])
def test_a_wrong_setting_is_one_line_at_the_command_line(arguments: list[str]):
    done = subprocess.run(
        [sys.executable, "-m", "regard", *arguments],
        env=os.environ | {"REGARD_NATIVE": "maybe"},
        input="Two dogs play.\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("regard: REGARD_NATIVE is 'maybe'; it may be 0")
    assert "Traceback" not in done.stderr


# -- In use


@BUILT
def test_another_instruction_set(library: ModuleType):
    before = library.isa()
    try:
        for name in library.isas():
            library.use_isa(name)
            assert library.isa() == name
        with pytest.raises(ValueError, match="name is 'sse9': no such instruction set is built in"):
            library.use_isa("sse9")
        assert library.isa() == name
    finally:
        library.use_isa(before)


@BUILT
def test_it_is_loaded_once_by_many_threads(library: ModuleType, monkeypatch: pytest.MonkeyPatch):
    opened: list[int] = []
    open_library = library._open

    def slow() -> object:
        opened.append(threading.get_ident())
        time.sleep(0.05)
        return open_library()

    monkeypatch.setattr(library, "_open", slow)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: library.load(), range(8)))
    assert len(opened) == 1
    assert all(one is found[0] for one in found)


def test_importing_regard_does_not_load_it():
    code = "import regard\nfrom regard.attention.native import library\nprint(library._found)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["None"]


# -- OpenMP


def mapped() -> set[str]:
    """The files that this process has mapped."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    return {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line}


ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@ON_LINUX
@pytest.mark.skipif("USE_OPENMP=ON" not in torch.__config__.show(), reason="this PyTorch has no OpenMP")
def test_the_openmp_of_torch_is_found_and_no_other_loaded(library: ModuleType, monkeypatch: pytest.MonkeyPatch):
    before = mapped()
    address = library.openmp()
    assert address
    address_of = library._address
    asked: list[int] = []

    def not_in_the_open(handle: object) -> int | None:
        asked.append(1)
        return None if len(asked) == 1 else address_of(handle)

    monkeypatch.setattr(library, "_address", not_in_the_open)
    assert library.openmp() == address  # found by its path, too
    assert mapped() == before


@ON_LINUX
def test_no_openmp_without_torch():
    assert in_new_process("print(library.openmp())") == ["None"]
