"""How faithful relevance methods are to a classifier of texts: its answer without the pieces that they call relevant.

L | pieces of a text, special ones among them    N | pieces that may be deleted    n | copies    C | classes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from regard.attention import Watch
from regard.pipelines.classification import ClassificationPipeline, probabilities
from regard.pipelines.packing import PACK, Read
from regard.pipelines.texts import RequestError
from regard.relations import (
    Relations,
    attention_outputs,
    faithfulness_of,
    gradient_relevance,
    gradient_times_input,
    observe,
    rollout,
    summed_value_norm_weights,
)
from regard.relations.faithfulness import METRICS

Deletion = Literal["mask", "unk", "pad", "attention"]
"""What takes the place of a deleted piece: the tokenizer's mask, unknown or padding piece; or nothing, "attention": no
piece attends to it any more, and the others keep their places."""


@dataclass(frozen=True)
class _Pass:
    """One pass over a text, and all that methods read of it."""

    relations: Relations
    outputs: Mapping[str, Tensor]  # by site, what attention hands to its output projection, with a graph
    projections: Mapping[str, torch.nn.Module]
    embedded: Tensor  # (1, L, d)
    answer: Tensor  # the logit of the class


def _last(seen: _Pass) -> str:
    return seen.relations.sites[-1].path


def _attention(seen: _Pass) -> Tensor:
    return seen.relations.weights(_last(seen), rows=range(1)).mean(0)[0]


def _value_norm(seen: _Pass) -> Tensor:
    weight: Any = seen.projections[_last(seen)].weight
    return summed_value_norm_weights(seen.relations, _last(seen), rows=range(1), output_weight=weight)[0]


@dataclass(frozen=True)
class Method:
    """A way to say how much each piece mattered for a class.

    Args:
        description: for a person, with the source.
        scores: from a pass over a text, (L,).
    """

    description: str
    scores: Callable[[_Pass], Tensor] = field(repr=False)


METHODS: Mapping[str, Method] = {
    "attention": Method("raw attention: weights of the last layer's first row, mean over heads", _attention),
    "value-norm": Method(
        "norm of what each piece adds to the last layer's first row, all heads together (arXiv 2004.10102)",
        _value_norm,
    ),
    "rollout": Method(
        "attention rollout of the first row through all layers (arXiv 2005.00928)",
        lambda seen: rollout(seen.relations, 0).scores,
    ),
    "gradient": Method(
        "gradient-weighted relevance of the class through all layers (arXiv 2103.15679)",
        lambda seen: gradient_relevance(seen.relations, seen.answer, seen.outputs, 0).scores,
    ),
    "gradient-input": Method(
        "gradient of the class times the piece's embedding (arXiv 1605.01713)",
        lambda seen: gradient_times_input(seen.answer, seen.embedded).scores,
    ),
}
"""By name. The first row is the one that a text's classes are read from."""


@dataclass(frozen=True)
class FaithfulText:
    """How faithful the methods were for one text.

    Args:
        text: as it was given.
        label: the class that the model finds likeliest, which relevance was asked for.
        score: its probability.
        pieces: how many could be deleted: all but special ones.
        values: by method, "random" last, and metric; see `regard.relations.faithfulness_of`.
    """

    text: str
    label: str
    score: float
    pieces: int
    values: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        return {name: value for name, value in self.__dict__.items()}


class TextFaithfulness:
    """Measures relevance methods on texts, one at a time.

    The answer is the probability of the class that the model finds likeliest for the whole text. Special pieces are
    never deleted.

    Args:
        classify: the classifier.
        methods: names in `METHODS`.
        metrics: names in `regard.relations.faithfulness.METRICS`.
        deletion: see `Deletion`.
        controls: rankings at random that each text's control is the mean of.
        seed: of these; one sequence of rankings for all texts.

    Raises:
        RequestError: if the model is a regression, its tokenizer has no such piece, or an argument is none that there
            is.
    """

    def __init__(
        self,
        classify: ClassificationPipeline,
        *,
        methods: Sequence[str] = tuple(METHODS),
        metrics: Sequence[str] = tuple(METRICS),
        deletion: str = "mask",
        controls: int = 5,
        seed: int = 0,
    ) -> None:
        self.reader = classify.reader
        self.config: Any = self.reader.model.config
        where = self.reader.checkpoint.directory
        if self.config.problem == "regression":
            raise RequestError(f"{where} answers with numbers: it must have classes, whose probabilities are compared")
        for what, given, known in (("method", methods, METHODS), ("metric", metrics, METRICS)):
            if unknown := [name for name in given if name not in known] or ([] if given else [""]):
                raise RequestError(f"{what} is {unknown[0]!r}: it must be one of {', '.join(known)}")
        if deletion not in get_args(Deletion):
            raise RequestError(f"deletion is {deletion!r}: it must be one of {', '.join(get_args(Deletion))}")
        if controls < 1:
            raise RequestError(f"controls is {controls}: it must be at least 1")
        pieces = {name: getattr(self.reader.tokenizer, name) for name in ("mask", "unk", "pad")}
        if deletion != "attention" and pieces[deletion] is None:
            there = ", ".join([*(name for name, piece in pieces.items() if piece is not None), "attention"])
            raise RequestError(f"deletion is {deletion!r}, a piece that {where} does not have: it may be {there}")
        self.methods, self.metrics, self.deletion, self.controls = (*methods,), (*metrics,), deletion, controls
        self._replacement: int | None = pieces.get(deletion)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, text: str, name: str = "text") -> FaithfulText:
        """Measure all methods on a text.

        Args:
            text: what is classified.
            name: what messages call it.

        Raises:
            TextTooLong: if it has more pieces than the model has positions.
            RequestError: if it is empty.
        """
        (read,) = self.reader.read([text], [name])
        removable = torch.tensor([e.index for e in self.reader.elements(read) if e.span is not None], dtype=torch.int64)
        if not len(removable):
            raise RequestError(f"{name} has no piece but special ones: there is nothing to delete")
        label, score, seen = self._seen(read)
        scores = {method: METHODS[method].scores(seen)[removable] for method in self.methods}
        values = faithfulness_of(
            lambda kept: self._answers(read, removable, kept, label),
            scores,
            metrics=self.metrics,
            controls=self.controls,
            generator=self._generator,
        )
        return FaithfulText(text, self.config.labels[label], score, len(removable), values)

    def _seen(self, read: Read) -> tuple[int, float, _Pass]:
        """The likeliest class, its probability, and the pass that found it, with gradients."""
        model = self.reader.model
        blocks = {f"encoder.blocks.{n}.attention": block.attention for n, block in enumerate(model.encoder.blocks)}
        projections = {path: attention.out for path, attention in blocks.items()}
        embedded: list[Tensor] = []

        def keep(module: object, args: object, output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_())
            return embedded[0]

        types = None if read.types is None else torch.tensor(read.types, device=self.reader.device)[None]
        watch = Watch(top=0, received=False, entropy=False, position=False)
        handle = model.embedding.register_forward_hook(keep)
        try:
            with (
                torch.enable_grad(),
                observe(model, watch=watch, this_thread=True) as relations,
                attention_outputs(projections) as outputs,
            ):
                hidden = model.hidden(torch.tensor(read.ids, device=self.reader.device)[None], types=types)
                logits = model.head(hidden[0, 0])  # (C,)
        finally:
            handle.remove()
        found = probabilities(logits.detach(), self.config.problem)
        label = int(found.argmax())
        return label, float(found[label]), _Pass(relations, outputs, projections, embedded[0], logits[label])

    @torch.no_grad()
    def _answers(self, read: Read, removable: Tensor, kept: Tensor, label: int) -> Tensor:
        """The class's probability for copies of a text that keep these pieces, (n, N) → (n,)."""
        ids, L = torch.tensor(read.ids), len(read.ids)
        there = torch.ones(len(kept), L, dtype=torch.bool)
        there[:, removable] = kept
        found: list[Tensor] = []
        for part in there.split(max(1, PACK // L)):
            rows = ids.expand(len(part), L)
            if self._replacement is not None:
                rows, part = torch.where(part, rows, self._replacement), torch.ones_like(part)
            # A piece that nothing attends to changes no other's row: leaving it out, places kept, is the same and less.
            lengths = part.sum(-1)
            places = torch.arange(L).expand_as(part)[part]
            types = None if read.types is None else torch.tensor(read.types).expand_as(part)[part]
            hidden = self.reader.hidden(rows[part], lengths, places, types)
            logits = self.reader.model.head(hidden[(lengths.cumsum(0) - lengths).to(hidden.device)])  # (n, C)
            found.append(probabilities(logits, self.config.problem)[:, label].cpu())
        return torch.cat(found)
