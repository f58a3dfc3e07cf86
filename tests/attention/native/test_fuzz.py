"""Random calls on every instruction set; REGARD_FUZZ_SECONDS says for how long, instead of a minute in all."""

import os

import pytest
import torch

from tests.attention.native import fuzz
from tests.attention.native.agreement import ISAS

SECONDS = float(os.environ.get("REGARD_FUZZ_SECONDS", "60"))


@pytest.mark.slow
@pytest.mark.timeout(300 + 2 * SECONDS)
@pytest.mark.parametrize("isa", ISAS)
def test_random_calls_agree(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = fuzz.main(["--seconds", str(SECONDS / len(ISAS)), "--isa", isa])
    assert status == 0, capsys.readouterr().out


def test_a_write_beside_a_result_is_noticed() -> None:
    draw = fuzz.Draw(0)
    view = draw.buffers.room((2, 3, 4, 5), torch.float32)
    buffer = draw.buffers._made[0][0]
    view.fill_(1.0)
    draw.buffers.check()
    buffer[buffer.isnan().nonzero()[-1]] = 1.0
    with pytest.raises(AssertionError, match="written at"):
        draw.buffers.check()
