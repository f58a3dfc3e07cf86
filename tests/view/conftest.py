"""What the tests of the views share: a browser, and two pages to open in it."""

from collections.abc import Iterator

import pytest

from regard.view.html import write
from tests.view.chromium import Page
from tests.view.sample import single, translation


@pytest.fixture(scope="module")
def page(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(chromium, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(translation(), tmp_path_factory.mktemp("page") / "small.html").as_uri()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(single(), tmp_path_factory.mktemp("page") / "long.html").as_uri()


@pytest.fixture
def usual(page: Page) -> None:
    """A desktop window in the light scheme, the pointer out of the way."""
    page.size(1280, 900)
    page.scheme("light")
    page.move(0, 0)
