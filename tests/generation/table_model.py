"""A model that is a table: any prefix of any sentence has its own random scores."""

from collections.abc import Sequence
from functools import cache

import torch


@cache
def scores_after(sentence: int, prefix: tuple[int, ...], vocabulary: int) -> torch.Tensor:
    """Scores (V,) in float64, the same whenever they are asked for."""
    generator = torch.Generator().manual_seed(hash((sentence, prefix)) % 2**31)
    return 2 * torch.randn(vocabulary, generator=generator, dtype=torch.float64)


class TableSteps:
    """The `Steps` of these sentences; counts the rows it is asked about."""

    def __init__(self, sentences: Sequence[int], vocabulary: int, bos: int) -> None:
        self.sentences = list(sentences)
        self.vocabulary = vocabulary
        self.prefixes: list[tuple[int, ...]] = [(bos,)] * len(self.sentences)
        self.rows_per_step: list[int] = []

    def prompt_scores(self) -> torch.Tensor:
        self.rows_per_step.append(len(self.prefixes))
        beams = len(self.prefixes) // len(self.sentences)
        return torch.stack(
            [scores_after(self.sentences[i // beams], p, self.vocabulary) for i, p in enumerate(self.prefixes)]
        )

    def scores(self, pieces: torch.Tensor, position: int) -> torch.Tensor:
        assert len(pieces) == len(self.prefixes)
        self.prefixes = [(*p, piece) for p, piece in zip(self.prefixes, pieces.tolist(), strict=True)]
        assert {len(p) for p in self.prefixes} == {position + 2}
        return self.prompt_scores()

    def follow(self, rows: torch.Tensor) -> None:
        self.prefixes = [self.prefixes[row] for row in rows.tolist()]

    def keep(self, sentences: torch.Tensor) -> None:
        self.sentences = [self.sentences[i] for i in sentences.tolist()]


def every_hypothesis(sentence: int, vocabulary: int, limit: int, bos: int, eos: int, banned: Sequence[int] = ()):
    """All that a sentence can become: (ids, log-probability)."""
    stack: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while stack:
        written, total = stack.pop()
        logs = scores_after(sentence, (bos, *written), vocabulary).log_softmax(0).tolist()
        yield (*written, eos), total + logs[eos]
        if len(written) + 1 < limit:
            others = (piece for piece in range(vocabulary) if piece != eos and piece not in banned)
            stack += [((*written, piece), total + logs[piece]) for piece in others]
