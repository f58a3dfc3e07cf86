"""Minimum risk training: a translator learns from translations of its own, by how good each is.

Likelihood asks for the reference, piece by piece; what is measured in the end is BLEU of whole sentences. The risk of a
source x with the reference y* is what the model can expect to miss there (arXiv 1512.02433),

    R = E [1 - BLEU(y, y*)],   y drawn from P(y | x) at a temperature

K translations are drawn from the model as it is, without dropout, and the gradient is estimated from them
(REINFORCE): each translation's log-probability is raised by how much better it is than the mean of the K - 1 others,
which is a baseline for nothing (Kool, van Hoof, Welling 2019). Padding, the beginning and the unknown piece are never
drawn; the little probability that they have is left out of account.

S | sources    K | translations drawn of each    T | pieces of the longest    N | pieces of all
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.generation.sampling import draw
from regard.generation.steps import EncoderDecoderSteps
from regard.inputs.text import TextTokenizer
from regard.training.data import TranslationBatch
from regard.training.errors import DivergedError
from regard.training.finish import AnyTranslator
from regard.training.loss import linear_cross_entropy

_WORD = re.compile(r"\w+|[^\w\s]")
_ORDERS = (1, 2, 3, 4)

Grams = Sequence[Counter[tuple[str, ...]]]


@dataclass(frozen=True)
class _Sentence:
    """A text as BLEU sees it: words and marks, and its n-grams of every order."""

    length: int
    grams: Grams

    @classmethod
    def of(cls, text: str) -> "_Sentence":
        words: list[str] = _WORD.findall(text)
        return cls(len(words), [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in _ORDERS])


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """BLEU of one sentence, in [0, 1], cased, over words and punctuation marks.

    One is added to the matches and the total of n-grams of two words and more, so that a sentence without a common
    four-gram is not worth nothing (Lin and Och 2004).

    >>> sentence_bleu("Ein Hund rennt.", "Ein Hund rennt.")
    1.0
    >>> sentence_bleu("Ein Hund rennt.", "Zwei Katzen")
    0.0
    """
    written, reference_ = _Sentence.of(hypothesis), _Sentence.of(reference)
    total = 0.0
    for n, found, wanted in zip(_ORDERS, written.grams, reference_.grams, strict=True):
        matches, extra = sum((found & wanted).values()), int(n > 1)
        if matches + extra == 0:
            return 0.0
        total += math.log((matches + extra) / (max(written.length - n + 1, 0) + extra))
    brevity = min(0.0, 1 - reference_.length / max(written.length, 1))
    return math.exp(total / len(_ORDERS) + brevity)


def draw_translations(
    model: AnyTranslator, batch: TranslationBatch, *, samples: int, temperature: float, banned: Sequence[int]
) -> Tensor:
    """Translations drawn from a model, piece by piece, with torch's default generator.

    Args:
        model: in evaluation mode.
        batch: the sources; the most that is written is a quarter longer than the longest reference, and four pieces.
        samples: K, of each source.
        temperature: scores are divided by it before softmax.
        banned: ids that are never drawn.

    Returns:
        (S * K, T) ids, those of a source next to each other; after the end, padding.

    Raises:
        DivergedError: if a score is not a finite number.
    """
    config = model.config
    most = min(int(1.25 * batch.target.shape[1]) + 4, config.max_positions)
    written: list[Tensor] = []
    with torch.no_grad():
        steps = EncoderDecoderSteps(model, batch.source, batch.source_lengths)
        scores = steps.prompt_scores().repeat_interleave(samples, 0)  # (S * K, V)
        steps.follow(torch.arange(len(batch.source)).repeat_interleave(samples))
        ended = torch.zeros(len(scores), dtype=torch.bool)
        while True:
            if not bool(scores.amax(1).isfinite().all()):
                raise DivergedError("the scores of translations are not finite numbers; a lower learning rate may help")
            scores[:, list(banned)] = -torch.inf
            uniforms = torch.rand(len(scores), dtype=torch.float64)
            chosen = draw(scores / temperature, uniforms).masked_fill_(ended, config.pad)
            written.append(chosen)
            ended = ended | (chosen == config.eos)
            if len(written) == most or bool(ended.all()):
                return torch.stack(written, 1)
            scores = steps.scores(chosen, len(written) - 1)


def risk(
    model: AnyTranslator, tokenizer: TextTokenizer, batch: TranslationBatch, *, samples: int, temperature: float
) -> Tensor:
    """The mean risk of a batch's sources, with a gradient that lowers it; the value is of the translations drawn.

    The gradient is a mean over the references' pieces, as that of likelihood is, so that rates, clipping and shards
    mean the same.

    Args:
        model: its mode is left as it is; dropout acts on the gradient alone.
        tokenizer: the model's.
        batch: sources and references.
        samples: K, at least 2.
        temperature: of drawing; lower than 1 the model's likelier translations are what learns.
    """
    training = model.training
    banned = (tokenizer.pad, tokenizer.bos, tokenizer.unk)
    pieces = draw_translations(model.eval(), batch, samples=samples, temperature=temperature, banned=banned)
    model.train(training)
    gains = torch.tensor(_gains(tokenizer, batch, pieces, samples))  # (S, K)
    advantages = (samples * gains - gains.sum(1, keepdim=True)) / (samples - 1)  # over the mean of the others

    real = pieces != tokenizer.pad
    start = pieces.new_full((len(pieces), 1), tokenizer.bos)
    memory = model.encode(batch.source, batch.source_lengths)  # (S, Ls, d)
    hidden = model.decode(torch.cat([start, pieces[:, :-1]], 1), memory, batch.source_lengths)  # (S * K, T, d)
    weights = advantages.flatten()[:, None].expand_as(pieces)[real]  # (N,)
    rows = hidden[real] / temperature
    mean = linear_cross_entropy(rows, model.embedding.weight, pieces[real], weights=weights)
    surrogate = mean * (len(rows) / (samples * batch.tokens))
    return surrogate + (1 - gains.mean() - surrogate.detach())


def _gains(tokenizer: TextTokenizer, batch: TranslationBatch, pieces: Tensor, samples: int) -> list[list[float]]:
    """BLEU of every translation (S * K, T) against its source's reference: (S, K)."""
    special = {tokenizer.pad, tokenizer.bos, tokenizer.eos}
    texts = [tokenizer.decode([piece for piece in row if piece not in special]) for row in pieces.tolist()]
    gains: list[list[float]] = []
    for number, row in enumerate(batch.target.tolist()):
        reference = tokenizer.decode([piece for piece in row if piece not in special])
        drawn = texts[number * samples : (number + 1) * samples]
        gains.append([sentence_bleu(text, reference) for text in drawn])
    return gains
