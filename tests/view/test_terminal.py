"""The summary in the terminal: several widths, wide characters, no colour, and hostile text."""

import ast
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from regard.view import terminal
from regard.view.terminal import MOST_WORDS, print_report
from tests.view.sample import ROLES, single, translation

JAPANESE = "彼 は 青い シャツ を 着た 男 です 。"


def printed(report: dict[str, Any], **options: Any) -> str:
    out = io.StringIO()
    print_report(report, file=out, **options)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
@pytest.mark.parametrize("heads", [1, 4, 12])
def test_no_line_is_wider_than_asked(width: int, heads: int) -> None:
    for report in (
        translation(layers=2, heads=heads),
        translation(JAPANESE, JAPANESE, layers=2, heads=heads),
    ):
        text = printed(report, width=width)
        assert max(map(cell_len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [60, 120])
def test_it_says_who_renders_whom_and_what_heads_do(width: int) -> None:
    report = translation(layers=2)
    text = printed(report, width=width)
    assert report["answer"] in re.sub(r"\s+", " ", text)
    link = report["alignment"]["links"][1]
    assert re.search(rf"^Mann +← man {link['weight']:.2f}$", text, re.MULTILINE)
    for site in report["sites"]:
        for role in site["roles"]:
            assert role["name"] in text
            assert f"{role['score']:.2f}" in text
    entropies = report["sites"][0]["entropy"][0]
    assert f"{sum(entropies) / len(entropies):.2f}" in text
    assert "raw attention weights" in re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("width", [60, 120])
def test_kinds_stand_together_whatever_their_order(width: int) -> None:
    report = translation(layers=2)
    expected = printed(report, width=width)
    encoder, decoder, cross = report["sites"][:2], report["sites"][2:4], report["sites"][4:]
    report["sites"] = [*encoder, decoder[0], cross[0], decoder[1], cross[1]]
    assert printed(report, width=width) == expected


def test_wide_characters_line_up() -> None:
    lines = printed(translation(JAPANESE, JAPANESE, layers=1), width=60).splitlines()
    arrows = [cell_len(line.partition("←")[0]) for line in lines if " ← " in line]
    assert len(arrows) == 9 and len(set(arrows)) == 1


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    report = translation(layers=1)
    assert "\x1b" not in printed(report, width=60)
    assert "\x1b" not in printed(report, width=60, color=False)
    assert "\x1b[" in printed(report, width=60, color=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_output_without_arrows_gets_ascii(encoding: str) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print_report(translation(JAPANESE, layers=1), width=60, file=out)
    text = raw.getvalue().decode(encoding)
    assert " <- " in text and "←" not in text
    assert not set(text) & set("─│━")


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(translation(layers=1))
    assert "Mann" in capsys.readouterr().out


def test_hostile_text_cannot_steer_the_terminal() -> None:
    report = translation(layers=1)
    nasty = "\x1b]0;owned\x07 \x9b31m [bold red]\u202e \r\u2028 :smile:"
    report["answer"] = report["input"] = nasty
    report["model"]["name"] = nasty
    report["alignment"]["target"][0]["label"] = nasty
    report["sites"][0]["roles"][0]["name"] = nasty
    text = printed(report, width=80)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
    assert "[bold red]" in text and ":smile:" in text


def test_a_long_text_is_cut_and_says_so() -> None:
    words = " ".join(f"word{index}" for index in range(600))
    text = printed(translation(words, words, layers=1, heads=1, k=4), width=80)
    assert f"and {600 - MOST_WORDS} more words" in text
    assert "more characters)" in text


def test_without_an_alignment_the_rest_is_printed() -> None:
    text = printed(single(40, layers=2, heads=2, k=4), width=80)
    assert "calm 0.91" in text and "alignment" not in text.partition("What the heads do")[0]
    assert any(role in text for role in ROLES)


def test_words_and_heads_without_anything_to_say() -> None:
    report = translation(layers=1, heads=2)
    report["alignment"]["links"] = []
    for site in report["sites"]:
        site["roles"] = [None, None]
        site["entropy"] = [[None] * len(row) for row in site["entropy"]]
    text = printed(report, width=80)
    assert "Mann    ← no word" in text
    assert "no clear role" in text
    assert "What the heads do" not in printed(report | {"sites": []}, width=80)


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="width is 12; it may be 40 columns or more"):
        print_report(translation(layers=1), width=12)


def test_rich_is_imported_only_when_something_is_printed() -> None:
    tree = ast.parse(Path(terminal.__file__).read_text(encoding="utf-8"))
    imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    imported += [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    assert imported and not [name for name in imported if str(name).startswith("rich")]
