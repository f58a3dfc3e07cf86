"""Parallel text: files → pairs → token ids → batches that any run can reproduce.

Every batch follows from (seed, epoch, index) alone. A training run that stops and resumes therefore sees the same
batches as one that did not stop, with nothing stored but these three numbers.

    B  | sentence pairs in a batch      Ls | source length     Lt | target length
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regard.training.errors import TrainingError
from regard.training.tables import Skipped, flaw, read_rows

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations, line by line."""

    source: list[str]
    target: list[str]
    skipped: int  # pairs left out because a side was empty


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, plain or .gz, without line ends and surrounding blanks.

    Raises:
        TrainingError: if the file is missing or is not UTF-8 (or not gzip), naming the path and, for text, the line.
    """
    if not path.is_file():
        raise TrainingError(f"{path} is not a file; it may be UTF-8 text, plain or .gz")
    lines: list[str] = []
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for line in file:  # only \n ends a line: U+2028 and its like occur within sentences
                text = line.decode("utf-8")
                lines.append((text if lines else text.removeprefix("\ufeff")).strip())
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}, line {len(lines) + 1}: not UTF-8 ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingError(f"{path}: cannot be read ({error})") from error
    return lines


def read_parallel(source: Path, target: Path, skipped: Skipped | None = None) -> ParallelText:
    """Two files of which each line of one translates the same line of the other.

    Pairs in which a side is empty are left out and counted.

    Args:
        source: UTF-8, plain or .gz.
        target: the same for the other language.
        skipped: told of what is left out.

    Raises:
        TrainingError: if the files differ in their number of lines, or no pair is left.
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise TrainingError(
            f"{source} has {len(sources)} lines and {target} {len(targets)}; parallel text has equally many"
        )
    pairs: list[tuple[str, str]] = []
    for number, pair in enumerate(zip(sources, targets, strict=True), 1):
        if all(pair):
            pairs.append(pair)
        elif skipped is not None:
            skipped.add("a side is empty", f"line {number:,}")
    if not pairs:
        raise TrainingError(f"{source} and {target} have no pair of lines that are both not empty")
    return ParallelText([s for s, _ in pairs], [t for _, t in pairs], len(sources) - len(pairs))


def read_table(table: Path, source: str, target: str, skipped: Skipped) -> ParallelText:
    """Pairs from two columns of a table; see `regard.training.tables.read_rows`.

    Args:
        table: CSV, TSV, JSON lines or Parquet.
        source: the column of the sentences.
        target: the column of their translations.
        skipped: told of what is left out.

    Raises:
        TrainingError: if the table cannot be read, has no such column, or no pair is left.
    """
    pairs: list[tuple[str, str]] = []
    for row in read_rows(table, (source, target), skipped):
        wrong = next(filter(None, (flaw(side, number=False) for side in row.values)), None)
        if wrong is None:
            pairs.append((row.values[0].strip(), row.values[1].strip()))
        else:
            skipped.add(f"a side is {'empty' if wrong == 'missing' else wrong}", row.place)
    if not pairs:
        raise TrainingError(f"{table} has no row of which both sides are text")
    return ParallelText([s for s, _ in pairs], [t for _, t in pairs], sum(skipped.counts.values()))


def divided(text: ParallelText, seed: int, most: int = 1000) -> tuple[ParallelText, ParallelText]:
    """Pairs to learn from, and a twentieth of all, or so many, for validation, drawn by the seed.

    Raises:
        TrainingError: if there are fewer than two pairs.
    """
    count = len(text.source)
    if count < 2:
        raise TrainingError(
            f"there is {count} pair; there must be two or more to learn from one and validate on another"
        )
    chosen = {*np.random.default_rng([seed, 2**32]).permutation(count)[: max(1, min(most, count // 20))].tolist()}
    parts: list[ParallelText] = []
    for held_out in (False, True):
        kept = [i for i in range(count) if (i in chosen) == held_out]
        parts.append(ParallelText([text.source[i] for i in kept], [text.target[i] for i in kept], 0))
    return parts[0], parts[1]


def fingerprint(text: ParallelText) -> str:
    """What tells these pairs from others: their number and a hash of their content."""
    digest = hashlib.sha256(json.dumps([text.source, text.target]).encode()).hexdigest()
    return f"{len(text.source):,} pairs, SHA-256 {digest[:16]}"


@dataclass(frozen=True)
class Ragged:
    """Sequences of token ids, one after another."""

    ids: Ints  # (total,)
    offsets: Ints  # (n + 1,): sequence i is ids[offsets[i] : offsets[i + 1]]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        """Join sequences of ids."""
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        ids = np.fromiter((i for s in sequences for i in s), dtype=np.int64, count=int(lengths.sum()))
        return cls(ids, offsets_of(lengths))

    @property
    def lengths(self) -> Ints:
        """(n,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ints:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, chosen: Ints) -> "Ragged":
        """The sequences of these indices, in this order; an index may occur more than once."""
        lengths = self.lengths[chosen]
        ends = offsets_of(lengths)
        # element k of the result is (k - start of its sequence there) after the start of its sequence here
        shift = np.repeat(self.offsets[chosen] - ends[:-1], lengths)
        return Ragged(self.ids[np.arange(ends[-1]) + shift], ends)


def offsets_of(lengths: Ints) -> Ints:
    """(n,) lengths → (n + 1,) starts and the end."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True, eq=False)
class TranslationBatch:
    """Right-padded sentence pairs, and where their real target tokens are."""

    source: Tensor  # (B, Ls) int64; each row ends in end-of-sentence
    source_lengths: Tensor  # (B,) int64
    target: Tensor  # (B, Lt) int64; each row begins with beginning-of-sentence
    target_lengths: Tensor  # (B,) int64
    places: Tensor  # (N,) int64: the real positions among the B·Lt rows of the decoder's output
    labels: Tensor  # (N,) int64: the token that follows at each of these places
    passes: int = 1  # how often the model is shown the batch in one step; R-Drop compares two passes

    @property
    def tokens(self) -> int:
        """Real target tokens, N."""
        return self.labels.numel()


class TranslationBatches(Sequence[TranslationBatch]):
    """The batches of one epoch, collated when asked for.

    A batch holds as many pairs as fit in the budget: pairs times the longest source, and pairs times the longest
    target, are both at most `budget`. Pairs of like lengths go together; ties are broken and batches are ordered at
    random, by (seed, epoch) alone.

    Args:
        source: token ids without special tokens.
        target: the translations' token ids, equally many.
        budget: padded tokens a batch, on either side.
        special: ids of padding, beginning and end of sentence.
        seed: of the shuffling.
        epoch: of the shuffling; -1 keeps batches in order of length, for validation.
        passes: of every batch, see `TranslationBatch`.

    Raises:
        TrainingError: if source and target differ in number, or a single pair exceeds the budget.
    """

    def __init__(
        self,
        source: Ragged,
        target: Ragged,
        *,
        budget: int,
        special: "SpecialTokens",
        seed: int = 0,
        epoch: int = -1,
        passes: int = 1,
    ) -> None:
        self._passes = passes
        if len(source) != len(target):
            raise TrainingError(f"source has {len(source)} sequences and target {len(target)}; they have equally many")
        self._source, self._target, self._special = source, target, special
        random = None if epoch < 0 else np.random.default_rng([seed, epoch])
        # one more than the pieces: end of sentence on the source, beginning or end on the target
        self._plan = plan_batches(source.lengths + 1, target.lengths + 1, budget, random)

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> TranslationBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[TranslationBatch]: ...
    def __getitem__(self, index: int | slice) -> TranslationBatch | list[TranslationBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        chosen = self._plan[index]
        special = self._special
        source, source_lengths = framed(self._source.take(chosen), special.pad, last=special.eos)
        whole, whole_lengths = framed(self._target.take(chosen), special.pad, first=special.bos, last=special.eos)
        target_lengths = whole_lengths - 1
        real = np.arange(whole.shape[1] - 1) < target_lengths[:, None]  # (B, Lt)
        target = np.where(real, whole[:, :-1], special.pad)
        return TranslationBatch(
            torch.from_numpy(source),
            torch.from_numpy(source_lengths),
            torch.from_numpy(target),
            torch.from_numpy(target_lengths),
            torch.from_numpy(np.flatnonzero(real)),
            torch.from_numpy(whole[:, 1:][real]),
            self._passes,
        )

    def padding(self) -> float:
        """The part of all source and target positions of this epoch that is padding, in [0, 1)."""
        real = padded = 0
        for lengths in (self._source.lengths + 1, self._target.lengths + 1):
            for chosen in self._plan:
                real += int(lengths[chosen].sum())
                padded += len(chosen) * int(lengths[chosen].max())
        return 1 - real / padded


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that are no pieces of text."""

    pad: int
    bos: int
    eos: int


def framed(sequences: Ragged, pad: int, *, first: int | None = None, last: int | None = None) -> tuple[Ints, Ints]:
    """Sequences with a token put before and after each, as (n, L) right-padded ids, and their lengths (n,)."""
    before, after = int(first is not None), int(last is not None)
    lengths = sequences.lengths + before + after
    rows = np.full((len(lengths), int(lengths.max())), pad, dtype=np.int64)
    places = np.arange(rows.shape[1])
    rows[(places >= before) & (places < (lengths - after)[:, None])] = sequences.ids
    if first is not None:
        rows[:, 0] = first
    if last is not None:
        rows[np.arange(len(lengths)), lengths - 1] = last
    return rows, lengths


def plan_batches(
    source_lengths: Ints, target_lengths: Ints, budget: int, random: np.random.Generator | None
) -> list[Ints]:
    """Which pairs go together.

    Args:
        source_lengths: (n,), special tokens included.
        target_lengths: (n,), the same.
        budget: pairs times longest, at most, on either side.
        random: breaks ties and orders the batches; None keeps both as they come.

    Returns:
        Arrays of pair indices that together hold each pair once.

    Raises:
        TrainingError: if one pair alone exceeds the budget.
    """
    longest = np.maximum(source_lengths, target_lengths)
    if len(longest) and int(longest.max()) > budget:
        worst = int(longest.argmax())
        raise TrainingError(f"pair {worst} has {int(longest[worst])} tokens; budget is {budget} and may not be less")
    tie = np.arange(len(longest)) if random is None else random.permutation(len(longest))
    # By the longer side, so that both fit; then by how much longer the target is, up and down in turn, so that
    # neighbours across two lengths are alike as well: a batch is about 3 % padding.
    difference = source_lengths - target_lengths
    order = np.lexsort((tie, np.where(longest % 2 == 0, difference, -difference), longest))
    batches = [order[first:stop] for first, stop in _cuts(source_lengths[order], target_lengths[order], budget)]
    if random is None:
        return batches
    return [batches[i] for i in random.permutation(len(batches))]


def _cuts(source_lengths: Ints, target_lengths: Ints, budget: int) -> Iterator[tuple[int, int]]:
    """Greedy cuts of pairs in order, each piece as long as the budget permits."""
    starts = [0]
    longest = 0
    for index, length in enumerate(np.maximum(source_lengths, target_lengths).tolist()):
        longest = max(longest, length)
        if (index + 1 - starts[-1]) * longest > budget:
            starts.append(index)
            longest = length
    if len(source_lengths):
        starts.append(len(source_lengths))
    return pairwise(starts)
