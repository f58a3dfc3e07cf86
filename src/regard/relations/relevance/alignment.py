"""What attention weights say about a translation: word alignment, read off cross-attention.

H | heads    Lt, Ls | target and source pieces    Wt, Ws | target and source words
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.elements import span_data
from regard.relations.relations import Relations
from regard.relations.sites import Sequence


@dataclass(frozen=True)
class Alignment:
    """Which source word each target word was read from.

    Args:
        method: how it was read, for a person.
        source: the source sequence, with words.
        target: the target sequence, with words.
        weights: (Wt, Ws), the mean weight that the pieces of a target word put on the pieces of a source word.
    """

    method: str
    source: Sequence
    target: Sequence
    weights: Tensor

    @property
    def links(self) -> list[tuple[int, int, float]]:
        """For every target word: the word, the source word with the largest weight, and this weight."""
        if not self.source.words:
            return []
        weights, words = self.weights.max(-1)
        return [(i, int(j), float(w)) for i, (j, w) in enumerate(zip(words, weights, strict=True))]

    def to_dict(self) -> dict[str, Any]:
        """As data for views and `--json`."""

        def words(sequence: Sequence) -> list[dict[str, Any]]:
            return [{"label": w.label, "span": span_data(w.span)} for w in sequence.words]

        return {
            "method": self.method,
            "source": words(self.source),
            "target": words(self.target),
            "links": [{"target": t, "source": s, "weight": w} for t, s, w in self.links],
            "weights": self.weights.tolist(),
        }


def align(relations: Relations, *, layer: int = -1, shifted: bool = True, item: int = 0) -> Alignment:
    """Word alignment from the cross-attention of one decoder layer, the mean over its heads.

    A decoder has just read a word one position after it was written. Attention from there, "shifted", points at the
    word's source better than attention from where it was written (arXiv 2004.14837).

    Args:
        relations: of a pass over source and answer whose sequences have words.
        layer: which of the cross-attention layers, counted from the first, or from the last if negative.
        shifted: read a word's row where it was read rather than where it was written.
        item: which batch entry.

    Raises:
        ValueError: there is no cross-attention, no such layer, or its sequences have no words.
    """
    sites = [site for site in relations.sites if site.kind == "cross"]
    if not -len(sites) <= layer < len(sites):
        raise ValueError(f"layer is {layer}; there are {len(sites)} layers of cross-attention")
    site = sites[layer]
    source, target = (relations.sequences[item].get(name) for name in (site.key, site.query))
    if source is None or target is None or not source.word_of or not target.word_of:
        raise ValueError(f"the sequences of {site.path} have no words to align")
    weights = relations.weights(site.path, item=item).mean(0).cpu()  # (Lt, Ls)
    # word_of names the word that a row has read; the row before is where that piece was written
    rows = weights if shifted else weights.roll(1, 0)
    from_pieces = _membership(target).T / _membership(target).sum(0).clamp(min=1)[:, None]  # (Wt, Lt), means
    aligned = from_pieces @ (rows @ _membership(source))  # (Wt, Ws)
    where = "read one step later (arXiv 2004.14837)" if shifted else "read where the word is written"
    method = f"cross-attention, layer {site.layer}, mean over {site.heads} heads, {where}"
    return Alignment(method, source, target, aligned)


def _membership(sequence: Sequence) -> Tensor:
    """(L, W): 1 where a piece belongs to a word."""
    word_of = torch.tensor(sequence.word_of)
    return (word_of[:, None] == torch.arange(len(sequence.words))).float()
