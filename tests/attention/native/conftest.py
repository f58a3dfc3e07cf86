"""What the tests of the kernel share: each of them runs with every instruction set of this machine."""

from collections.abc import Iterator

import pytest

from tests.attention.native.agreement import ISAS, instruction_set


@pytest.fixture(scope="module", params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set that is in use meanwhile."""
    with instruction_set(request.param):
        yield request.param
