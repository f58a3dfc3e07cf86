"""The one door: which backend serves a call, and what happens when it cannot."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard import Watch
from regard.attention.dispatch import BACKENDS, Backend
from regard.attention.request import Request

X = torch.randn(1, 2, 3, 4)
NINES = torch.full_like(X, 9.0)


def registry(monkeypatch: pytest.MonkeyPatch, **entries: Backend) -> None:
    """Puts other backends before those of the registry."""
    kept = dict(BACKENDS)
    for name in kept:
        monkeypatch.delitem(BACKENDS, name)
    for name, backend in {**entries, **kept}.items():
        monkeypatch.setitem(BACKENDS, name, backend)


def of_nines(refuses: str | None = None, prefers: bool = True) -> Backend:
    """A backend whose every output is nine."""

    def attend(request: Request) -> Tensor:
        return NINES

    def observed(request: Request, watch: Watch) -> tuple[Tensor, Any]:
        return NINES, BACKENDS["fused"].attend_observed(request, watch)[1]

    answer: Callable[[Request], str | None] = lambda _: refuses  # noqa: E731
    return Backend(attend, observed, answer, lambda *_: prefers)


def test_auto_takes_the_first_that_does_not_refuse_and_prefers(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, refusing=of_nines("query is not to its taste"), unwilling=of_nines(prefers=False))
    assert not torch.equal(regard.attend(X, X, X), NINES)
    registry(monkeypatch, willing=of_nines())
    assert torch.equal(regard.attend(X, X, X), NINES)
    assert torch.equal(regard.attend_observed(X, X, X, watch=Watch())[0], NINES)


def test_auto_never_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = replace(of_nines(), refuses=BACKENDS["reference"].refuses, prefers=BACKENDS["reference"].prefers)
    registry(monkeypatch, failing=failing)
    assert not torch.equal(regard.attend(X, X, X), NINES)


def test_asked_by_name_a_backend_serves_though_it_would_not_be_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, unwilling=of_nines(prefers=False))
    assert torch.equal(regard.attend(X, X, X, backend="unwilling"), NINES)


def test_asked_by_name_a_backend_that_refuses_is_an_error_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, refusing=of_nines("softcap is 3.0; this backend has none"))
    with pytest.raises(ValueError, match=r"refusing.*softcap is 3.0"):
        regard.attend(X, X, X, softcap=3.0, backend="refusing")
    with pytest.raises(ValueError, match=r"refusing.*softcap is 3.0"):
        regard.attend_observed(X, X, X, softcap=3.0, backend="refusing", watch=Watch())


def test_fused_refuses_nothing() -> None:
    mask = regard.Causal() & regard.Dense(torch.rand(1, 2, 3, 3) < 0.5)
    output = regard.attend(
        X, X, X, mask=mask, bias=torch.randn(3), softcap=3.0, sink_logits=torch.ones(2), dropout=0.5, backend="fused"
    )
    assert output.shape == X.shape
