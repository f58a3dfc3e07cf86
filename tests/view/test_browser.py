"""The page in a real browser: it draws without an error or a request, and does what a person asks of it."""

import json
import re
import time
from pathlib import Path

import pytest

from regard.view.html import render
from tests.view.chromium import Page
from tests.view.sample import translation

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("usual")]

CROSS = "decoder.blocks.1.cross"
SELF = "encoder.blocks.0.attention"


def colour(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector({json.dumps(selector)}).style.backgroundColor"))


def table(page: Page) -> list[list[str]]:
    return page.run("[...document.querySelectorAll('#table tbody tr')].map(r => [...r.cells].map(c => c.innerText))")


def test_it_draws_without_an_error_or_a_request(page: Page, small: str) -> None:
    page.open_clean(small)
    assert page.data("ready") == "true"
    assert [address for address in page.requests() if not address.startswith("data:")] == [small]
    report = translation()
    assert report["model"]["name"] in page.text("#model-name")
    assert "raw attention weights" in page.text("#note")
    assert "add up to 1" in page.text("#explanation")
    assert "reads “Ein” and writes “Mann”" in page.text("#explanation")
    assert page.run("document.querySelectorAll('button.head').length") == 48
    painted = "[...document.querySelectorAll('button.head canvas')].filter(c => c.width > 60).length"
    assert page.run(painted) > 4


@pytest.mark.parametrize("width", [1280, 768, 400, 320])
@pytest.mark.parametrize("picture", ["lines", "matrix"])
def test_nothing_is_wider_than_the_page(page: Page, small: str, long: str, width: int, picture: str) -> None:
    page.size(width, 900)
    for address in (small + f"#site={CROSS}&head=2&element=3&picture={picture}&word=target:3", long):
        page.open_clean(address)
        assert page.run("document.documentElement.scrollWidth") <= width
        wide = page.run(
            "[...document.querySelectorAll('main *')]"
            ".filter(node => node.getBoundingClientRect().right > innerWidth + 1)"
            ".map(node => node.id || node.className || node.tagName)"
        )
        assert wide == []


def test_the_alignment_never_scrolls_sideways(page: Page, small: str, tmp_path: Path) -> None:
    short = tmp_path / "short.html"
    short.write_text(render(translation("A man sleeps here .", "Ein Mann schläft hier .", layers=1)), encoding="utf-8")
    wider = "[...document.querySelectorAll('.words')].some(node => node.scrollWidth > node.clientWidth)"
    for address in (small, short.as_uri()):
        page.open(address)
        for width in range(320, 480, 5):  # down to what a scroll bar leaves of a narrow window
            page.size(width, 900)
            page.frame()
            assert page.run(
                "['source', 'target'].every(side => report.alignment[side].every((_, index) => {"
                f"hoverWord({{ side, index }}); return !({wider}); }})) && (hoverWord(null), !({wider}))"
            ), width


def test_an_address_leads_to_its_place(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={CROSS}&head=2&element=4&sinks=out&picture=matrix&order=entropy")
    assert (page.data("site"), page.data("head"), page.data("element")) == (CROSS, "2", "4")
    assert page.run("document.querySelector('#controls input').checked") is True
    assert page.run("document.getElementById('order').value") == "entropy"
    page.run("location.hash = '#site=decoder.blocks.0.attention&head=mean&element=2&side=key'")
    page.wait("document.documentElement.dataset.head === 'mean'")
    assert (page.data("site"), page.data("side"), page.data("element")) == (
        "decoder.blocks.0.attention",
        "key",
        "2",
    )
    for nonsense in (
        "#site=nowhere&head=99&element=9999&side=x&word=target:999",
        "#%%%",
        "#element=-1",
        "#head=",
    ):
        page.open_clean(small + nonsense)
        assert page.data("ready") == "true"


def test_the_table_holds_the_exact_numbers(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={SELF}&head=1&element=2")
    site = translation()["sites"][0]
    weights, keys = site["top_weights"][1][2], site["top_keys"][1][2]
    rows = table(page)
    assert len(rows) == len(keys)
    for row, key, weight in zip(rows, keys, weights, strict=True):
        assert row[0] == str(key)
        assert row[3] == (f"{weight:.4f}" if weight >= 5e-5 else "<0.0001")
    facts = page.text("#facts")
    assert f"{site['entropy'][1][2]:.4f} nats" in facts
    assert re.search(r"not shown\s+0\.0000", facts)


def test_the_column_adds_up_to_what_was_received(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={SELF}&head=1&element=2&side=key")
    site = translation()["sites"][0]
    assert f"{site['received'][1][2]:.4f}" in page.text("#facts")
    column = sum(
        weight
        for keys, weights in zip(site["top_keys"][1], site["top_weights"][1], strict=True)
        for key, weight in zip(keys, weights, strict=True)
        if key == 2
    )
    shown = page.run("linksOf(rowsNow(), 'key', 2).reduce((sum, link) => sum + link.weight, 0)")
    assert shown == pytest.approx(column, abs=1e-4)


def test_a_choice_survives_the_pointer(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={SELF}&head=0&element=1")
    before = table(page)
    page.click("#texts .part[data-index='5']")
    assert page.data("element") == "5"
    pinned = table(page)
    assert pinned != before
    page.hover("#texts .part[data-index='9']")
    assert page.data("element") == "9"
    assert page.text("#readout").startswith("a (9) looks at")
    page.move(2, 2)
    assert page.data("element") == "5"
    assert table(page) == pinned
    assert "element=5" in page.run("location.hash")


def test_weights_colour_the_other_side(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={CROSS}&head=0&element=2")
    strongest = translation()["sites"][9]["top_keys"][0][2][0]
    key = f"#texts .text-frame + .text-frame .part[data-index='{strongest}']"
    assert colour(page, key).startswith("rgb(")
    strong = page.run(f"document.querySelector({json.dumps(key)}).title")
    assert strong == f"{translation()['sites'][9]['top_weights'][0][2][0]:.4f}"
    assert page.run("document.querySelector('#texts .chosen').dataset.index") == "2"
    # On the side of the keys the question is asked the other way round.
    page.click(key)
    assert (page.data("side"), page.data("element")) == ("key", str(strongest))
    assert "is looked at by" in page.text("#readout")


def test_the_keyboard_does_it_all(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={SELF}&head=0&element=1")
    page.run("document.querySelector('#texts [aria-selected=true]').focus()")
    page.press("ArrowRight")
    assert page.data("element") == "2"
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert page.data("element") == "0"
    page.press("End")
    assert page.data("element") == "15"
    page.press("Home")
    assert page.data("element") == "0"
    stops = "[...document.querySelectorAll('#texts [tabindex=\"0\"]')].length"
    assert page.run(stops) == 1
    page.run("document.querySelector('button.head[tabindex=\"0\"]').focus()")
    page.press("ArrowRight")
    page.press("ArrowDown")
    page.press("Enter")
    assert (page.data("site"), page.data("head")) == ("encoder.blocks.1.attention", "1")
    page.run("document.getElementById('picture-canvas').focus()")
    page.press("ArrowDown")
    assert page.data("element") == "1"
    page.press("ArrowRight")
    assert page.data("side") == "key"
    page.run("document.querySelector('[data-choice=\"head:2\"]').focus()")
    page.press("Enter")
    assert page.data("head") == "2"
    assert page.run("document.activeElement.dataset.choice") == "head:2"


def test_arrows_go_up_and_down_between_lines(page: Page, small: str) -> None:
    page.size(400, 900)
    page.open_clean(small + f"#site={SELF}&head=0&element=1")
    page.run("document.querySelector('#texts [aria-selected=true]').focus()")
    top = "document.activeElement.getBoundingClientRect().top"
    first = page.run(top)
    page.press("ArrowDown")
    assert page.run(top) > first
    page.press("ArrowUp")
    assert page.run(top) == first


def test_words_and_their_partners(page: Page, small: str) -> None:
    page.open_clean(small)
    report = translation()
    page.hover("#target-words .part[data-index='1']")
    weight = report["alignment"]["weights"][1][1]
    assert f"Mann ← man {weight:.4f}" in page.text("#alignment-readout")
    assert page.run("document.querySelector('#source-words .part[data-index=\"1\"]').dataset.weight") == f"{weight:.2f}"
    page.click("#source-words .part[data-index='4']")
    assert "word=source%3A4" in page.run("location.hash")
    page.move(2, 2)
    assert page.text("#alignment-readout").startswith("blue → blauen")
    page.press("Escape")
    assert "Point at a word" in page.text("#alignment-readout")


def test_sinks_are_taken_out_and_rows_add_up_again(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={CROSS}&head=0&element=2")
    with_sinks = table(page)
    assert "</s>" in {row[1] for row in with_sinks}
    page.click("#controls input[type=checkbox]")
    rows = table(page)
    assert "</s>" not in {row[1] for row in rows}
    assert sum(float(row[3].lstrip("<")) for row in rows) == pytest.approx(1, abs=2e-3)
    assert "no longer raw attention weights" in page.text("#explanation")
    page.click("#controls input[type=checkbox]")
    assert table(page) == with_sinks


def test_the_mean_is_the_mean(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={SELF}&head=mean&element=3")
    site = translation()["sites"][0]
    expected = dict.fromkeys(range(16), 0.0)
    for keys, weights in zip(site["top_keys"], site["top_weights"], strict=True):
        for key, weight in zip(keys[3], weights[3], strict=True):
            expected[key] += weight / 4
    for row in table(page):
        assert float(row[3].lstrip("<")) == pytest.approx(expected[int(row[0])], abs=6e-5)


def test_heads_are_sorted_by_what_is_asked(page: Page, small: str) -> None:
    page.open_clean(small)

    def order(name: str) -> None:
        page.run(f"document.getElementById('order').value = '{name}'")
        page.run("document.getElementById('order').dispatchEvent(new Event('change'))")

    def shown(part: str) -> list[list[str]]:
        return page.run(
            "[...document.querySelectorAll('.head-grid')].map(grid =>"
            f"[...grid.querySelectorAll('{part}')].map(node => node.textContent))"
        )

    order("entropy")
    for group in shown(".head-number span:last-child"):
        assert len(group) == 16 and group == sorted(group, key=float)
    page.click("#reverse")
    for group in shown(".head-number span:last-child"):
        assert group == sorted(group, key=float, reverse=True)
    order("role")
    for group in shown(".head-name"):
        assert group == sorted(group, reverse=True)
    order("model")
    assert len(shown(".head-name")) == 12


def test_a_matrix_reads_the_cell_under_the_pointer(page: Page, small: str) -> None:
    page.open_clean(small + f"#site={SELF}&head=1&element=2&picture=matrix")
    page.run("document.getElementById('picture-canvas').scrollIntoView({ block: 'center', behavior: 'instant' })")
    place = page.run(
        "(() => { const all = { q0: 0, q1: 16, k0: 0, k1: 16 };"
        "const at = matrixLayout(rowsNow(), all, document.getElementById('picture').clientWidth);"
        "const box = document.getElementById('picture-canvas').getBoundingClientRect();"
        "return [box.left + at.left + 8.5 * at.across, box.top + at.top + 7.5 * at.down] })()"
    )
    page.move(*place)
    site = translation()["sites"][0]
    weight = dict(zip(site["top_keys"][1][7], site["top_weights"][1][7], strict=True))[8]
    assert page.text("#picture-readout") == f"query 7 standing · key 8 on: {weight:.4f}"
    page.click_at(*place)
    assert page.data("element") == "7"


def test_both_schemes_are_drawn(page: Page, small: str) -> None:
    page.open_clean(small)
    light = page.run("[getComputedStyle(document.body).backgroundColor, palette.css[255]]")
    page.scheme("dark")
    page.frame()
    dark = page.run("[getComputedStyle(document.body).backgroundColor, palette.css[255]]")
    assert light != dark and page.errors() == []
    # Text on a coloured ground is legible at every weight.
    contrasts = page.run(
        "palette.css.map((ground, at) =>contrast(ground.match(/\\d+/g).map(Number), channels(palette.text[at])))"
    )
    assert min(contrasts) >= 4.5


def test_the_data_can_be_taken_away(page: Page, small: str, tmp_path: Path) -> None:
    page.open_clean(small)
    page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#download")
    path = tmp_path / "regard-translate-en-de.json"
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    embedded = render(translation()).partition('id="report">')[2].partition("</script>")[0]
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(embedded)
