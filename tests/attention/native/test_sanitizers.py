"""The kernel reads and writes nothing but what is its own, and does nothing that C++ leaves undefined.

It is built once more, with the address and undefined-behaviour sanitizers, into build/sanitize, and given random calls.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attention.native.test_library import CAN_BUILD

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "sanitize"
CMAKE = shutil.which("cmake", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads the sanitizers as Linux does"),
    pytest.mark.skipif(not CAN_BUILD, reason="there is no C++ compiler, or no kernel for this processor"),
    pytest.mark.skipif(CMAKE is None, reason="there is no cmake on the PATH"),
]


def output_of(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


@pytest.fixture(scope="module")
def sanitized() -> dict[str, str]:
    """The environment in which Python loads the library that was built with sanitizers."""
    assert CMAKE is not None
    output_of(CMAKE, "-S", str(ROOT), "-B", str(BUILD), "-DREGARD_SANITIZE=ON", "-DREGARD_IN_PLACE=OFF")
    reason = BUILD / "libregard_native.txt"
    if reason.exists():
        pytest.skip(f"it cannot be built: {reason.read_text(encoding='utf-8').strip()}")
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", (BUILD / "CMakeCache.txt").read_text(), re.MULTILINE)
    assert compiler is not None
    runtimes = [output_of(compiler[1], f"-print-file-name=lib{name}.so") for name in ("asan", "ubsan")]
    if missing := [path for path in runtimes if not Path(path).is_absolute()]:
        pytest.skip(f"{compiler[1]} has no {' and no '.join(missing)}")
    output_of(CMAKE, "--build", str(BUILD), "--parallel")
    return {
        "REGARD_LIBRARY": str(BUILD / "libregard_native.so"),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # Python itself leaves memory behind
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    given = {key: value for key, value in os.environ.items() if key not in ("REGARD_NATIVE", "REGARD_ISA")}
    return subprocess.run(command, cwd=ROOT, env=given | environment, capture_output=True, text=True)


def test_random_calls_bring_no_report(sanitized: dict[str, str]) -> None:
    done = run(sanitized, "-m", "tests.attention.native.fuzz", "--seconds", "20", "--seed", "1000000")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search("Sanitizer|runtime error", said), said
    assert re.search(r"^\d+ cases .* agree", done.stdout, re.MULTILINE), said


def test_rows_times_a_matrix_bring_no_report(sanitized: dict[str, str]) -> None:
    code = """
import random, torch
from regard.transformer import linear as module
from regard.transformer.linear import ACTIVATIONS, activated, linear
module.LEAST_WEIGHTS = module.LEAST_SIZE = module.LEAST_PRODUCTS = 1
draw, count = random.Random(0), 0
torch.manual_seed(0)
with torch.no_grad():
    for _ in range(200):
        size, rows, gated = 16 * draw.randint(1, 40), draw.randint(1, draw.choice([16, 150])), draw.random() < 0.3
        activation = draw.choice([None, *ACTIVATIONS])
        weight = torch.randn(draw.randint(1, 150) * (1 + gated), size) / size**0.5
        x, bias = torch.randn(rows, size), draw.choice([None, torch.randn(len(weight))])
        torch.set_num_threads(draw.randint(1, 3))
        exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        found = linear(x, weight, bias, activation=activation, gated=gated)
        torch.testing.assert_close(found.double(), activated(exact, activation, gated=gated), atol=1e-4, rtol=1e-4)
        count += 1
print(count, "agree")
"""
    done = run(sanitized, "-c", code)
    assert done.returncode == 0 and done.stdout == "200 agree\n", done.stdout + done.stderr


def test_reading_past_the_end_would_be_reported(sanitized: dict[str, str]) -> None:
    code = """
import torch
from regard.attention.native import operator
from regard.attention.native.lowering import lowered
from regard.attention.request import checked
x = torch.randn(1, 1, 200, 16)
call = lowered(checked(x, x, x))
operator.forward(call)
print("so far nothing", flush=True)
operator.forward(call._replace(key=x[:, :, :120].clone()))
"""
    done = run(sanitized, "-c", code)
    assert done.stdout == "so far nothing\n"
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr, done.stderr
