"""docs/models.md says of every family in the registry what it reads."""

import re
from pathlib import Path

from tests.models.models_table import table
from tests.models.parity import TOLERANCE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_the_page_is_of_this_registry_and_every_family_is_measured():
    page = PAGE.read_text(encoding="utf-8")
    figures = {
        kind: float(figure) for kind, figure in re.findall(r"^\| `([^`]+)` .* \| (\S+) \|$", page, flags=re.MULTILINE)
    }
    assert page == table(figures)
    assert 0 < max(figures.values()) <= TOLERANCE
