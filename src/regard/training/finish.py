"""From a run's checkpoints to the model that is kept: averaged, its decoding chosen on validation data, measured.

Every choice is made on the validation set. The test set is decoded once, with what was chosen.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from regard.generation import translate_ids
from regard.inputs.text import TextTokenizer
from regard.models.translator import Translator
from regard.training.baselines import RecurrentTranslator
from regard.training.checkpoint import Checkpoints, average_weights
from regard.training.errors import TrainingError
from regard.training.metrics import Bleu, raw_bleu, tokenised_bleu

AnyTranslator = Translator | RecurrentTranslator
"""The translator, or the one that it is compared with."""


@dataclass(frozen=True)
class Decoding:
    """How sentences are searched."""

    beams: int = 5  # hypotheses kept
    alpha: float = 1.0  # length penalty, see regard.generation.beam


@dataclass(frozen=True)
class Choices:
    """What is tried on the validation set."""

    averages: tuple[int, ...] = (1, 5, 10, 20)  # how many of the last checkpoints are averaged
    alphas: tuple[float, ...] = (0.4, 0.7, 1.0, 1.3, 1.6)  # length penalties
    beams: int = 5


@dataclass(frozen=True)
class HeldOut:
    """Sentences and what they are measured against."""

    source: list[str]
    reference: list[str]  # plain text, for raw BLEU
    tokenised: list[str] | None = None  # lower-cased and tokenised, for lc-tok BLEU
    language: str = "de"  # of the references

    def choose_by(self, hypotheses: Sequence[str]) -> float:
        """The score that choices are made by: lc-tok BLEU if there is such a reference, else raw."""
        scores = self.evaluate(hypotheses)
        return scores["lc-tok" if "lc-tok" in scores else "raw"].score

    def evaluate(self, hypotheses: Sequence[str]) -> dict[str, Bleu]:
        """BLEU in every form that there are references for."""
        scores = {"raw": raw_bleu(hypotheses, self.reference)}
        if self.tokenised is not None:
            scores["lc-tok"] = tokenised_bleu(hypotheses, self.tokenised, self.language)
        return scores


@dataclass(frozen=True)
class Finished:
    """The model that is kept, and how it was chosen."""

    averaged: int  # checkpoints
    decoding: Decoding
    tried: dict[str, float]  # validation BLEU of everything that was tried
    validation: dict[str, Bleu]


def decode(model: AnyTranslator, tokenizer: TextTokenizer, texts: Sequence[str], decoding: Decoding) -> list[str]:
    """Translate texts, in order.

    Args:
        model: put into evaluation mode.
        tokenizer: the model's.
        texts: not empty, one sentence each.
        decoding: beams and length penalty.
    """
    found = translate_ids(model.eval(), tokenizer, tokenizer.encode_batch(texts), **asdict(decoding))
    return [tokenizer.decode(hypothesis.ids) for hypothesis in found]


def choose(
    model: AnyTranslator,
    tokenizer: TextTokenizer,
    checkpoints: Checkpoints,
    validation: HeldOut,
    choices: Choices = Choices(),
) -> Finished:
    """Average checkpoints and choose how to decode, by validation BLEU alone; the model is left with the choice.

    Args:
        model: receives the averaged weights.
        tokenizer: the model's.
        checkpoints: of the run.
        validation: what is chosen by.
        choices: what is tried. More checkpoints than there are count as all of them; one that was written only
            because the run was stopped is in no average.

    Raises:
        TrainingError: if there are no checkpoints.
    """
    best = checkpoints.best
    paths = checkpoints.regular or ([] if best is None else [best])  # a run may have ended early before one was due
    if not paths:
        raise TrainingError(f"{checkpoints.directory} holds no checkpoints that were due; there must be at least one")
    tried: dict[str, float] = {}
    written: dict[Decoding, list[str]] = {}  # by the weights the model has at the moment

    def score(averaged: int, decoding: Decoding) -> float:
        if decoding not in written:
            written[decoding] = decode(model, tokenizer, validation.source, decoding)
        value = validation.choose_by(written[decoding])
        tried[f"average of {averaged}, alpha {decoding.alpha}"] = value
        return value

    by_count: dict[int, float] = {}
    for count in sorted({min(count, len(paths)) for count in choices.averages}):
        average_weights(paths[-count:], model)
        written.clear()
        by_count[count] = score(count, Decoding(choices.beams))
    averaged = max(by_count, key=by_count.__getitem__)
    average_weights(paths[-averaged:], model)
    written.clear()
    decodings = [Decoding(choices.beams, alpha) for alpha in choices.alphas]
    decoding = max(decodings, key=lambda decoding: score(averaged, decoding))
    return Finished(averaged, decoding, tried, validation.evaluate(written[decoding]))


def round_to_float16(model: AnyTranslator) -> None:
    """Rounds every weight as saving in float16 will, so that what is measured is what is shipped."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
