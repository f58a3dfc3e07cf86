"""What makes no sense is refused in one line that names the argument, what it was, and what it may be."""

from typing import Any

import pytest
import torch

import regard
from regard import Causal, Dense, Documents, Padding, Prefix, Watch
from regard.attention import reference
from regard.attention.position import ALiBi, LogBuckets, RelativeBias
from tests.contract.cases import fixed


def shaped(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


CALLS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("query heads", {"query": shaped(2, 5, 9, 8)}, ["5 query heads", "2 key/value heads"]),
    ("query rank", {"query": shaped(4, 9, 8)}, ["query", "(4, 9, 8)"]),
    ("key rank", {"key": shaped(2, 11, 8)}, ["key", "(2, 11, 8)"]),
    ("value rank", {"value": shaped(1, 2, 2, 11, 8)}, ["value", "(1, 2, 2, 11, 8)"]),
    ("key batch", {"key": shaped(3, 2, 11, 8)}, ["key", "3", "2"]),
    ("value batch", {"value": shaped(1, 2, 11, 8)}, ["value", "1", "2"]),
    ("key size", {"key": shaped(2, 2, 11, 7)}, ["key", "7", "8"]),
    ("value length", {"value": shaped(2, 2, 10, 8)}, ["value", "10", "11"]),
    ("value heads", {"value": shaped(2, 1, 11, 8)}, ["value", "1", "2"]),
    ("query dtype", {"query": shaped(2, 4, 9, 8, dtype=torch.float64)}, ["key", "float32", "float64"]),
    ("key dtype", {"key": shaped(2, 2, 11, 8, dtype=torch.bfloat16)}, ["key", "bfloat16", "float32"]),
    ("value dtype", {"value": shaped(2, 2, 11, 8, dtype=torch.float16)}, ["value", "float16", "float32"]),
    ("integers", {"query": shaped(2, 4, 9, 8, dtype=torch.int64)}, ["query", "int64"]),
    ("mask tensor", {"mask": torch.ones(9, 11, dtype=torch.bool)}, ["mask", "Tensor"]),
    ("mask text", {"mask": "causal"}, ["mask", "str"]),
    ("dense shape", {"mask": Dense(torch.ones(9, 10, dtype=torch.bool))}, ["allowed", "(9, 10)", "11"]),
    (
        "dense heads",
        {"mask": Causal() & Dense(torch.ones(3, 9, 11, dtype=torch.bool))},
        ["allowed", "(3, 9, 11)"],
    ),
    ("padding batch", {"mask": Padding(torch.tensor([1, 2, 3]))}, ["key_lengths", "(3,)", "(2,)"]),
    ("padding too long", {"mask": Padding(torch.tensor([1, 12]))}, ["key_lengths", "12", "11"]),
    ("padding negative", {"mask": Padding(torch.tensor([-1, 2]))}, ["key_lengths", "-1"]),
    (
        "padding rows",
        {"mask": Padding(torch.tensor([1, 1]), torch.tensor([1, 10]))},
        ["query_lengths", "10", "9"],
    ),
    ("prefix batch", {"mask": Causal() | Prefix(torch.tensor([1, 2, 3]))}, ["n", "(3,)", "(2,)"]),
    ("documents batch", {"mask": Documents(torch.ones(3, 2, dtype=torch.long))}, ["lengths", "3", "2"]),
    ("negative document", {"mask": Documents(torch.tensor([5, -2]))}, ["lengths", "-2"]),
    ("bias shape", {"bias": shaped(9, 10)}, ["bias", "(9, 10)", "(2, 4, 9, 11)"]),
    ("bias heads", {"bias": shaped(2, 2, 9, 11)}, ["bias", "(2, 2, 9, 11)", "(2, 4, 9, 11)"]),
    ("bias rank", {"bias": shaped(1, 2, 4, 9, 11)}, ["bias", "(1, 2, 4, 9, 11)"]),
    ("bias dtype", {"bias": torch.ones(9, 11, dtype=torch.bool)}, ["bias", "bool", "Dense"]),
    ("bias kind", {"bias": 1.0}, ["bias", "float"]),
    ("alibi heads", {"bias": ALiBi(torch.ones(3))}, ["3", "4"]),
    ("alibi shape", {"bias": lambda: ALiBi(torch.ones(1, 4))}, ["slopes", "(1, 4)"]),
    ("relative heads", {"bias": RelativeBias(torch.ones(32, 2), LogBuckets())}, ["2", "4"]),
    ("relative shape", {"bias": lambda: RelativeBias(torch.ones(32), LogBuckets())}, ["table", "(32,)"]),
    ("start shape", {"start": torch.tensor([1, 2, 3])}, ["start", "(3,)", "(2,)"]),
    ("start scalar tensor", {"start": torch.tensor([[1], [2]])}, ["start", "(2, 1)"]),
    ("start dtype", {"start": torch.tensor([1.0, 2.0])}, ["start", "float32"]),
    ("start fraction", {"start": 1.5}, ["start", "1.5"]),
    ("scale infinite", {"scale": float("inf")}, ["scale", "inf"]),
    ("scale nan", {"scale": float("nan")}, ["scale", "nan"]),
    ("softcap zero", {"softcap": 0.0}, ["softcap", "0.0"]),
    ("softcap negative", {"softcap": -1.0}, ["softcap", "-1.0"]),
    ("softcap nan", {"softcap": float("nan")}, ["softcap", "nan"]),
    ("sink shape", {"sink_logits": torch.zeros(2)}, ["sink_logits", "(2,)", "(4,)"]),
    ("sink kind", {"sink_logits": 0.0}, ["sink_logits", "float"]),
    ("dropout negative", {"dropout": -0.1}, ["dropout", "-0.1"]),
    ("dropout one", {"dropout": 1.0}, ["dropout", "1.0"]),
    ("backend", {"backend": "flash"}, ["backend", "flash", "auto", "fused", "reference"]),
]


@pytest.mark.parametrize("observed", [False, True], ids=["attend", "attend_observed"])
@pytest.mark.parametrize(("changes", "words"), [pytest.param(c, w, id=name) for name, c, w in CALLS])
def test_a_call_that_makes_no_sense_is_refused_by_name_and_value(
    changes: dict[str, Any], words: list[str], observed: bool
) -> None:
    call = fixed()
    given = {"query": call.query, "key": call.key, "value": call.value}
    with pytest.raises((ValueError, TypeError)) as caught:
        given |= {name: change() if callable(change) else change for name, change in changes.items()}
        regard.attend_observed(**given, watch=Watch()) if observed else regard.attend(**given)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    missing = [word for word in words if word not in message]
    assert not missing, f"{message!r} does not say {missing}"


WATCHES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("top", {"top": -1}, ["top", "-1"]),
    ("segments dtype", {"segments": torch.zeros(11)}, ["segments", "float32"]),
    ("segments length", {"segments": torch.zeros(10, dtype=torch.long)}, ["segments", "(10,)", "(11,)"]),
    (
        "segments batch",
        {"segments": torch.zeros(3, 11, dtype=torch.long)},
        ["segments", "(3, 11)", "(2, 11)"],
    ),
    ("rows dtype", {"rows": torch.zeros(2)}, ["rows", "float32"]),
    ("rows rank", {"rows": torch.zeros(2, 2, dtype=torch.long)}, ["rows", "(2, 2)"]),
    ("rows too far", {"rows": torch.tensor([0, 9])}, ["rows", "9", "8"]),
    ("rows negative", {"rows": torch.tensor([-1, 3])}, ["rows", "-1"]),
]


@pytest.mark.parametrize(("changes", "words"), [pytest.param(c, w, id=name) for name, c, w in WATCHES])
def test_a_watch_that_makes_no_sense_is_refused_by_name_and_value(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        regard.attend_observed(*fixed().tensors, watch=Watch(**changes))
    message = str(caught.value)
    assert "\n" not in message
    missing = [word for word in words if word not in message]
    assert not missing, f"{message!r} does not say {missing}"


def test_a_backend_that_refuses_says_which_argument() -> None:
    with pytest.raises(ValueError, match=r"'reference' refuses.*dropout is 0.5"):
        regard.attend(*fixed().tensors, dropout=0.5, backend="reference")


def test_an_unknown_stage_is_refused() -> None:
    call = fixed()
    with pytest.raises(ValueError, match=r"stage is 'softmax'.*weights"):
        reference.scores(call.query, call.key, stage="softmax")  # type: ignore[arg-type]
