"""What heads do: each role is recognised where it is plain, and its score is its definition."""

import math

import pytest
import torch

from regard.relations.heads import HEAD_ROLES, Block, HeadRole, role_scores, roles_of

N = 12


def _onehot(keys: list[int], n: int = N) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(keys), n).float()[None]


PLAIN = {
    "previous": _onehot([0, *range(N - 1)]),
    "same": _onehot(list(range(N))),
    "next": _onehot([*range(1, N), N - 1]),
    "first": _onehot([0] * N),
    "last": _onehot([N - 1] * N),
    "broad": torch.full((1, N, N), 1 / N),
}


CAUSAL = torch.ones(1, N, N, dtype=torch.bool).tril()


def whole(weights: torch.Tensor, visible: torch.Tensor | None = None) -> list[Block]:
    """One block, in which every key may be seen unless said otherwise."""
    return [(weights, torch.ones(1, 1, 1, dtype=torch.bool) if visible is None else visible)]


def _roles(weights: torch.Tensor, visible: torch.Tensor | None = None) -> list[HeadRole]:
    return roles_of(whole(weights, visible), (weights.shape[1], weights.shape[2]), "self")


@pytest.mark.parametrize("role", PLAIN)
def test_a_plain_pattern_has_its_role(role: str):
    found = _roles(PLAIN[role])[0]
    assert found.name == role
    assert found.score == pytest.approx(1, abs=1e-5)
    assert role in HEAD_ROLES


def test_local_and_mixed():
    i, j = torch.arange(N)[:, None], torch.arange(N)[None]
    near = ((j - i).abs() <= 2).float()
    assert _roles((near / near.sum(-1, keepdim=True))[None])[0].name == "local"
    # half on one distant element, a quarter on each of two others: concentrated, and nothing a role describes
    odd = 0.5 * _onehot([(7 * n + 5) % N for n in range(N)]) + 0.25 * (
        _onehot([(5 * n + 3) % N for n in range(N)]) + _onehot([(11 * n + 6) % N for n in range(N)])
    )
    assert _roles(0.99 * odd + 0.01 / N)[0].name == "mixed"


def test_repeat_counts_only_rows_that_have_another_of_their_kind():
    labels = ["a", "b", "a", "c"]
    weights = _onehot([2, 3, 0, 3], 4)
    scores = role_scores(whole(weights), (4, 4), "self", (labels, labels))
    assert float(scores["repeat"]) == 1.0
    assert roles_of(whole(weights), (4, 4), "self", (labels, labels))[0].name == "repeat"


def test_rows_that_see_nothing_count_in_no_role():
    weights = PLAIN["previous"].clone()
    weights[:, 6:] = 0
    assert _roles(weights)[0].score == pytest.approx(1)
    assert all(math.isfinite(s) for s in _roles(torch.zeros(1, 3, 3))[0].scores.values())


def test_cross_attention_has_a_diagonal_of_its_own():
    weights = _onehot([round(i * 5 / (N - 1)) for i in range(N)], 6)
    assert roles_of(whole(weights), (N, 6), "cross")[0].name == "diagonal"
    assert "previous" not in role_scores(whole(weights), (N, 6), "cross")


def test_blocks_of_rows_give_the_same_roles():
    torch.manual_seed(0)
    weights = torch.randn(3, N, N).masked_fill(~CAUSAL, -torch.inf).softmax(-1)
    labels = list("abcabcaabbcc")
    together = role_scores(whole(weights, CAUSAL), (N, N), "self", (labels, labels))
    blocks = zip(weights.split(5, dim=1), CAUSAL.split(5, dim=1), strict=True)
    parts = role_scores(blocks, (N, N), "self", (labels, labels))
    for name, scores in together.items():
        torch.testing.assert_close(parts[name], scores)


def test_a_row_counts_only_where_it_may_see_what_the_role_asks_for():
    labels = list("abcdefabcdef")
    weights = _onehot([0, *range(5), *range(6)])  # who has a label that occurred before looks there
    scores = role_scores(whole(weights, CAUSAL), (N, N), "self", (labels, labels))
    assert float(scores["repeat"]) == 1.0  # the first six rows can see no other element with their label
    assert float(scores["next"]) == 0.0
    even = CAUSAL / CAUSAL.sum(-1, keepdim=True)
    assert float(role_scores(whole(even, CAUSAL), (N, N), "self")["broad"]) == pytest.approx(1)


def test_a_row_without_a_choice_counts_in_no_role():
    weights = _onehot([0, *range(N - 1)])  # the first row of a causal head can only look at itself
    scores = role_scores(whole(weights, CAUSAL), (N, N), "self")
    assert float(scores["same"]) == 0.0
    assert float(scores["first"]) == pytest.approx(1 / (N - 1))
    assert _roles(_onehot(list(range(N))), CAUSAL)[0].name == "same"  # and not "last", though its last row looks there
    assert _roles(torch.ones(1, 1, 1))[0].score == 0


def test_looking_at_two_of_many_is_not_broad():
    weights = 0.5 * (_onehot([0] * N) + _onehot([5] * N))  # all other weights have vanished
    assert float(role_scores(whole(weights), (N, N), "self")["broad"]) == pytest.approx(math.log(2) / math.log(N))
