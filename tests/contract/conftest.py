"""Every test with a `backend` runs over every backend of the registry, and over `auto`."""

import pytest

from tests.contract.backends import NAMES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise over the registry."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", NAMES)
