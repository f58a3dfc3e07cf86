"""The page in a real browser with hostile, long and unusual input."""

import re
from pathlib import Path
from typing import Any

import pytest

from regard.view.html import write
from tests.view.chromium import Page
from tests.view.sample import single, translation

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("usual")]

SELF = "encoder.blocks.0.attention"


def opened(page: Page, path: Path, report: dict[str, Any], place: str = "") -> None:
    page.open_clean(write(report, path / "page.html", force=True).as_uri() + place)


def test_hostile_text_is_shown_and_does_nothing(page: Page, tmp_path: Path) -> None:
    text = "</script><img src=x onerror=document.title='owned'> \u2028 a 🙂 man"
    report = translation(text, text, layers=1, heads=2)
    report["sequences"]["source"]["title"] = report["model"]["name"] = "<b onclick=1>"
    opened(page, tmp_path, report)
    assert page.run("document.title") != "owned"
    assert page.run("document.querySelectorAll('img, svg, b').length") == 0
    assert "<img src=x onerror=" in page.text("#source-words")
    assert [address for address in page.requests() if not address.startswith(("data:", "file:"))] == []
    # Spans count characters; the picture character takes two units in the browser's own strings.
    assert page.run("[...document.querySelectorAll('#source-words .part')].pop().textContent") == "man"


def test_a_policy_stands_behind_the_escaping(page: Page, small: str) -> None:
    page.open_clean(small)
    page.run("document.body.append(Object.assign(document.createElement('script'), { text: 'window.owned = 1' }))")
    assert page.run("window.owned ?? null") is None


def test_a_long_text_stays_quick(page: Page, long: str) -> None:
    page.open_clean(long)
    # Generous, for slow machines: each takes a tenth of this on an ordinary one.
    for seconds, action in (
        (0.5, "hovered = { side: 'query', element: 900 }; announce(new Set(['hover']))"),
        (1.5, "change({ head: 3 })"),
        (1.5, "change({ side: 'key', element: 1999 })"),
        (2.5, "change({ head: 'mean' })"),
        (2.5, "change({ sinks: true })"),
        (4.0, "overview.cells.forEach(paintCell)"),
    ):
        taken = page.run(
            "(() => { const from = performance.now();"
            f"{action}; document.body.offsetHeight; return performance.now() - from }})()"
        )
        assert taken < seconds * 1000, action
    assert page.errors() == []


def test_what_is_not_shown_is_stated(page: Page, long: str) -> None:
    page.open_clean(long + f"#site={SELF}&head=0&element=700")
    rest = single()["sites"][0]["rest"][0][700]
    assert re.search(rf"not shown\s+{rest:.4f}", page.text("#facts"))
    assert "the 8 largest weights are known" in page.text("#table-note")
    least = single()["sites"][0]["top_weights"][0][700][7]
    page.run("readCell(rowsNow(), { query: 700, key: 3 })")
    bound = f"{least:.4f}" if least >= 5e-5 else "<0.0001"
    assert f"not among the links shown, at most {bound}" in page.text("#picture-readout")


def test_very_long_texts_are_drawn_in_parts(page: Page, tmp_path: Path) -> None:
    opened(page, tmp_path, single(9000, layers=1, heads=2, k=4), f"#site={SELF}&head=0&element=5000")
    assert page.run("document.querySelectorAll('#texts .part').length") == 4000
    assert "elements 4000–7999 of 9000" in page.text(".pager")
    page.click(".pager button:last-child")
    assert page.data("element") == "8000"
    assert page.run("document.querySelectorAll('#texts .part').length") == 1000


def test_unusual_reports_are_drawn(page: Page, tmp_path: Path) -> None:
    patches = single(10, layers=1, heads=1, k=10)
    side = patches["sequences"]["text"]
    del side["text"]
    side["modality"] = "image"
    for index, element in enumerate(side["elements"]):
        element |= {"label": f"patch {index}", "modality": "image", "span": [0, 0, 16, 16]}
    patches |= {"answer": None, "roles": {}}
    patches["sites"][0] |= {"roles": [None], "layer": None, "part": ""}
    patches["sites"][0]["entropy"][0][3] = None
    patches["sites"][0] |= {"received": None, "max_weight": None}
    opened(page, tmp_path, patches, f"#site={SELF}&element=3&head=0")
    assert "patch 3" in page.text("#texts")
    opened(page, tmp_path, single(3, layers=1, heads=1, k=2))
    opened(page, tmp_path, translation(layers=1) | {"sites": []})
    assert "Mann" in page.text("#target-words")
    pieces = translation("ab", "ab", layers=1)
    for span, element in zip(([0, 1], [0, 1]), pieces["sequences"]["source"]["elements"], strict=True):
        element["span"] = span
    opened(page, tmp_path, pieces)
