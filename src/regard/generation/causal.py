"""Steps of a model that continues text: prompts of unequal length, read in pieces of bounded size.

N | entries, or hypotheses of them    L | positions, padding among them    V | vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from regard.attention import KVCache
from regard.attention.cache import Slot
from regard.attention.position import Rotary
from regard.relations.capture.modules import followed


class CausalModel(Protocol):
    """A model that continues text: Llama's families and all that have the same three functions.

    Its `config` has `vocab_size` and `max_positions`.
    """

    config: Any

    def hidden(
        self,
        ids: Tensor,
        *,
        start: int = 0,
        padding: Tensor | None = None,
        cache: KVCache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """The last hidden states (B, L, d) of ids (B, L); see `regard.models.llama.Llama.hidden`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d) → scores of the next piece (..., V)."""
        ...

    def cache(self, capacity: int = 0, *, padded: bool = False) -> KVCache:
        """An empty cache, for entries that are padded on the left or not."""
        ...


PREFILL_POSITIONS = 2048
"""Positions of prompts, padding among them, that pass the model at once at most, so that memory stays bounded."""


class CausalSteps:
    """`Steps` of a model that continues text. Prompts of unequal length are padded on the left.

    Args:
        model: in evaluation mode.
        prompts: the ids of each entry, none empty.
        capacity: pieces that an entry may come to have, for which the cache makes room at once.
        prefill: see `PREFILL_POSITIONS`; at least one position of each entry is computed at a time.
        vocabulary: ids from here on, which some models have to fill up their matrices, get no scores.
    """

    def __init__(
        self,
        model: CausalModel,
        prompts: Sequence[Sequence[int]],
        *,
        capacity: int = 0,
        prefill: int = PREFILL_POSITIONS,
        vocabulary: int | None = None,
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._prefill = prefill
        device = next(model.parameters()).device  # type: ignore[attr-defined]  # every model is a module
        lengths = [len(prompt) for prompt in prompts]
        self._length = max(lengths)  # of the prompts with their padding
        rows = [[0] * (self._length - len(prompt)) + [*prompt] for prompt in prompts]
        self._prompts: Tensor | None = torch.tensor(rows, device=device)  # (N, L), until it is computed
        padded = min(lengths) < self._length
        self._padding = torch.tensor([self._length - n for n in lengths], device=device) if padded else None
        self._cache = model.cache(capacity, padded=padded)

    def prompt_scores(self) -> Tensor:
        """See `Steps.prompt_scores`."""
        assert self._prompts is not None, "the prompts are computed already"
        ids, self._prompts = self._prompts, None
        piece = max(1, self._prefill // len(ids))
        asked = {} if self.followed or self._hooked else {"last": 1}  # whoever looks on sees every row
        hidden = ids.new_empty(0)
        for start in range(0, self._length, piece):
            part = ids[:, start : start + piece]
            hidden = self._model.hidden(part, start=start, padding=self._padding, cache=self._cache, **asked)
        return self._model.logits(hidden[:, -1])[:, : self._vocabulary]

    def scores(self, pieces: Tensor, position: int) -> Tensor:
        """See `Steps.scores`."""
        start = self._length + position
        hidden = self._model.hidden(pieces[:, None], start=start, padding=self._padding, cache=self._cache)
        return self._model.logits(hidden[:, -1])[:, : self._vocabulary]  # (N, V)

    @property
    def forgets(self) -> bool:
        """Whether pieces that were read can be taken back without a trace.

        Not from a cache that keeps a window alone, nor where the length that a call comes to turns the keys it caches.
        """
        modules = cast("nn.Module", self._model).modules()
        turned = any(isinstance(module, Rotary) and module.follows_length for module in modules)
        return not turned and all(type(slot) is Slot for slot in self._cache)

    @property
    def followed(self) -> bool:
        """Whether somebody observes the model now."""
        return followed(cast("nn.Module", self._model))

    @property
    def _hooked(self) -> bool:
        """Whether somebody's hooks see what modules are given and give."""
        modules = cast("nn.Module", self._model).modules()
        return any(vars(module)[hooks] for module in modules for hooks in ("_forward_hooks", "_forward_pre_hooks"))

    def scores_after_each(self, pieces: Sequence[int], position: int) -> Tensor:
        """Scores (n, V) of what follows each of n pieces of the only entry's answer, the first at `position`.

        What was read beyond `position` before is forgotten first; see `forgets`.
        """
        start = self._length + position
        self._cache.truncate(start)
        ids = torch.tensor([[*pieces]], device=next(self._model.parameters()).device)  # type: ignore[attr-defined]
        hidden = self._model.hidden(ids, start=start, padding=self._padding, cache=self._cache)
        return self._model.logits(hidden[0])[:, : self._vocabulary]

    def follow(self, rows: Tensor) -> None:
        """See `Steps.follow`."""
        self._cache.reorder(rows)
        if self._padding is not None:
            self._padding = self._padding[rows]

    def keep(self, sentences: Tensor) -> None:
        """See `Steps.keep`: `follow` has done it all, as nothing here is kept once a sentence."""
