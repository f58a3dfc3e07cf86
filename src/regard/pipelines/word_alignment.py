"""A translator's cross-attention as word alignment, against sentences that were aligned by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regard.elements import Element
from regard.inputs import word_indices
from regard.pipelines.texts import RequestError
from regard.pipelines.translation import TranslationPipeline
from regard.relations import ReferencePair, align
from regard.relations import Sequence as ElementSequence

_READ = {False: "read where the word is written", True: "read one step later"}


@dataclass(frozen=True)
class AlignedText:
    """Sentences in two languages, aligned by hand.

    Args:
        languages: of source and target.
        source: sentences, words between spaces.
        target: their translations.
        reference: their links.
        skipped: lines of the file of links that were left out, for they name a word that there is not.
    """

    languages: tuple[str, str]
    source: tuple[str, ...]
    target: tuple[str, ...]
    reference: tuple[ReferencePair, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.reference)

    def first(self, count: int) -> AlignedText:
        """The first of these pairs."""
        return AlignedText(
            self.languages, self.source[:count], self.target[:count], self.reference[:count], self.skipped
        )


@dataclass(frozen=True)
class AlignedPair:
    """What a translator's attention links in one pair.

    Args:
        links: by method, one source word for every target word.
        words: of the source.
        whole: words of the source that are one piece of the model's vocabulary.
        pieces: that the words of the source are cut into.
    """

    links: dict[str, frozenset[tuple[int, int]]]
    words: int
    whole: int
    pieces: int


def read_aligned(directory: str | Path, target: str | None = None) -> AlignedText:
    """Sentences aligned by hand, in the form of shared tasks on word alignment.

    The directory has one file X-Y.ref.wa, where X and Y are languages, and the sentences, a line each, words between
    spaces, in test.X and test.Y. Every line of the first is a link: the sentence, counted from 1, a word of language X
    and one of Y, counted from 0, and S for a sure link or P for a possible one; without a mark it is sure. Links of
    words that there are not are left out and listed.

    Args:
        directory: of these files.
        target: the language that is translated into; Y unless given.

    Raises:
        RequestError: if there is no such file or several, the target is neither language, the sentences are not
            equally many, or a line is no link of them.
        OSError: if a file cannot be read.
    """
    place = Path(directory)
    found = sorted(place.glob("*-*.ref.wa"))
    if len(found) != 1:
        raise RequestError(f"{place} has {len(found)} files X-Y.ref.wa: it must have one, X and Y being languages")
    languages = found[0].name.removesuffix(".ref.wa").split("-", 1)
    target = languages[1] if target is None else target
    if target not in languages:
        raise RequestError(f"the target language is {target!r}: {found[0]} is of {' and '.join(languages)}")
    source = next(language for language in languages if language != target)
    texts = {language: _lines(place / f"test.{language}") for language in languages}
    n = len(texts[target])
    if len(texts[source]) != n:
        raise RequestError(f"{place} has {len(texts[source])} sentences in {source} and {n} in {target}")
    links: dict[str, list[set[tuple[int, int]]]] = {mark: [set() for _ in range(n)] for mark in "SP"}
    sizes = [(len(t.split()), len(s.split())) for t, s in zip(texts[target], texts[source], strict=True)]
    skipped: list[str] = []
    for number, line in enumerate(_lines(found[0]), 1):
        match = re.fullmatch(r"(\d+)\s+(\d+)\s+(\d+)(?:\s+([SP]))?\s*", line)
        if match is None or not 1 <= (sentence := int(match[1])) <= n:
            raise RequestError(f"{found[0]}, line {number}: {line!r} is no link of the {n} sentences")
        first, second = int(match[2]), int(match[3])
        t, s = (first, second) if target == languages[0] else (second, first)
        if t < sizes[sentence - 1][0] and s < sizes[sentence - 1][1]:
            links[match[4] or "S"][sentence - 1].add((t, s))
        else:
            skipped.append(f"{found[0]}, line {number}: {line.strip()!r} is left out, for there is no such word")
    reference = tuple(
        ReferencePair(*size, frozenset(sure), frozenset(possible))
        for size, sure, possible in zip(sizes, links["S"], links["P"], strict=True)
    )
    return AlignedText((source, target), tuple(texts[source]), tuple(texts[target]), reference, tuple(skipped))


def aligned_pairs(translate: TranslationPipeline, text: AlignedText) -> Iterator[AlignedPair]:
    """What every layer of cross-attention links, pair by pair, read at both places that `align` knows.

    The target is given and not searched: a pair is read once, with its target as the answer.

    Raises:
        TextTooLong: if a sentence has more pieces than the model has positions.
    """
    for i, (source, target) in enumerate(zip(text.source, text.target, strict=True), 1):
        given = translate.given(source, target, f"pair {i}")
        relations = given.relations
        sequences = relations.sequences[0]
        words = {"source": source, "target": target}
        relations.sequences[0] = {name: _by_spaces(s, len(words[name].split())) for name, s in sequences.items()}
        layers = sum(site.kind == "cross" for site in relations.sites)
        links = {
            f"layer {layer}, {where}": frozenset(
                (t, s) for t, s, _ in align(relations, layer=layer, shifted=late).links
            )
            for layer in range(layers)
            for late, where in _READ.items()
        }
        pieces = [word for word in relations.sequences[0]["source"].word_of if word >= 0]
        count = len(source.split())
        yield AlignedPair(links, count, sum(pieces.count(word) == 1 for word in range(count)), len(pieces))


def _by_spaces(sequence: ElementSequence, count: int) -> ElementSequence:
    """The same with the corpus's own words, the last so many of those between spaces: a prompt may stand before."""
    assert sequence.text is not None
    spans = [match.span() for match in re.finditer(r"\S+", sequence.text)][-count:] if count else []
    words = tuple(Element(i, sequence.text[a:b], span=(a, b)) for i, (a, b) in enumerate(spans))
    return replace(sequence, words=words, word_of=tuple(word_indices(sequence.elements, spans)))


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 ({error.reason})") from error
