"""Where a text of speech may hold time stamps, as Whisper was trained to write them (arXiv 2212.04356).

N | hypotheses    V | vocabulary, whose last pieces are the time stamps    T | pieces of prompt and answer so far
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TimeStamps:
    """A rule for `regard.generation.Constraints`: a stamp, text, a stamp, and again, never going back.

    A stamp is also written where all stamps together are likelier than any other piece.

    Args:
        first: the piece for 0 seconds; all from it on are stamps.
        end: the piece that ends a text; those before it are what is spoken.
        none: the piece of a prompt that asks for no stamps; it is never written.
        latest: how many steps after 0 the first stamp may be at most; None is as late as it will.
    """

    first: int
    end: int
    none: int
    latest: int | None = None

    def __call__(self, scores: Tensor, text: Tensor, count: int) -> Tensor:
        """Scores (N, V) without what may not follow the last `count` pieces of text (N, T); changed in place."""
        pieces = torch.arange(scores.shape[1], device=scores.device)
        stamps = pieces >= self.first
        scores[:, self.none] = -torch.inf
        if count == 0:
            scores[:, : self.first] = -torch.inf
            if self.latest is not None:
                scores[:, self.first + self.latest + 1 :] = -torch.inf
        else:
            written = text[:, text.shape[1] - count :]  # (N, count)
            stamped = written >= self.first
            last = stamped[:, -1]
            paired = last & stamped[:, -2] if count > 1 else last
            opened = last & ~paired
            scores.masked_fill_(paired[:, None] & stamps, -torch.inf)
            scores.masked_fill_(opened[:, None] & (pieces < self.end), -torch.inf)
            # The stamp that ends a stretch may be the one that began the next: no stretch is empty.
            least = written.where(stamped, self.first - 1).amax(1) + (~opened).long()
            scores.masked_fill_(stamps & (pieces < least[:, None]), -torch.inf)
        due = scores[:, self.first :].logsumexp(1) > scores[:, : self.first].amax(1)
        scores[:, : self.first].masked_fill_(due[:, None], -torch.inf)
        return scores
