"""Time stamps stand where transformers' processor lets them stand."""

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation import WhisperTimeStampLogitsProcessor

from regard.generation.constraints import Constraints
from regard.generation.timestamps import TimeStamps

END, NONE, V = 8, 11, 20  # text below 8, other special pieces up to 11, stamps from 12 on
pieces = st.integers(0, END - 1) | st.integers(NONE + 1, V - 1)


def forward(written: list[int]) -> list[int]:
    """The same with stamps that never go back, as the rule has made them."""
    latest, found = NONE, list[int]()
    for piece in written:
        latest = max(latest, piece) if piece > NONE else latest
        found.append(latest if piece > NONE else piece)
    return found


@given(
    texts=st.integers(0, 7).flatmap(
        lambda n: st.lists(st.lists(pieces, min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    latest=st.none() | st.integers(0, 7),
    seed=st.integers(0, 99),
    lean=st.sampled_from([-2.0, 0.0, 2.0]),
)
def test_what_may_follow(texts: list[list[int]], latest: int | None, seed: int, lean: float):
    texts = [forward(written) for written in texts]
    scores = 2 * torch.randn(len(texts), V, generator=torch.Generator().manual_seed(seed))
    scores[:, NONE + 1 :] += lean  # towards stamps or text
    text = torch.tensor([[9, 10, *written] for written in texts])
    config = SimpleNamespace(
        no_timestamps_token_id=NONE, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=latest
    )
    expected = WhisperTimeStampLogitsProcessor(config, begin_index=2)(text, scores)  # type: ignore[arg-type]
    constraints = Constraints(rule=TimeStamps(NONE + 1, END, NONE, latest))
    limit = torch.zeros(len(texts), dtype=torch.bool)
    found = constraints(scores.clone(), text, len(texts[0]), limit, (END,))
    assert torch.equal(found, expected)
