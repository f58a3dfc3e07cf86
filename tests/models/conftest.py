"""Writes docs/models.md where it is asked for; see models_table.py."""

import os

import pytest

from regard.files import write_atomically
from tests.models.models_table import table
from tests.models.parity import FIGURES


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    place = os.environ.get("REGARD_MODELS_TABLE")
    if place and exitstatus == 0:
        write_atomically(place, table(FIGURES).encode())
