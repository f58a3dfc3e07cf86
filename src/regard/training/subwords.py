"""Byte-pair encoding with dropout, reproducible: the same (seed, epoch) cuts a corpus into the same pieces.

The tokenizer's own BPE dropout (arXiv 1910.13267) cannot be seeded. Here every distinct word of the corpus is cut
several times in advance, by a seeded generator; an epoch then picks one of these cuts for every word that occurs.
"""

import json
import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from regard.training.data import Ints, Ragged, offsets_of
from regard.training.errors import TrainingError

VARIANTS = 16
"""Cuts a word: a sentence of twelve words has 16^12 of them."""


class Serialisable(Protocol):
    """A tokenizer that can write its tokenizer.json."""

    def to_json(self) -> str: ...


class SubwordSampler:
    """The texts of a corpus as token ids, cut differently every epoch.

    Args:
        tokenizer: a BPE tokenizer; its tokenizer.json holds the merges and how text is cut into words.
        texts: the corpus.
        dropout: probability of leaving out each merge, in [0, 1). 0 gives the tokenizer's own cuts.
        seed: of all random choices.

    Raises:
        TrainingError: if dropout is out of range, or a character of the corpus has no piece.
    """

    def __init__(self, tokenizer: Serialisable, texts: Sequence[str], *, dropout: float, seed: int = 0) -> None:
        if not 0 <= dropout < 1:
            raise TrainingError(f"dropout is {dropout}; it may be from 0 up to, but not including, 1")
        from tokenizers import Tokenizer

        content = tokenizer.to_json()
        form: Any = Tokenizer.from_str(content)
        numbers: dict[str, int] = {}  # word → its number
        words: list[list[int]] = []  # numbers of the words of each text
        for text in texts:
            plain = form.normalizer.normalize_str(text) if form.normalizer else text
            cut = form.pre_tokenizer.pre_tokenize_str(plain)
            words.append([numbers.setdefault(word, len(numbers)) for word, _ in cut])
        self._words = Ragged.of(words)
        self._variants = VARIANTS if dropout else 1
        self._seed = seed
        self._cuts = _cut_words(json.loads(content)["model"], list(numbers), dropout, self._variants, seed)

    @property
    def most(self) -> Ints:
        """(n,) the most pieces that each text is cut into in any epoch."""
        longest = self._cuts.lengths.reshape(-1, self._variants).max(1)  # (words,)
        return np.diff(offsets_of(longest[self._words.ids])[self._words.offsets])

    def keep(self, texts: Ints) -> None:
        """Only these texts (n',) go on."""
        self._words = self._words.take(texts)

    def epoch(self, number: int) -> Ragged:
        """The corpus as this epoch sees it, without special tokens."""
        draw = np.random.default_rng([self._seed, number])
        chosen = self._words.ids * self._variants + draw.integers(self._variants, size=len(self._words.ids))
        pieces = self._cuts.take(chosen)  # one sequence for every word that occurs
        return Ragged(pieces.ids, pieces.offsets[self._words.offsets])


def _cut_words(model: Any, words: Sequence[str], dropout: float, variants: int, seed: int) -> Ragged:
    """Each word's cuts, one after another."""
    vocabulary: dict[str, int] = model["vocab"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    generator = random.Random(f"subwords {seed}")
    cuts: list[list[int]] = []
    for word in words:
        for _ in range(variants):
            pieces = merge(word, ranks, dropout, generator)
            try:
                cuts.append([vocabulary[piece] for piece in pieces])
            except KeyError as error:
                raise TrainingError(f"{error.args[0]!r} in {word!r} is not a piece of the tokenizer") from error
    return Ragged.of(cuts)


def merge(word: str, ranks: dict[tuple[str, str], int], dropout: float, generator: random.Random) -> list[str]:
    """Byte-pair encoding of one word, each possible merge left out with probability `dropout` at every step.

    >>> merge("aab", {("a", "b"): 0, ("a", "ab"): 1}, 0.0, random.Random(0))
    ['aab']
    """
    pieces = list(word)
    never = len(ranks)
    while len(pieces) > 1:
        best, place = never, -1
        for index in range(len(pieces) - 1):
            rank = ranks.get((pieces[index], pieces[index + 1]), never)
            if rank < best and not (dropout and generator.random() < dropout):
                best, place = rank, index
        if place < 0:
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces
