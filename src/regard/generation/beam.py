"""Beam search: the K likeliest beginnings of every sentence, continued together, until none can still win.

    S | sentences still searched    K | beams    V | vocabulary    C | candidates: the best continuations, 2K of them

A hypothesis of n pieces (its end counts) and log-probability p scores p / ((5 + n) / 6)^alpha (arXiv
1609.08144, equation 14, without the coverage penalty).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from regard.generation.steps import Steps


@dataclass(frozen=True)
class Hypothesis:
    """A finished sentence."""

    ids: tuple[int, ...]  # with the end piece
    score: float  # log-probability over length penalty
    log_probability: float


@dataclass
class _Search:
    """The sentences still searched; K is 1 before the first step."""

    sentences: Tensor  # (S,) which of the caller's sentences these are
    limits: Tensor  # (S,) most pieces each may have
    totals: Tensor  # (S, K) log-probabilities; -inf for a beam that is none
    written: Tensor  # (S, K, n) pieces so far
    finished: Tensor  # (S,) how many hypotheses have ended
    best: Tensor  # (S,) score of the best of them; -inf before the first
    best_total: Tensor  # (S,) its log-probability
    best_length: Tensor  # (S,) its pieces, the end among them
    best_written: Tensor  # (S, longest limit) these pieces, filled up with anything


@dataclass(frozen=True)
class _Candidates:
    """The best continuations of each sentence, best first."""

    totals: Tensor  # (S, C) log-probabilities
    parents: Tensor  # (S, C) which beam each continues
    pieces: Tensor  # (S, C) with which piece
    ends: Tensor  # (S, C) whether that is the end


@dataclass(frozen=True)
class _Rules:
    """The settings of a search."""

    ends: tuple[int, ...]
    banned: tuple[int, ...]
    beams: int
    alpha: float
    must_end: bool

    def penalty(self, length: Tensor | int) -> Tensor | float:
        return ((5 + length) / 6) ** self.alpha


def beam_search(
    steps: Steps,
    limits: Sequence[int] | Tensor,
    *,
    bos: int,
    eos: int | Sequence[int],
    banned: Sequence[int] = (),
    beams: int = 5,
    alpha: float = 1.0,
    must_end: bool = True,
) -> list[Hypothesis]:
    """The best hypothesis of every sentence.

    A sentence is done when `beams` hypotheses have ended, or when no live one can still score better than the best that
    has; it then leaves the batch. An end counts only among the `beams` best candidates: one beam is greedy search.

    Args:
        steps: the model, with one hypothesis a sentence.
        limits: for each sentence, how many pieces it may have, the end among them: (S,), at least 1.
        bos: first input of the decoder.
        eos: the end, or several pieces of which each is one.
        banned: ids that are never written; their probability is lost, not given to others.
        beams: K.
        alpha: 0 compares log-probabilities, 1 nearly their mean per piece.
        must_end: only an end may be written at a sentence's limit; otherwise whatever is written there ends it.

    Returns:
        One hypothesis a sentence, in order.

    Raises:
        ValueError: if beams or a limit is less than 1, alpha is negative, eos is banned, or a score is NaN.
    """
    bounds = torch.as_tensor(limits, dtype=torch.int64)
    rules = _Rules((eos,) if isinstance(eos, int) else tuple(eos), tuple(banned), beams, alpha, must_end)
    _check(bounds, rules)
    results: dict[int, Hypothesis] = {}
    search = _begin(bounds)
    pieces = torch.full_like(bounds, bos)  # (S * K,)
    position = 0
    while len(search.sentences):
        scores = steps.scores(pieces, position)  # (S * K, V)
        if bool(scores.isnan().any()):
            raise ValueError(f"the scores at position {position} are not numbers; the search cannot go on")
        candidates = _candidates(search, scores, position, rules)
        _finish(search, candidates, position, rules)
        rows = _continue(search, candidates, beams)  # (S, K)
        bound = search.totals.amax(1) / rules.penalty(search.limits)  # a live hypothesis can score no better
        done = (search.finished >= beams) | (search.best >= bound)
        if bool(done.any()):
            results |= _results(_select(search, done))
            going = (~done).nonzero()[:, 0]
            search, rows = _select(search, going), rows[going]
            if len(going):
                steps.follow(rows.flatten())
                steps.keep(going)
        else:
            steps.follow(rows.flatten())
        pieces = search.written[:, :, -1].flatten()
        position += 1
    return [results[sentence] for sentence in range(len(bounds))]


def _check(limits: Tensor, rules: _Rules) -> None:
    if limits.dim() != 1 or bool((limits < 1).any()):
        raise ValueError(f"limits are {limits.tolist()}: they must be one number a sentence, each at least 1")
    if rules.beams < 1:
        raise ValueError(f"beams is {rules.beams}: it must be at least 1")
    if not rules.alpha >= 0:
        raise ValueError(f"alpha is {rules.alpha}: it must be at least 0")
    for end in rules.ends:
        if end in rules.banned:
            raise ValueError(f"banned holds {end}, the end piece: a sentence must be able to end")
    if rules.must_end and not rules.ends:
        raise ValueError("eos is empty: where a sentence must end there must be an end piece")


def _begin(limits: Tensor) -> _Search:
    S, longest = len(limits), int(limits.max()) if len(limits) else 0
    zeros = torch.zeros(S, dtype=torch.float64, device=limits.device)
    return _Search(
        sentences=torch.arange(S, device=limits.device),
        limits=limits,
        totals=zeros[:, None],
        written=limits.new_empty(S, 1, 0),
        finished=torch.zeros_like(limits),
        best=zeros - torch.inf,
        best_total=zeros - torch.inf,
        best_length=torch.zeros_like(limits),
        best_written=limits.new_zeros(S, longest),
    )


def _candidates(search: _Search, scores: Tensor, position: int, rules: _Rules) -> _Candidates:
    S, K = search.totals.shape
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32))
    normaliser = logits.logsumexp(1, keepdim=True)  # (S * K, 1)
    if rules.banned:
        logits = logits.index_fill(1, torch.tensor(rules.banned, device=logits.device), -torch.inf)
    at_limit = search.limits == position + 1  # (S,)
    if rules.must_end and bool(at_limit.any()):
        only_end = torch.full_like(logits, -torch.inf)
        only_end[:, list(rules.ends)] = logits[:, list(rules.ends)]
        logits = torch.where(at_limit.repeat_interleave(K)[:, None], only_end, logits)
    # Every beam may end in as many ways as there are ends, and K shall go on: 2K are enough with one end.
    most = (1 + max(1, len(rules.ends))) * rules.beams
    width = min(most, logits.shape[1])
    likeliest, pieces = logits.topk(width, dim=1)  # (S * K, width)
    totals = search.totals.view(S * K, 1) + (likeliest - normaliser)
    totals, index = totals.view(S, K * width).topk(min(most, K * width), dim=1)  # (S, C)
    pieces = pieces.view(S, K * width).gather(1, index)
    ends = torch.isin(pieces, torch.tensor(rules.ends, dtype=pieces.dtype, device=pieces.device))
    return _Candidates(totals, index // width, pieces, ends | at_limit[:, None])


def _finish(search: _Search, candidates: _Candidates, position: int, rules: _Rules) -> None:
    """Take up the hypotheses that end here."""
    ended = candidates.ends & (candidates.totals > -torch.inf)
    ended[:, rules.beams :] = False
    search.finished = search.finished + ended.sum(1)
    scores = (candidates.totals / rules.penalty(position + 1)).masked_fill(~ended, -torch.inf)
    best, rank = scores.max(1)  # (S,)
    better = best > search.best
    if not bool(better.any()):
        return
    rank = rank[:, None]
    search.best = torch.where(better, best, search.best)
    search.best_total = torch.where(better, candidates.totals.gather(1, rank)[:, 0], search.best_total)
    search.best_length = torch.where(better, position + 1, search.best_length)
    parent = candidates.parents.gather(1, rank)[..., None].expand(-1, -1, position)
    written = search.written.gather(1, parent)[:, 0]  # (S, position)
    written = torch.cat([written, candidates.pieces.gather(1, rank)], dim=1)
    reached = search.best_written[:, : position + 1]
    search.best_written[:, : position + 1] = torch.where(better[:, None], written, reached)


def _continue(search: _Search, candidates: _Candidates, beams: int) -> Tensor:
    """Go on with the best that do not end; returns the row (S, K) among the S * K before that each continues."""
    order = candidates.ends.to(torch.uint8).argsort(dim=1, stable=True)[:, :beams]  # (S, K), best first
    parents = candidates.parents.gather(1, order)
    pieces = candidates.pieces.gather(1, order)
    S, K, n = search.written.shape
    search.totals = candidates.totals.masked_fill(candidates.ends, -torch.inf).gather(1, order)
    search.written = torch.cat(
        [search.written.gather(1, parents[..., None].expand(-1, -1, n)), pieces[..., None]], dim=2
    )
    return parents + K * torch.arange(S, device=parents.device)[:, None]


def _select(search: _Search, sentences: Tensor) -> _Search:
    return _Search(**{field.name: getattr(search, field.name)[sentences] for field in fields(search)})


def _results(search: _Search) -> dict[int, Hypothesis]:
    columns = (search.sentences, search.best_written, search.best_length, search.best, search.best_total)
    return {
        sentence: Hypothesis(tuple(written[:length]), score, total)
        for sentence, written, length, score, total in zip(*(c.tolist() for c in columns), strict=True)
    }
