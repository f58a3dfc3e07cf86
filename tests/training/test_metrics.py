"""BLEU as published: against the command-line protocol, and the references' own tokenisation."""

from pathlib import Path

import pytest

from regard.training.data import read_lines
from regard.training.metrics import raw_bleu, tokenised_bleu


def test_perfect_and_signatures() -> None:
    raw = raw_bleu(["Ein Hund läuft über die Wiese."], ["Ein Hund läuft über die Wiese."])
    assert raw.score == pytest.approx(100) and "tok:13a" in raw.signature and "case:mixed" in raw.signature
    lower = tokenised_bleu(['Ein Hund läuft über "die" Wiese.'], ["ein hund läuft über &quot; die &quot; wiese ."])
    assert lower.score == pytest.approx(100) and "tok:none" in lower.signature
    assert str(raw).startswith("100.00 (nrefs:1|")


def test_case_counts_only_in_raw() -> None:
    assert raw_bleu(["ein hund läuft über die wiese"], ["Ein Hund läuft über die Wiese"]).score < 50
    assert tokenised_bleu(["Ein Hund läuft über die Wiese"], ["ein hund läuft über die wiese"]).score > 99


@pytest.mark.shared("multi30k")
def test_the_raw_references_score_almost_100_against_the_tokenised(shared_data: Path) -> None:
    raw = read_lines(shared_data / "multi30k/raw/test_2016_flickr.de")
    tokenised = read_lines(shared_data / "multi30k/tok/test_2016_flickr.lc.norm.tok.de")
    assert tokenised_bleu(raw, tokenised).score > 98.5  # normalisation of punctuation is all that differs


def test_refuses() -> None:
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        raw_bleu(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="hypotheses is empty"):
        tokenised_bleu([], [])
