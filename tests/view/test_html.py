"""The page as text: what is in it, what cannot get into it, and how it is written."""

import base64
import copy
import hashlib
import json
import math
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from regard.view.html import GENERATOR, SCRIPTS, check_path, render, write
from tests.view.sample import single, translation

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
    "line\u2028end\u2029",
    "a lone \ud800 surrogate",
    "{{script}} {{report}}",
    "quotes \" and ' and & and \\",
    "\0 nul",
]


def embedded(page: str) -> Any:
    found = re.findall(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def to_five_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: to_five_digits(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_five_digits(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


class Tags(HTMLParser):
    """Collects every tag and attribute that a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_report_survives_at_five_digits() -> None:
    report = translation()
    assert embedded(render(report)) == to_five_digits(report)


def test_numbers_that_are_not_finite_become_null() -> None:
    report = translation(layers=1, heads=1)
    report["sites"][0]["mean_distance"][0][0] = math.nan
    report["sites"][0]["entropy"][0] = [math.inf, 1.0]
    site = embedded(render(report))["sites"][0]
    assert site["mean_distance"][0][0] is None
    assert site["entropy"][0] == [None, 1.0]


def test_rendering_leaves_the_report_alone_and_is_the_same_twice() -> None:
    report = translation(layers=1)
    before = copy.deepcopy(report)
    assert render(report) == render(report)
    assert report == before


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_inert(text: str) -> None:
    plain = Tags(render(translation(layers=1, heads=1))).tags
    report = translation(layers=1, heads=1)
    report["input"] = report["answer"] = report["note"] = text
    report["model"] |= {"name": text, "task": text, "description": text}
    report["roles"] = {text: text}
    report["alignment"]["method"] = text
    for side in report["sequences"].values():
        side["title"] = text
        for element in side["elements"]:
            element["label"] = text
    page = render(report)
    changed = [(tag, names) for tag, names in Tags(page).tags if (tag, names) not in plain]
    assert changed == []
    data = page.partition('id="report">')[2].partition("</script>")[0]
    assert not re.search("[<>&\u2028\u2029\0]", data) and "\0" not in page
    page.encode("utf-8")
    assert embedded(page) == to_five_digits(report)


def test_nothing_is_loaded_from_anywhere() -> None:
    page = render(translation())
    assert "http:" not in page and "https:" not in page
    for tag, names in Tags(page).tags:
        assert not names.keys() & {"src", "srcset", "data", "action", "poster", "background"}, tag
        assert (names.get("href") or "#").startswith(("#", "data:,"))
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\s*\(", page)


def test_scripts_set_text_only() -> None:
    script = render(translation(layers=1)).rpartition("<script>")[2]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)


def test_the_policy_allows_this_script_and_this_style_alone() -> None:
    page = render(translation(layers=1))
    policy = next(
        names["content"]
        for tag, names in Tags(page).tags
        if tag == "meta" and names.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'; ")
    for opening, closing in (("<style>", "</style>"), ("<script>", "</script>")):
        text = page.partition(opening)[2].partition(closing)[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_the_structure_is_whole() -> None:
    page = render(translation(layers=1))
    assert page.startswith("<!doctype html>")
    assert GENERATOR in page[:2048]
    tags = Tags(page).tags
    names = [names["id"] for _, names in tags if "id" in names]
    assert len(names) == len(set(names))
    used = set(re.findall(r'getElementById\("([\w-]+)"\)', page))
    assert used <= set(names)
    labelled = {names[a] for _, names in tags for a in names if a in ("aria-labelledby", "for")}
    assert labelled <= set(names)
    assert "{{" not in page.partition("<style>")[0]


def test_every_script_is_short_and_used() -> None:
    folder = Path(__file__).parents[2] / "src" / "regard" / "view" / "page"
    assert {path.name for path in folder.glob("*.js")} == set(SCRIPTS)
    for path in folder.iterdir():
        assert len(path.read_text(encoding="utf-8").splitlines()) < 400, path.name


def test_sizes() -> None:
    sentence = len(render(translation(layers=4, heads=4)).encode())
    assert sentence < 400_000
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen " * 2
    twelve = translation(words[:110], words[:110], layers=12, heads=12)
    assert len(render(twelve).encode()) < 3_000_000
    assert len(render(single(2000, layers=6, heads=8, k=8)).encode()) < 20_000_000


def test_versions_and_fields_are_checked() -> None:
    report = translation(layers=1)
    with pytest.raises(ValueError, match="format_version is 2; this regard reads 1"):
        render(report | {"format_version": 2})
    with pytest.raises(ValueError, match="the report has no 'sites'"):
        render({key: value for key, value in report.items() if key != "sites"})
    with pytest.raises(ValueError, match=r"'encoder\.blocks\.0\.attention' has no 'rest'"):
        render(report | {"sites": [report["sites"][0] | {"rest": None}]})
    report["sites"][0]["key"] = "elsewhere"
    with pytest.raises(ValueError, match="has key sequence 'elsewhere'; the report has 'source', 'target'"):
        render(report)


def test_a_page_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert write(translation(layers=1), path) == path
    first = path.read_bytes()
    assert first.decode("utf-8") == render(translation(layers=1))
    write(translation(layers=1, seed=1), path)
    assert path.read_bytes() != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("content", [b"", b"my notes", b"x" * 3000 + GENERATOR.encode(), b"\xff\xfe\0"])
def test_a_foreign_file_is_replaced_only_by_force(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.html"
    path.write_bytes(content)
    for attempt in (lambda: write(translation(layers=1), path), lambda: check_path(path)):
        with pytest.raises(FileExistsError, match=r"notes\.html exists and was not written by regard"):
            attempt()
    assert path.read_bytes() == content
    check_path(path, force=True)
    write(translation(layers=1), path, force=True)
    assert GENERATOR.encode() in path.read_bytes()[:2048]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.html", tmp_path / "link.html"
    link.symlink_to(real)
    write(translation(layers=1), link)
    assert link.is_symlink() and not real.is_symlink()
    assert GENERATOR.encode() in real.read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="permissions of this kind are POSIX")
def test_permissions_are_the_usual_ones_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    before = os.umask(0o027)
    try:
        write(translation(layers=1), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    write(translation(layers=1), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.parametrize("action", ["write", "check"])
def test_what_cannot_be_written_is_said_in_a_sentence(tmp_path: Path, action: str) -> None:
    def attempt(path: str | Path) -> None:
        if action == "write":
            write(translation(layers=1), path, force=True)
        else:
            check_path(path, force=True)

    with pytest.raises(IsADirectoryError, match=r"the page cannot be written to .*: it is a directory"):
        attempt(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cannot be written to .*missing.*: no such file or directory"):
        attempt(tmp_path / "missing" / "page.html")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=r"cannot be written to .*: not a directory"):
        attempt(tmp_path / "file" / "page.html")
    if Path(os.devnull).exists():
        with pytest.raises(OSError, match="it is not a regular file"):
            attempt(os.devnull)
    check_path(tmp_path / "page.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for attempt in (lambda: write(translation(layers=1), tmp_path / "p"), lambda: check_path(tmp_path / "p")):
        with pytest.raises(PermissionError, match=r"cannot be written to .*: permission denied"):
            attempt()
    tmp_path.chmod(0o700)


def test_a_failure_half_way_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write(translation(layers=1), path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("regard.view.html.os.replace", full)
    with pytest.raises(OSError, match=r"cannot be written to .*: no space left on device"):
        write(translation(layers=1, seed=1), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
