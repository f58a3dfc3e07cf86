"""Embeddings: texts in, a vector for each out, near to those of texts that mean the same (arXiv 1908.10084).

How the rows of a text become one vector is read from the files that the library sentence-transformers writes:
modules.json, the folder that it names for pooling, sentence_bert_config.json and config_sentence_transformers.json.
A checkpoint without them gets the mean of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from regard.inputs.tokenizer import Tokenizer
from regard.models import ModelError
from regard.models.checkpoint import MODULES, Checkpoint
from regard.models.sentence_encoder import POOLINGS, Pooling, modules_of, pooling_of
from regard.pipelines.packing import PACK, Answer, Pack, Progress, Read, TextReader, Texts
from regard.pipelines.texts import RequestError


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a checkpoint makes a vector of a text.

    Args:
        pooling: one way, or several whose vectors are put one after another.
        normalize: whether vectors have length 1.
        most: pieces that a text may have before it is cut off; None: the model's positions.
        lower: whether texts are brought to lower case first.
        prompts: what may be put before a text, by name.
        prompt: the name of the one that is put there unless another is asked for.
    """

    pooling: tuple[Pooling, ...] = ("mean",)
    normalize: bool = False
    most: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    prompt: str | None = None


@dataclass(frozen=True)
class Embedding(Answer):
    """The vector of a text, and how it was read."""

    given: str  # before a prompt was put there, and before it was brought to lower case
    vector: Tensor = field(compare=False)  # (d,)
    task = "embed"

    @property
    def text(self) -> str:
        """The text as it was given."""
        return self.given

    def to_dict(self) -> dict[str, Any]:
        """Text and vector as data."""
        return {"text": self.text, "embedding": self.vector.tolist()}

    def report(self) -> dict[str, Any]:
        """The text as it was read, and relations, as data."""
        return self.relations.to_dict() | {"input": self.read.text, "answer": "", "alignment": None}


class EmbeddingPipeline:
    """Makes vectors of texts; see `pipeline`.

    Args:
        checkpoint: an encoder of text, whatever its head.
        tokenizer: the model's.
        device: where to compute; the CPU by default.
        pooling: see `Pooling`; what the checkpoint says unless given.
        normalize: whether vectors have length 1; as pooling.
        truncate: whether a text that is too long is cut off instead of an error; only where the checkpoint says how
            long a text may be (max_seq_length) unless given.
        prompt: the name of one of the checkpoint's prompts, which is put before every text; as pooling.

    Raises:
        ModelError: if the model is no encoder of text, or its files ask for what there is not.
        TokenizerError: if the tokenizer does not fit the model.
        RequestError: if pooling or prompt is none that there is.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device | None = None,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
        prompt: str | None = None,
    ) -> None:
        found = read_settings(checkpoint)
        if pooling is not None and pooling not in POOLINGS:
            raise RequestError(f"pooling is {pooling!r}: it must be one of {', '.join(POOLINGS)}")
        self.pooling: tuple[Pooling, ...] = found.pooling if pooling is None else (pooling,)
        self.normalize = found.normalize if normalize is None else normalize
        prompt = found.prompt if prompt is None else prompt
        if prompt is not None and prompt not in found.prompts:
            raise RequestError(f"prompt is {prompt!r}: this model has {', '.join(found.prompts) or 'none'}")
        self._before = "" if prompt is None else found.prompts[prompt]
        self._lower = found.lower
        positions = getattr(getattr(checkpoint.model, "config", None), "max_positions", None)
        most = found.most if positions is None or found.most is None else min(found.most, positions)
        cut = found.most is not None if truncate is None else truncate
        self.reader = TextReader(checkpoint, tokenizer, device=device, most=most, truncate=cut)

    @overload
    def __call__(self, text: str) -> Embedding: ...
    @overload
    def __call__(
        self, text: Texts, *, names: Sequence[str] | None = None, progress: Progress | None = None
    ) -> list[Embedding]: ...
    def __call__(
        self, text: str | Texts, *, names: Sequence[str] | None = None, progress: Progress | None = None
    ) -> Embedding | list[Embedding]:
        """The embedding of a text, or of several.

        Args:
            text: one or several.
            names: what messages call them, such as "line 3".
            progress: called with the number of texts done.

        Raises:
            TextTooLong: if a text has more pieces than the model takes and is not cut off; nothing is computed then.
            RequestError: if a text is empty.
            TypeError: if one is no string.
        """
        texts = [text] if isinstance(text, str) else text
        reads = self.reader.read(self._prepared(texts), names)
        vectors = self._vectors(reads, PACK, progress)
        found = [
            Embedding(read, self.reader, given, vector)
            for read, given, vector in zip(reads, texts, vectors, strict=True)
        ]
        return found[0] if isinstance(text, str) else found

    def vectors(
        self,
        texts: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        pack: int = PACK,
        progress: Progress | None = None,
    ) -> Tensor:
        """The vectors of several texts, (n, d) in float32: what `__call__` gives, without what it was made of.

        Args:
            texts: any number.
            names: what messages call them, such as "line 3".
            pack: pieces that are computed together at most.
            progress: called with the number of texts done.

        Raises:
            TextTooLong: as `__call__`, like the others.
        """
        return self._vectors(self.reader.read(self._prepared(texts), names), pack, progress)

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        if not self._before and not self._lower:
            return list(texts)
        return [self._before + (text.lower() if self._lower else text) if text.strip() else text for text in texts]

    def _vectors(self, reads: Sequence[Read], pack: int, progress: Progress | None) -> Tensor:
        found = [pooled(part, self.pooling) for part in self.reader.packs(reads, pack=pack, progress=progress)]
        width = self.reader.model.config.d_model * len(self.pooling)
        vectors = torch.cat(found).float() if found else torch.empty(0, width)  # (n, d)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors


def pooled(pack: Pack, pooling: Sequence[Pooling]) -> Tensor:
    """One vector a text, (n, d) or several of them side by side, from the rows of its pieces."""
    return torch.cat([_POOL[name](pack) for name in pooling], -1) if len(pooling) > 1 else _POOL[pooling[0]](pack)


def _mean(pack: Pack) -> Tensor:
    return torch.segment_reduce(pack.rows, "mean", lengths=pack.lengths)


def _weighted_mean(pack: Pack) -> Tensor:
    places = torch.arange(len(pack.rows), device=pack.rows.device) - pack.starts.repeat_interleave(pack.lengths)
    weights = (places + 1).to(pack.rows.dtype)[:, None]  # (total, 1)
    total = (pack.lengths * (pack.lengths + 1) / 2)[:, None]
    return torch.segment_reduce(pack.rows * weights, "sum", lengths=pack.lengths) / total


_POOL: Mapping[Pooling, Callable[[Pack], Tensor]] = {
    "cls": lambda pack: pack.rows[pack.starts],
    "max": lambda pack: torch.segment_reduce(pack.rows, "max", lengths=pack.lengths),
    "mean": _mean,
    "mean_sqrt_len": lambda pack: _mean(pack) * pack.lengths.sqrt()[:, None],
    "weightedmean": _weighted_mean,
    "lasttoken": lambda pack: pack.rows[pack.starts + pack.lengths - 1],
}


def read_settings(checkpoint: Checkpoint) -> EmbeddingSettings:
    """What the files beside a checkpoint say of its vectors.

    Raises:
        ModelError: one is damaged, or asks for a step that there is not; the message lists those there are.
    """
    where = f"{checkpoint.directory / MODULES}"
    about = checkpoint.json("sentence_bert_config.json")
    more = checkpoint.json("config_sentence_transformers.json")
    most = about.get("max_seq_length")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise ModelError(
            f"{checkpoint.directory}/sentence_bert_config.json: max_seq_length is {most!r}: it must be a size"
        )
    prompts = more.get("prompts") or {}
    prompts = {str(k): str(v) for k, v in prompts.items()} if isinstance(prompts, dict) else {}
    settings = EmbeddingSettings(
        most=most, lower=about.get("do_lower_case") is True, prompts=prompts, prompt=more.get("default_prompt_name")
    )
    if MODULES not in checkpoint.files:
        return settings
    first, *steps = modules_of(checkpoint)
    if first[0] != "Transformer" or first[1]:
        raise ModelError(
            f"{where} begins with {first[0]} in {first[1]!r}: it must be the Transformer in the same directory"
        )
    names = [name for name, _ in steps]
    if names not in (["Pooling"], ["Pooling", "Normalize"]):
        raise ModelError(
            f"{where} has {', '.join(names) or 'nothing'} after the model: it must be Pooling, then maybe Normalize"
        )
    return replace(settings, pooling=pooling_of(checkpoint, steps[0][1]), normalize="Normalize" in names)
