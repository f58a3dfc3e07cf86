"""Accuracy and macro-F1 of classes, and BLEU in the two forms that results are stated in.

lc-tok   the hypothesis is lower-cased and tokenised like the reference files that Multi30k publishes, and compared
         with these as they are: comparable with most papers on Multi30k
raw      cased text against cased text with sacrebleu's own 13a tokeniser: comparable across data sets
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Bleu:
    """A corpus score and how exactly it was computed."""

    score: float  # 0 ... 100
    signature: str  # sacrebleu's, complete

    def __str__(self) -> str:
        return f"{self.score:.2f} ({self.signature})"


def raw_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Bleu:
    """Cased BLEU with the 13a tokeniser.

    Args:
        hypotheses: plain text.
        references: plain text, one a hypothesis.

    Raises:
        ValueError: if the two differ in number or there are none.
        ModuleNotFoundError: if sacrebleu is not installed.

    sacrebleu: arXiv 1804.08771.
    """
    return _corpus_bleu(hypotheses, references, "13a")


def tokenised_bleu(hypotheses: Sequence[str], references: Sequence[str], language: str = "de") -> Bleu:
    """BLEU of lower-cased, Moses-tokenised hypotheses against references that already are.

    Exactly: `MosesTokenizer(language).tokenize(hypothesis.lower(), return_str=True)` of sacremoses, with its default
    escaping, then sacrebleu with `tokenize="none"`.

    Args:
        hypotheses: plain text.
        references: lower-cased, normalised, tokenised text, such as Multi30k's `*.lc.norm.tok.de`.
        language: of both, two letters. Default "de".

    Raises:
        ValueError: if the two differ in number or there are none.
        ModuleNotFoundError: if sacrebleu or sacremoses is not installed.
    """
    from sacremoses import MosesTokenizer

    moses: Any = MosesTokenizer(language)
    tokenised = [str(moses.tokenize(hypothesis.lower(), return_str=True)) for hypothesis in hypotheses]
    return _corpus_bleu(tokenised, references, "none")


def _corpus_bleu(hypotheses: Sequence[str], references: Sequence[str], tokenizer: str) -> Bleu:
    from sacrebleu.metrics.bleu import BLEU

    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references; there must be equally many")
    if not hypotheses:
        raise ValueError("hypotheses is empty; there must be at least one")
    # force=True only silences the warning that the text looks tokenised, which in lc-tok it is meant to be
    metric = BLEU(tokenize=tokenizer, force=tokenizer == "none")
    score = metric.corpus_score(list(hypotheses), [list(references)])
    return Bleu(float(score.score), str(metric.get_signature()))


def accuracy(found: Tensor, labels: Tensor) -> float:
    """The part of the classes (n,) that are the right ones, in [0, 1]."""
    return float((found == labels).double().mean())


def macro_f1(found: Tensor, labels: Tensor) -> float:
    """The mean of the F1 of every class that was found or is right somewhere, each class alike, in [0, 1].

    Args:
        found: (n,), numbers of classes.
        labels: (n,), the right ones.

    >>> import torch
    >>> round(macro_f1(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])), 4)
    0.6667
    """
    count = int(max(found.max(), labels.max())) + 1
    right = (found[found == labels]).bincount(minlength=count).double()  # (C,)
    either = found.bincount(minlength=count) + labels.bincount(minlength=count)  # (C,)
    seen = either > 0
    return float((2 * right[seen] / either[seen]).mean())
