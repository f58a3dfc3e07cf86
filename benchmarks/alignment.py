"""Alignment error rate of the translator's cross-attention, by layer and by where a word's row is read.

    python benchmarks/alignment.py --data ../shared/data/wordalign_deen [--model translate-en-de]

The data are 100 sentence pairs of parliament, tokenised and lower-cased, aligned by hand (sure links only). A
translator of captions knows few of their words, so the coverage of its vocabulary and the alignment of the diagonal
stand beside its figures. The answer is given, not searched: each pair is read once with the reference as the target.
AER is 1 - 2 |A ∩ S| / (|A| + |S|) (Och & Ney 2003); one link a German word, the strongest.
"""

import argparse
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

from regard.elements import Element
from regard.inputs import word_indices
from regard.pipelines import Translation, TranslationPipeline, pipeline
from regard.relations import Sequence, align

Links = set[tuple[int, int]]  # (German word, English word)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="translate-en-de")
    arguments = parser.parse_args()
    english, german, gold = _read(arguments.data)
    translate = pipeline(arguments.model)
    found: dict[tuple[int, bool], list[Links]] = {}
    diagonal: list[Links] = []
    chance: list[Links] = []
    draw = random.Random(0)
    pieces = 0
    for en, de in zip(english, german, strict=True):
        translation = _given(translate, en, de)
        pieces += len(translation.source_ids) - 1
        relations = translation.relations
        relations.sequences[0] = {name: _by_spaces(s) for name, s in relations.sequences[0].items()}
        layers = sum(site.kind == "cross" for site in relations.sites)
        for layer in range(layers):
            for shifted in (False, True):
                links = align(relations, layer=layer, shifted=shifted).links
                found.setdefault((layer, shifted), []).append({(t, s) for t, s, _ in links})
        n, m = len(de.split()), len(en.split())
        diagonal.append({(t, round(t * (m - 1) / max(n - 1, 1))) for t in range(n)})
        chance.append({(t, draw.randrange(m)) for t in range(n)})
    words = sum(len(en.split()) for en in english)
    print(f"{len(gold)} pairs, {sum(map(len, gold))} sure links; {pieces / words:.2f} pieces an English word")
    print(f"diagonal  AER {_aer(diagonal, gold):.3f}")
    print(f"random    AER {_aer(chance, gold):.3f}")
    for (layer, shifted), links in found.items():
        where = "read one step later" if shifted else "read where written"
        print(f"layer {layer}, {where:19} AER {_aer(links, gold):.3f}")
    return 0


def _read(data: Path) -> tuple[list[str], list[str], list[Links]]:
    english, german = (
        (data / f"test.{language}").read_text(encoding="utf-8-sig").splitlines() for language in ("en", "de")
    )
    gold: list[Links] = [set() for _ in english]
    for line in (data / "de-en.ref.wa").read_text(encoding="utf-8").splitlines():
        sentence, de, en, _ = line.split()
        gold[int(sentence) - 1].add((int(de), int(en)))
    return english, german, gold


def _given(translate: TranslationPipeline, source: str, target: str) -> Translation:
    """The pair as if the model had answered so."""
    source_ids, target_ids = translate.tokenizer.encode_batch([source, target])
    return Translation(source, target, 0.0, tuple(source_ids), tuple(target_ids), translate)


def _by_spaces(sequence: Sequence) -> Sequence:
    """The same with the corpus's own words: what stands between spaces."""
    assert sequence.text is not None
    spans = [match.span() for match in re.finditer(r"\S+", sequence.text)]
    words = tuple(Element(i, sequence.text[a:b], span=(a, b)) for i, (a, b) in enumerate(spans))
    return replace(sequence, words=words, word_of=tuple(word_indices(sequence.elements, spans)))


def _aer(found: list[Links], gold: list[Links]) -> float:
    both = sum(len(a & s) for a, s in zip(found, gold, strict=True))
    return 1 - 2 * both / (sum(map(len, found)) + sum(map(len, gold)))


if __name__ == "__main__":
    sys.exit(main())
