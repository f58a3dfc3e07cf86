"""Beam search: the K likeliest beginnings of every sentence, continued together, until none can still win.

    S | sentences still searched    K | beams    V | vocabulary    C | candidates: the best continuations, 2K of them

A hypothesis of n pieces (its end counts) and log-probability p scores p / ((5 + n) / 6)^alpha (arXiv
1609.08144, equation 14, without the coverage penalty), or with another offset than 5: with 0, p / n^alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from regard.generation.constraints import Constraints
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
    prompts: Tensor  # (S, P) what the decoder read before
    written: Tensor  # (S, K, n) pieces so far
    ended: Tensor  # (S, beams) scores of the best hypotheses that have ended, best first; -inf where there is none
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
    beams: int
    alpha: float
    offset: int
    must_end: bool
    early_stopping: bool | Literal["never"]
    constraints: Constraints

    def penalty(self, length: Tensor | int) -> Tensor | float:
        return ((self.offset + length) / (self.offset + 1)) ** self.alpha

    def done(self, search: _Search) -> Tensor:
        """(S,), whether a sentence's search is over."""
        live = search.totals.amax(1)  # (S,)
        if self.early_stopping is True:  # a live hypothesis can score no better than at its limit
            return (search.ended[:, -1] > -torch.inf) | (search.best >= live / self.penalty(search.limits))
        length = search.limits if self.early_stopping == "never" else search.written.shape[2]
        return ~(live / self.penalty(length) > search.ended[:, -1])


def beam_search(
    steps: Steps,
    limits: Sequence[int] | Tensor,
    *,
    eos: int | Sequence[int],
    beams: int = 5,
    alpha: float = 1.0,
    offset: int = 5,
    must_end: bool = True,
    early_stopping: bool | Literal["never"] = True,
    constraints: Constraints | None = None,
    prompts: Tensor | None = None,
) -> list[Hypothesis]:
    """The best hypothesis of every sentence.

    A sentence is done when `beams` hypotheses have ended, or when no live one can still score better than the best that
    has; it then leaves the batch. An end counts only among the `beams` best candidates: one beam is greedy search.

    Args:
        steps: the model, with one hypothesis a sentence.
        limits: for each sentence, how many pieces it may have, the end among them: (S,), at least 1.
        eos: the end, or several pieces of which each is one.
        beams: K.
        alpha: 0 compares log-probabilities, 1 nearly their mean per piece.
        offset: of the length penalty.
        must_end: only an end may be written at a sentence's limit; otherwise whatever is written there ends it.
        early_stopping: True stops as above. The other two go on after `beams` hypotheses have ended, until no live one
            scores better than the worst of the best `beams`: False compares their scores as they are, which may miss
            what would get better with its length; "never" compares what they could reach at their limit.
        constraints: what may not be written.
        prompts: (S, P), what the decoder has read before, for the constraints; see there. Nothing by default.

    Returns:
        One hypothesis a sentence, in order.

    Raises:
        ValueError: if beams or a limit is less than 1, alpha is negative, eos is banned, or a score is NaN.
    """
    bounds = torch.as_tensor(limits, dtype=torch.int64)
    ends = (eos,) if isinstance(eos, int) else tuple(eos)
    rules = _Rules(ends, beams, alpha, offset, must_end, early_stopping, constraints or Constraints())
    _check(bounds, rules)
    if not len(bounds):
        return []
    read = bounds.new_empty(len(bounds), 0) if prompts is None else prompts
    results = _run(_begin(bounds, beams, read), steps, rules)
    return [results[sentence] for sentence in range(len(bounds))]


def _run(search: _Search, steps: Steps, rules: _Rules) -> dict[int, Hypothesis]:
    """The hypothesis of every sentence."""
    results: dict[int, Hypothesis] = {}
    scores = steps.prompt_scores()  # (S * K, V)
    position = 0
    while True:
        if bool(scores.isnan().any()):
            raise ValueError(f"the scores at position {position} are not numbers; the search cannot go on")
        candidates = _candidates(search, scores, position, rules)
        _finish(search, candidates, position, rules)
        rows = _continue(search, candidates, rules.beams)  # (S, K)
        done = rules.done(search)
        if bool(done.any()):
            results |= _results(_select(search, done))
            going = (~done).nonzero()[:, 0]
            if not len(going):
                return results
            search, rows = _select(search, going), rows[going]
            steps.follow(rows.flatten())
            steps.keep(going)
        else:
            steps.follow(rows.flatten())
        scores = steps.scores(search.written[:, :, -1].flatten(), position)
        position += 1


def _check(limits: Tensor, rules: _Rules) -> None:
    if limits.dim() != 1 or bool((limits < 1).any()):
        raise ValueError(f"limits are {limits.tolist()}: they must be one number a sentence, each at least 1")
    if rules.beams < 1:
        raise ValueError(f"beams is {rules.beams}: it must be at least 1")
    if not rules.alpha >= 0:
        raise ValueError(f"alpha is {rules.alpha}: it must be at least 0")
    for end in rules.ends:
        if end in rules.constraints.banned:
            raise ValueError(f"banned holds {end}, the end piece: a sentence must be able to end")
    if rules.must_end and not rules.ends:
        raise ValueError("eos is empty: where a sentence must end there must be an end piece")


def _begin(limits: Tensor, beams: int, prompts: Tensor) -> _Search:
    S, longest = len(limits), int(limits.max())
    zeros = torch.zeros(S, dtype=torch.float64, device=limits.device)
    return _Search(
        sentences=torch.arange(S, device=limits.device),
        limits=limits,
        totals=zeros[:, None],
        prompts=prompts,
        written=limits.new_empty(S, 1, 0),
        ended=zeros[:, None].repeat(1, beams) - torch.inf,
        best=zeros - torch.inf,
        best_total=zeros - torch.inf,
        best_length=torch.zeros_like(limits),
        best_written=limits.new_zeros(S, longest),
    )


def _candidates(search: _Search, scores: Tensor, position: int, rules: _Rules) -> _Candidates:
    S, K = search.totals.shape
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32))
    logs = logits - logits.logsumexp(1, keepdim=True)  # (S * K, V)
    at_limit = search.limits == position + 1  # (S,)
    if rules.constraints:
        text = torch.cat([search.prompts[:, None].expand(-1, K, -1), search.written], 2).flatten(0, 1)
        logs = rules.constraints(logs, text, position, at_limit.repeat_interleave(K), rules.ends)
    if rules.must_end and bool(at_limit.any()):
        only_end = torch.full_like(logs, -torch.inf)
        only_end[:, list(rules.ends)] = logs[:, list(rules.ends)]
        logs = torch.where(at_limit.repeat_interleave(K)[:, None], only_end, logs)
    # Every beam may end in as many ways as there are ends, and K shall go on: 2K are enough with one end.
    most = (1 + max(1, len(rules.ends))) * rules.beams
    width = min(most, logs.shape[1])
    likeliest, pieces = logs.topk(width, dim=1)  # (S * K, width)
    totals = search.totals.view(S * K, 1) + likeliest
    totals, index = totals.view(S, K * width).topk(min(most, K * width), dim=1)  # (S, C)
    pieces = pieces.view(S, K * width).gather(1, index)
    ends = torch.isin(pieces, torch.tensor(rules.ends, dtype=pieces.dtype, device=pieces.device))
    return _Candidates(totals, index // width, pieces, ends | at_limit[:, None])


def _finish(search: _Search, candidates: _Candidates, position: int, rules: _Rules) -> None:
    """Take up the hypotheses that end here."""
    ended = candidates.ends & (candidates.totals > -torch.inf)
    ended[:, rules.beams :] = False
    scores = (candidates.totals / rules.penalty(position + 1)).masked_fill(~ended, -torch.inf)
    search.ended = torch.cat([search.ended, scores], 1).topk(rules.beams, dim=1).values
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
