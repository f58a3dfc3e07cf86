"""The innermost loops of the compiled kernel keep all they need in registers: spilling them can halve the speed."""

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest

from regard.attention.native import library

OBJDUMP = shutil.which("objdump")
LONGEST = 120  # instructions of a loop of products

pytestmark = [
    pytest.mark.skipif(not library.PATH.exists(), reason="the native library was not built"),
    pytest.mark.skipif(OBJDUMP is None, reason="there is no objdump on the PATH"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the instructions of x86-64"),
]

TILE_ROWS = {"avx512": 8, "avx2": 4}
"""As in vector.h. A tile of registers has these rows and, where it is worth the name, 2 or 3 vectors in each."""

UNROLLED = 2
"""So many steps of products.h make one turn of a loop."""

LEAST = 4
"""How many loops of tiles there are of each width: for scores, for what they mix, and two for gradients."""


@dataclass(frozen=True)
class Loop:
    """An innermost loop: the function it stands in, and its instructions."""

    function: str
    instructions: tuple[str, ...]
    stack: tuple[str, ...]  # registers that point to it

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, instruction) is not None for instruction in self.instructions)

    def is_tile(self, rows: int) -> bool:
        """Whether it sums a tile: each row's number is spread over a vector, and multiplied with two or more.

        Activations spread the numbers of polynomials, and divide.
        """
        spread = self.count(r"broadcastss|\{1to") >= rows
        return spread and self.count("^vfmadd") >= 2 * rows and not self.count("^vdiv")

    @property
    def on_the_stack(self) -> list[str]:
        """Instructions that read or write the stack."""
        pattern = rf"\((?:{'|'.join(self.stack)})\b"
        return [instruction for instruction in self.instructions if re.search(pattern, instruction)]


def loops_of(function: str, code: list[tuple[int, str]]) -> Iterator[Loop]:
    """The innermost loops of a function, given as (address, instruction)."""
    framed = any(re.match(r"mov\s+%rsp,%rbp", instruction) for _, instruction in code)
    numbers = {address: n for n, (address, _) in enumerate(code)}
    last = -1  # where the last loop ended
    for n, (_, instruction) in enumerate(code):
        jump = re.match(r"j\w+\s+([0-9a-f]+)\b", instruction)
        begin = numbers.get(int(jump[1], 16), n + 1) if jump else n + 1
        if begin > n:
            continue
        if begin > last and n - begin < LONGEST:
            yield Loop(function, tuple(text for _, text in code[begin : n + 1]), ("%rsp", "%rbp")[: 1 + framed])
        last = n


@cache
def loops() -> tuple[Loop, ...]:
    """All short innermost loops of the library."""
    command = [OBJDUMP or "", "--disassemble", "--demangle", "--no-show-raw-insn", str(library.PATH)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found, function, code = list[Loop](), "", list[tuple[int, str]]()
    for line in [*lines, "0 <end>:"]:
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            found += loops_of(function, code)
            function, code = header[1], []
        elif instruction := re.match(r"\s+([0-9a-f]+):\s+(\S.*)", line):
            code.append((int(instruction[1], 16), instruction[2]))
    return tuple(found)


@pytest.mark.parametrize("isa", TILE_ROWS)
def test_no_loop_of_a_tile_uses_the_stack(isa: str) -> None:
    compiled = [loop for loop in loops() if f"{isa}::" in loop.function]
    if not compiled:
        pytest.skip(f"the library has no functions for {isa}, or no names of them")
    tiles = [loop for loop in compiled if loop.is_tile(TILE_ROWS[isa])]
    for vectors in (2, 3):
        products = vectors * TILE_ROWS[isa] * UNROLLED
        of_this_size = [loop for loop in tiles if loop.count("^vfmadd") == products]
        assert len(of_this_size) >= LEAST, f"of {vectors} vectors: {[loop.function for loop in of_this_size]}"
    spilling = [f"{loop.function}: {'; '.join(loop.on_the_stack)}" for loop in tiles if loop.on_the_stack]
    assert not spilling, "\n".join(spilling)


@pytest.mark.parametrize("isa", TILE_ROWS)
def test_no_loop_of_the_decoder_uses_the_stack(isa: str) -> None:
    # What sets them apart: they sum, and fetch the rows that come next.
    loops_of_it = [
        loop
        for loop in loops()
        if re.search(rf"\b{isa}::add_(products|columns)<", loop.function)
        and loop.count("^vfmadd")
        and loop.count("^prefetch")
    ]
    if not any(f"{isa}::" in loop.function for loop in loops()):
        pytest.skip(f"the library has no functions for {isa}, or no names of them")
    # One, two and four rows at a time, with keys and with values, in the sums that there are registers for.
    widest = [loop for loop in loops_of_it if loop.count("^vfmadd") >= 8]
    assert len(widest) >= 6, [loop.function for loop in loops_of_it]
    # Addresses that wait in a vector register are moved back for every load.
    wrong = [loop for loop in loops_of_it if loop.on_the_stack or loop.count("^vmovq|^vpextr")]
    assert not wrong, "\n".join(f"{loop.function}: {'; '.join(loop.instructions)}" for loop in wrong)
