"""The examples of docs/ run as they stand."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
RUN = ["observe.md"]
EXAMPLES = [
    (name, number, block)
    for name in RUN
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.M | re.S)
    )
]


@pytest.mark.parametrize(
    ("name", "number", "block"), EXAMPLES, ids=[f"{name} {number + 1}" for name, number, _ in EXAMPLES]
)
def test_examples_run(name: str, number: int, block: str, capsys: pytest.CaptureFixture[str]):
    exec(compile(block, f"{name}, example {number + 1}", "exec"), {"__name__": "example"})
    assert "print(" not in block or capsys.readouterr().out.strip()
