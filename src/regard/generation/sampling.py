"""The next piece: scores are filtered, and one piece is taken or drawn.

    N | entries of the batch    V | vocabulary

A filter takes scores (N, V) before softmax and sets those of the pieces it excludes to -inf; at least one stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regard.generation.constraints import NO_PIECE
from regard.generation.settings import GenerationSettings

_FIRST_WIDTH = 256
"""Likeliest pieces that are sorted first in the search for those that have a probability together."""


def repetition_penalty(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make less likely what was there before: positive scores over the penalty, negative ones times it.

    Args:
        scores: (N, V).
        seen: (N, V), true for the pieces that there were.
        penalty: 1 changes nothing (arXiv 1909.05858).
    """
    return scores.where(~seen, torch.where(scores < 0, scores * penalty, scores / penalty))


def top_k(scores: Tensor, k: int) -> Tensor:
    """Exclude all but the k likeliest pieces, and those that are equal to the last of them (arXiv 1805.04833)."""
    if k >= scores.shape[1]:
        return scores
    least = scores.topk(k, dim=1).values[:, -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def top_p(scores: Tensor, p: float) -> Tensor:
    """Exclude all but the likeliest pieces that together have at least the probability p (arXiv 1904.09751).

    The last of them is the one that reaches it; of equal ones at this bound all stay.
    """
    V = scores.shape[1]
    normaliser = scores.logsumexp(1, keepdim=True)
    width = min(_FIRST_WIDTH, V)
    while True:  # in most cases few pieces have nearly all of it, and need to be sorted
        likeliest = scores.topk(width, dim=1).values  # (N, width)
        mass = (likeliest - normaliser).exp().cumsum(1)
        if width == V or bool((mass[:, -1] >= p).all()):
            break
        width = min(8 * width, V)
    last = (mass < p).sum(1, keepdim=True).clamp(max=width - 1)
    return scores.masked_fill(scores < likeliest.gather(1, last), -torch.inf)


def min_p(scores: Tensor, p: float) -> Tensor:
    """Exclude pieces whose probability is less than p times that of the likeliest one (arXiv 2407.01082)."""
    share = (scores - scores.amax(1, keepdim=True)).exp()
    return scores.masked_fill(share < p, -torch.inf)


def filtered(
    scores: Tensor,
    settings: GenerationSettings,
    seen: Tensor | None = None,
    constrain: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The scores (N, V) after every filter of the settings, in their order.

    Args:
        scores: (N, V).
        settings: whose temperature, top_k, top_p, min_p and repetition_penalty are read; a temperature of 0 leaves
            the filters after it out, as they never exclude the likeliest piece.
        seen: (N, V), true for the pieces that prompt and answer have; needed for a repetition penalty.
        constrain: applies the settings' constraints, after the repetition penalty.

    Raises:
        ValueError: if there is a repetition penalty and `seen` is None.
    """
    if settings.repetition_penalty != 1:
        if seen is None:
            raise ValueError("seen is None: a repetition penalty needs the pieces that there were, (N, V)")
        scores = repetition_penalty(scores, seen, settings.repetition_penalty)
    if constrain is not None:
        scores = constrain(scores)
    if settings.temperature == 0:
        return scores
    scores = scores / settings.temperature
    if settings.top_k:
        scores = top_k(scores, settings.top_k)
    if settings.top_p < 1:
        scores = top_p(scores, settings.top_p)
    return min_p(scores, settings.min_p) if settings.min_p > 0 else scores


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Pieces (N,) drawn from softmax(scores): of each row the first whose cumulated probability is above a number.

    Args:
        scores: (N, V); -inf is never drawn.
        uniforms: (N,) float64, evenly distributed over [0, 1).
    """
    weights = (scores - scores.amax(1, keepdim=True)).exp()
    mass = weights.cumsum(1, dtype=torch.float64)  # (N, V)
    total = mass[:, -1:].contiguous()
    found = torch.searchsorted(mass, uniforms.to(mass.device)[:, None] * total, right=True)
    last = torch.searchsorted(mass, total)  # the first that reaches the whole is the last of any weight
    return torch.minimum(found, last)[:, 0]


def texts(prompts: Sequence[Sequence[int]], device: torch.device | None = None) -> Tensor:
    """Prompts as a tensor (N, longest), filled up on the left as constraints expect it."""
    longest = max(len(prompt) for prompt in prompts)
    return torch.tensor([[NO_PIECE] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=device)


class Sampler:
    """Takes or draws the next piece of each entry, with random numbers of its own for each.

    So an entry's answer depends on its own seed, whatever else is in the batch.

    Args:
        settings: of generation.
        prompts: the ids of each entry's prompt.
        vocab_size: V.
        limits: pieces that each answer may have, for the constraints; without end unless given.
        seeds: one an entry; the settings' seed for all unless given, or random ones where that is None.
        device: of the scores.

    Raises:
        ValueError: if there are more or fewer seeds than prompts.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        *,
        limits: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        if seeds is not None and len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds are given for {len(prompts)} prompts: there must be one for each")
        self._settings = settings
        if seeds is None:
            seeds = [secrets.randbits(63) if settings.seed is None else settings.seed for _ in prompts]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._count = 0  # pieces of each answer
        self._limits = torch.tensor([0] * len(prompts) if limits is None else limits, device=device)
        self._text = texts(prompts, device) if settings.constraints else None  # (N, T), prompt and answer
        self._seen: Tensor | None = None
        if settings.repetition_penalty != 1:
            self._seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in zip(self._seen, prompts, strict=True):
                row[torch.tensor(prompt, device=device)] = True

    def __call__(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The next pieces (N,), and their log-probabilities (N,) before any filter.

        Args:
            scores: (N, V).

        Raises:
            ValueError: if a score is NaN or all are -inf.
        """
        scores = scores.float()
        normaliser = scores.logsumexp(1)  # (N,)
        if not bool(normaliser.isfinite().all()):
            raise ValueError("the scores of the next piece are not finite numbers; generation cannot go on")
        constrain = None if self._text is None else self._constrain
        changed = filtered(scores, self._settings, self._seen, constrain) if self._settings.filters else scores
        if self._settings.temperature == 0:
            pieces = changed.argmax(1)
        else:
            numbers = [torch.rand((), generator=g, dtype=torch.float64) for g in self._generators]
            pieces = draw(changed, torch.stack(numbers))
        if self._seen is not None:
            self._seen.scatter_(1, pieces[:, None], True)
        if self._text is not None:
            self._text = torch.cat([self._text, pieces[:, None]], 1)
        self._count += 1
        return pieces, scores.gather(1, pieces[:, None])[:, 0] - normaliser

    def keep(self, entries: Sequence[int]) -> None:
        """Only these entries go on."""
        self._generators = [self._generators[i] for i in entries]
        self._limits = self._limits[list(entries)]
        if self._text is not None:
            self._text = self._text[list(entries)]
        if self._seen is not None:
            self._seen = self._seen[list(entries)]

    def _constrain(self, scores: Tensor) -> Tensor:
        assert self._text is not None
        at_limit = self._limits == self._count + 1
        return self._settings.constraints(scores.clone(), self._text, self._count, at_limit, self._settings.stop_ids)
