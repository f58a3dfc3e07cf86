"""Building the package: with a compiler, without one, and with one that fails; wheel, sdist and editable install.

Nothing is downloaded: the build runs with what the test environment has, in a copy of the project.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.attention.native.test_library import CAN_BUILD

ROOT = Path(__file__).resolve().parents[1]
NATIVE = "regard/attention/native"
LIBRARY = f"{NATIVE}/libregard_native.so"
REASON = f"{NATIVE}/libregard_native.txt"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["scikit-build"]
NEEDED = [name for name in ("scikit_build_core", "cmake") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names files as on Linux"),
    pytest.mark.skipif(bool(NEEDED), reason=f"there is no {' and no '.join(NEEDED)}"),
]
with_compiler = pytest.mark.skipif(not CAN_BUILD, reason="there is no C++ compiler, or no kernel for this processor")


def copy(directory: Path) -> Path:
    """The project as a clone has it, with something in it that belongs into no package."""
    junk = shutil.ignore_patterns("__pycache__", "libregard_native.*")
    for name in SETTINGS["sdist"]["include"]:
        source, target = ROOT / name.strip("/"), directory / name.strip("/")
        if source.is_dir():
            shutil.copytree(source, target, ignore=junk)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    left_over = directory / "src" / "regard" / "__pycache__"
    left_over.mkdir()
    (left_over / "cli.cpython-311.pyc").write_bytes(b"")
    return directory


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(tmp_path_factory.mktemp("project") / "regard")


def build(project: Path, kind: str, out: Path, build_directory: Path | None = None, **environment: str) -> Path:
    """Builds by the hook that pip calls ("wheel", "editable" or "sdist"), and returns what was built."""
    out.mkdir(exist_ok=True)
    outside = ("CMAKE_", "SKBUILD_", "MAKE", "CXX", "CFLAGS", "LDFLAGS")
    given = {key: value for key, value in os.environ.items() if not key.startswith(outside)}
    settings = {} if build_directory is None else {"build-dir": str(build_directory)}
    code = f"import scikit_build_core.build as b; print(b.build_{kind}({str(out)!r}, {settings!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=given | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def content(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


def package_files(project: Path) -> set[str]:
    """What every wheel has to carry: all of the package but the C++ sources and what is built or compiled."""
    root = project / "src"
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    left_out = re.compile(rf"{NATIVE}/(cpp/|libregard_native\.)|__pycache__")
    return {name for name in files if not left_out.search(name)}


def assert_complete(wheel: Path, project: Path, native: str) -> None:
    """The wheel has everything, `native` beside library.py, and nothing else."""
    assert re.fullmatch(r"regard-[\d.]+-py3-none-linux_\w+\.whl", wheel.name), wheel.name
    found = {name for name in names(wheel) if ".dist-info/" not in name}
    assert found == package_files(project) | {native}
    assert {"regard/py.typed", "regard/view/page/page.html", f"{NATIVE}/library.py"} <= found
    assert {Path(name).suffix for name in found if "/embedded/" in name} >= {"", ".safetensors", ".json", ".md"}
    about = {name.partition(".dist-info/")[2] for name in names(wheel) - found}
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= about


def installed(wheel: Path, directory: Path, code: str) -> list[str]:
    """The lines that `code` prints where the wheel is installed in `directory`, before all else."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(directory)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    given = {key: value for key, value in os.environ.items() if not key.startswith("REGARD_")}
    code = f"import regard; assert regard.__file__.startswith({str(directory)!r}), regard.__file__\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env=given | {"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


ATTEND = """
import torch
from regard.attention.native import library
x = torch.randn(1, 2, 9, 8)
assert regard.attend(x, x, x).shape == x.shape
"""

# -- With a compiler


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build directory of `wheel`."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def wheel(project: Path, objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(project, "wheel", tmp_path_factory.mktemp("wheel"), objects)


@with_compiler
def test_the_wheel_has_the_library(wheel: Path, project: Path, tmp_path: Path):
    assert_complete(wheel, project, LIBRARY)
    code = ATTEND + "print(library.PATH)\nprint(library.why_missing())\nprint(*library.isas())"
    path, why, isas = installed(wheel, tmp_path, code)
    assert path == str(tmp_path / LIBRARY)
    assert why == "None"
    assert {"baseline", "neon"} & set(isas.split())


@with_compiler
@pytest.mark.skipif(shutil.which("nm") is None or shutil.which("readelf") is None, reason="there are no binutils")
def test_the_library_shows_its_own_functions_and_needs_little(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract(LIBRARY, tmp_path)
    listed = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True)
    functions = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert "regard_abi" in functions
    assert all(name.startswith("regard_") for name in functions), functions
    dynamic = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*?)\]", dynamic)
    assert not [name for name in needed if re.search("torch|python|gomp", name)], needed


@with_compiler
def test_plain_code_is_linked_first(wheel: Path, objects: Path):
    """Of an inline function in several objects the linker keeps the first: the one that every processor runs."""
    rules = "\n".join(path.read_text() for path in (*objects.rglob("build.ninja"), *objects.rglob("link.txt")))
    line = max((line for line in rules.splitlines() if "libregard_native" in line), key=lambda line: line.count(".o"))
    order = list(dict.fromkeys(re.findall(r"regard_(\w+)\.dir/", line)))
    assert order in (["plain", "baseline", "avx2", "avx512"], ["plain", "baseline", "avx2"], ["plain", "neon"])


@with_compiler
def test_an_editable_install_has_the_library_in_the_sources(wheel: Path, project: Path, objects: Path, tmp_path: Path):
    editable = build(project, "editable", tmp_path / "out", objects)
    try:
        assert content(editable, "regard.pth") == f"{project / 'src'}\n"
        assert not {name for name in names(editable) if name.startswith("regard/")}
        assert (project / "src" / LIBRARY).is_file()
        assert not (project / "src" / REASON).exists()
        again = build(project, "wheel", tmp_path / "again", objects)
        assert_complete(again, project, LIBRARY)
    finally:
        (project / "src" / LIBRARY).unlink(missing_ok=True)


# -- Without


def path_without_compiler(directory: Path) -> str:
    """A PATH with make and a shell alone."""
    directory.mkdir()
    for name in ("make", "sh", "uname"):
        if (path := shutil.which(name)) is None:
            pytest.skip(f"there is no {name}")
        (directory / name).symlink_to(path)
    return str(directory)


@pytest.mark.parametrize("lack", ["none on the PATH", "CXX names none", "CXX does not work"])
def test_without_a_compiler(lack: str, project: Path, tmp_path: Path):
    environment = {
        "none on the PATH": lambda: {"PATH": path_without_compiler(tmp_path / "bin")},
        "CXX names none": lambda: {"CXX": "/nowhere/c++"},
        "CXX does not work": lambda: {"CXX": shutil.which("false") or "false"},
    }[lack]()
    wheel = build(project, "wheel", tmp_path / "out", **environment)
    assert_complete(wheel, project, REASON)
    assert content(wheel, REASON) == "no C++ compiler was found that works\n"
    if lack == "CXX does not work":
        why, code = installed(
            wheel,
            tmp_path / "installed",
            ATTEND + "print(library.why_missing())\nfrom regard.cli import app\nprint(library.load())",
        )
        assert "no C++ compiler was found that works" in why and "reinstall" in why
        assert code == "None"


def test_an_editable_install_without_a_compiler(project: Path, tmp_path: Path):
    stale = project / "src" / LIBRARY
    stale.write_bytes(b"of an earlier build")
    try:
        editable = build(project, "editable", tmp_path, CXX="/nowhere/c++")
        assert content(editable, "regard.pth") == f"{project / 'src'}\n"
        assert not stale.exists()
        assert "no C++ compiler" in (project / "src" / REASON).read_text(encoding="utf-8")
    finally:
        stale.unlink(missing_ok=True)
        (project / "src" / REASON).unlink(missing_ok=True)


@with_compiler
def test_a_compiler_that_fails(tmp_path: Path):
    project = copy(tmp_path / "regard")
    (project / "src" / NATIVE / "cpp" / "kernel.cpp").write_text("#error not today\n", encoding="utf-8")
    wheel = build(project, "wheel", tmp_path / "out")
    assert_complete(wheel, project, REASON)
    assert content(wheel, REASON).startswith("compiling it failed")


# -- Sources


def test_the_sdist_has_the_sources(project: Path, tmp_path: Path):
    with tarfile.open(build(project, "sdist", tmp_path)) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert found == wanted | {"PKG-INFO"}
    assert {"CMakeLists.txt", "pyproject.toml", f"src/{NATIVE}/cpp/kernel.cpp", "LICENSE", "constraints.txt"} <= found
