"""What may be written where: pieces that are forced, banned, or held back, whatever the model says.

N | hypotheses    V | vocabulary    T | pieces of prompt and answer so far
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NO_PIECE = -1
"""What a text of prompt and answer is filled up with on its left."""


@dataclass(frozen=True)
class Constraints:
    """Changes the scores of the next piece. They hold in the order of the arguments, the last one last.

    Args:
        no_repeat: how many pieces in a row may not come twice in prompt and answer; 0 permits any repetition.
        banned: pieces that are never written; their probability is lost, not given to others.
        phrases: pieces in a row that are never written.
        shortest: how many pieces are written before an end.
        first: the only piece that may come first; at no cost to the text's log-probability, like `last`.
        last: the only pieces that may come at a text's limit.
        banned_first: pieces that are not the first, or not the first after `first`.
        rule: more of them: changes scores (N, V), given prompt and answer (N, T) and how many pieces the answer has.
        renormalised: give what is banned of the probability to the others.
    """

    no_repeat: int = 0
    banned: tuple[int, ...] = ()
    phrases: tuple[tuple[int, ...], ...] = ()
    shortest: int = 0
    first: int | None = None
    last: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()
    rule: Callable[[Tensor, Tensor, int], Tensor] | None = None
    renormalised: bool = False

    def __bool__(self) -> bool:
        return self != Constraints()

    def __call__(self, scores: Tensor, text: Tensor, count: int, at_limit: Tensor, ends: Sequence[int]) -> Tensor:
        """The changed scores, in place where that is possible.

        Args:
            scores: (N, V), log-probabilities of the next piece, or scores where nothing is compared over pieces.
            text: (N, T), prompt and answer, filled up with `NO_PIECE` on the left.
            count: pieces of the answer among them.
            at_limit: (N,), whether the next piece is the last that an answer may have.
            ends: the pieces that end an answer.
        """
        if 0 < self.no_repeat <= text.shape[1]:
            rows = text.unfold(1, self.no_repeat, 1)  # (N, T + 1 - no_repeat, no_repeat)
            begun = text[:, None, text.shape[1] - self.no_repeat + 1 :]
            again = (rows[..., :-1] == begun).all(-1) & (rows[..., -1] != NO_PIECE)
            entry, place = again.nonzero(as_tuple=True)
            scores[entry, rows[entry, place, -1]] = -torch.inf
        _ban(scores, self.banned)
        for *begin, end in self.phrases:
            begun = torch.tensor(begin, dtype=text.dtype, device=text.device)
            if len(begin) <= text.shape[1]:
                here = (text[:, text.shape[1] - len(begin) :] == begun).all(1)  # (N,)
                scores[here, end] = -torch.inf
        if count < self.shortest:
            _ban(scores, ends)
        if self.first is not None and count == 0:
            scores = _only(scores, (self.first,))
        if self.last:
            scores = torch.where(at_limit[:, None], _only(scores, self.last), scores)
        if count == (self.first is not None):
            _ban(scores, self.banned_first)
        if self.rule is not None:
            scores = self.rule(scores, text, count)
        return scores - scores.logsumexp(1, keepdim=True) if self.renormalised else scores


def _ban(scores: Tensor, pieces: Sequence[int]) -> None:
    if pieces:
        scores.index_fill_(1, torch.tensor([*pieces], device=scores.device), -torch.inf)


def _only(scores: Tensor, pieces: Sequence[int]) -> Tensor:
    """Scores (N, V) with which nothing but these pieces is written, each at no cost."""
    only = torch.full_like(scores, -torch.inf)
    only[:, [*pieces]] = 0
    return only
