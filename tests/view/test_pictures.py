"""Pictures in a real browser: patches can be pointed at, chosen and reached, and what has weight is bright."""

import io
import json

import pytest

from regard.view.html import write
from regard.view.terminal import print_report
from tests.view.chromium import Page
from tests.view.sample_pictures import COLUMNS, ROWS, image, video

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("usual")]

CELLS = ROWS * COLUMNS


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("page")
    return {
        kind().get("input", ""): write(kind(), directory / f"{kind.__name__}.html").as_uri() for kind in (image, video)
    }


@pytest.fixture
def one(pictures: dict[str, str]) -> str:
    return pictures["holiday.image"]


@pytest.fixture
def film(pictures: dict[str, str]) -> str:
    return pictures["holiday.video"]


def veil(page: Page, index: int) -> int:
    """How much of the middle of an element is covered, 0 to 255."""
    return page.run(
        f"(() => {{ const cell = document.querySelector('.cell[data-index=\"{index}\"]').getBoundingClientRect();"
        f"const canvas = document.querySelector('.cell[data-index=\"{index}\"]').parentElement.querySelector('.veil');"
        "const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;"
        "const x = ((cell.left + cell.right) / 2 - box.left) * scale;"
        "const y = ((cell.top + cell.bottom) / 2 - box.top) * scale;"
        "return canvas.getContext('2d').getImageData(Math.floor(x), Math.floor(y), 1, 1).data[3] })()"
    )


def links(report: dict, side: str, element: int, *, site: int, head: int) -> dict[int, float]:
    """The weights between an element and the others, from the report itself."""
    keys, weights = (report["sites"][site][f"top_{name}"][head] for name in ("keys", "weights"))
    found = {}
    for query, row in enumerate(keys):
        for key, weight in zip(row, weights[query], strict=True):
            if (query if side == "query" else key) == element:
                found[key if side == "query" else query] = weight
    return found


def test_it_draws_without_an_error_or_a_request(page: Page, pictures: dict[str, str]) -> None:
    for address, kind in zip(pictures.values(), (image, video), strict=True):
        page.open_clean(address)
        assert page.data("ready") == "true"
        assert [url for url in page.requests() if not url.startswith("data:")] == [address]
        count = len(kind()["sequences"][kind.__name__]["pictures"])
        loaded = "[...document.querySelectorAll('#texts img')].filter(i => i.complete && i.naturalWidth === 96).length"
        assert page.run(loaded) == count
        assert page.run("document.querySelectorAll('.cell').length") == count * CELLS
        assert "96 × 48 pixels, seen in 3 × 5 patches." in page.text("#explanation")
        assert page.text("#target-words").split("\n") == ["seashore", "0.7000", "lake <b>shore</b>", "0.3000"]
        assert page.run("document.querySelectorAll('#target-words b').length") == 0


@pytest.mark.parametrize("width", [1280, 768, 400, 320])
def test_nothing_is_wider_than_the_page(page: Page, pictures: dict[str, str], width: int) -> None:
    page.size(width, 900)
    for address in pictures.values():
        page.open_clean(address)
        assert page.run("document.documentElement.scrollWidth") <= width
        wide = page.run(
            "[...document.querySelectorAll('main *')]"
            ".filter(node => node.getBoundingClientRect().right > innerWidth + 1)"
            ".map(node => node.id || node.className || node.tagName)"
        )
        assert wide == []


@pytest.mark.parametrize("side", ["query", "key"])
def test_bright_is_what_has_weight(page: Page, one: str, side: str) -> None:
    page.open_clean(one + f"#site=encoder.blocks.1.attention&head=1&element=8&side={side}")
    expected = links(image(), side, 8, site=1, head=1)
    placed = sorted((i for i in expected if i > 0), key=lambda i: -expected[i])
    covered = {index: veil(page, index) for index in range(1, 1 + CELLS)}
    assert covered[placed[0]] == 0
    assert [covered[i] for i in placed] == sorted(covered[i] for i in placed)
    assert {covered[i] for i in covered if i not in expected} <= {214, 215}  # 0.84 of 255
    for index in placed:
        share = (expected[index] / expected[placed[0]]) ** 0.5
        assert covered[index] == pytest.approx(214 * (1 - share), abs=3)
    if side == "query":
        rest = 1 - sum(expected.values())
        assert f"A weight of {rest:.4f} is spread over other parts" in page.text(".key")
    assert f"{expected[placed[0]]:.4f}" in page.text(".key")


def test_patches_are_pointed_at_and_chosen(page: Page, one: str) -> None:
    page.open_clean(one)
    assert page.data("element") == "0"  # the class token: the answer is read from it
    page.hover(".cell[data-index='7']")
    assert page.run("state.element") == 0
    assert page.text("#readout").startswith("1,1 looks at ")
    page.click(".cell[data-index='7']")
    assert page.data("element") == "7"
    assert page.run("document.querySelector('.cell[data-index=\"7\"]').getAttribute('aria-selected')") == "true"
    page.move(0, 0)
    assert page.run("[...document.querySelectorAll('.cell.chosen')].map(c => c.dataset.index)") == ["7"]
    page.click("[data-choice='show:what looks at it']")
    assert (page.data("side"), page.data("element")) == ("key", "7")
    assert page.text("#readout").startswith("1,1 is looked at by ")
    page.click(".part.special[data-index='0']")
    assert page.text("#readout").startswith("[CLS] is looked at by ")


def test_arrow_keys_move_over_the_grid(page: Page, one: str) -> None:
    page.open_clean(one + "#site=encoder.blocks.0.attention&head=0&element=7")
    page.run("document.querySelector('.cell[data-index=\"7\"]').focus()")
    for key, element in (("ArrowRight", 8), ("ArrowDown", 8 + COLUMNS), ("ArrowLeft", 7 + COLUMNS), ("ArrowUp", 7)):
        page.press(key)
        assert page.data("element") == str(element), key


def test_every_head_shows_what_the_element_looks_at(page: Page, one: str) -> None:
    page.open_clean(one)
    shown = "(() => { const c = document.querySelector('button.head canvas'); return c.toDataURL() })()"
    assert page.text("#overview-note").startswith("What [CLS] looks at, as on the picture")
    first = page.run(shown)
    page.click(".cell[data-index='9']")
    second = page.run(shown)
    assert first != second
    assert page.text("#overview-note").startswith("What 1,3 looks at")
    page.run("change({ thumbnails: 'matrix' })")
    page.frame()
    assert page.run("location.hash").count("thumbnails=matrix") == 1
    assert page.text("#overview-note").startswith("Queries down, keys across")
    assert page.run(shown) not in (first, second)
    page.open_clean(one + "#site=encoder.blocks.0.attention&head=0&element=3&thumbnails=matrix")
    assert page.run("document.getElementById('thumbnails').value") == "matrix"


def test_what_no_patch_shows_is_covered(page: Page, one: str) -> None:
    page.open_clean(one)
    boxes = page.run(
        "[...document.querySelectorAll('#texts .outside')].map(node => {"
        "const [a, b] = [node, node.parentElement].map(n => n.getBoundingClientRect());"
        "return [(a.left - b.left) / b.width, (a.right - b.left) / b.width] })"
    )
    assert boxes == [[pytest.approx(5 / 6, abs=0.01), pytest.approx(1, abs=0.01)]]


def test_frames_lie_side_by_side(page: Page, film: str) -> None:
    page.open_clean(film)
    assert page.data("element") == str(4 * CELLS // 2)
    tops = page.run(
        "[...document.querySelectorAll('#texts .frame')].map(f => Math.round(f.getBoundingClientRect().top))"
    )
    assert len(tops) == 4
    assert len({*tops[:3]}) == 1
    assert page.text("#texts figcaption") == "0.00 s"
    page.click(f".cell[data-index='{CELLS + 3}']")
    assert page.text("#readout").startswith("0.50 s 0,3 looks at")


def test_the_terminal_says_what_the_elements_are() -> None:
    for kind in (image, video):
        out = io.StringIO()
        print_report(json.loads(json.dumps(kind())), width=60, file=out, color=False)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        assert "seashore           0.7000" in lines
        assert "lake <b>shore</b>  0.3000" in lines
        assert "96 × 48 pixels, seen in 3 × 5 patches." in lines
