"""The command line as a user runs it, with a small model on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from regard.models import save_model
from tests.command_line import Run
from tests.models.small_translator import small_tokenizer, small_translator

SENTENCE = "A man opens the window."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "small"
    about = {"languages": ["en", "de"], "decoding": {"beams": 2, "alpha": 1.0}}
    return save_model(directory, small_translator(), small_tokenizer(), card="", about=about)


def _in_a_process(*arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command: list[str | bytes] = [sys.executable, "-m", "regard", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def _refused(result: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """One line on stderr that says why, exit code 2, nothing on stdout."""
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 2, result.stderr.decode()
    assert len(lines) == 1 and lines[0].startswith("regard: "), lines
    assert result.stdout == b""
    for word in words:
        assert word in lines[0]


def test_see_prints_the_answer_and_writes_a_page(run: Run, model: Path, tmp_path: Path):
    result = run("see", SENTENCE, "--model", str(model))
    assert result.returncode == 0, result.stderr.decode()
    page = tmp_path / "regard-a-man-opens-the.html"
    assert [p.name for p in tmp_path.iterdir()] == [page.name]
    assert str(page) in result.stdout.decode()
    assert "raw" in result.stdout.decode().lower()
    assert SENTENCE in page.read_text(encoding="utf-8")


def test_see_as_json_is_the_same_data_and_writes_no_page(run: Run, model: Path, tmp_path: Path):
    result = run("see", SENTENCE, "--model", str(model), "--json")
    report = json.loads(result.stdout)
    assert report["input"] == SENTENCE and report["format_version"] == 1
    assert {site["kind"] for site in report["sites"]} == {"self", "cross"}
    for site in report["sites"]:
        for head in range(site["heads"]):
            for weights, rest in zip(site["top_weights"][head], site["rest"][head], strict=True):
                assert sum(weights) + rest == pytest.approx(1, abs=1e-4)
    assert list(tmp_path.iterdir()) == []
    assert result.stderr == b""


def test_see_reads_files_and_standard_input(run: Run, model: Path, tmp_path: Path):
    (tmp_path / "caption.txt").write_text("A man opens\nthe window.\n", encoding="utf-8")
    by_file = run("see", "caption.txt", "--model", str(model), "--json", "-o", "out.html")
    by_pipe = run("see", "-", "--model", str(model), "--json", stdin=SENTENCE.encode())
    assert by_file.stdout == by_pipe.stdout
    assert (tmp_path / "out.html").exists()
    by_name = run("see", "caption.txt", "--text", "--model", str(model), "--json")
    assert json.loads(by_name.stdout)["input"] == "caption.txt"


def test_see_replaces_its_own_pages_but_no_other_file(run: Run, model: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    assert run("see", SENTENCE, "-m", str(model), "-o", "page.html").returncode == 0
    assert run("see", SENTENCE, "-m", str(model), "-o", "page.html").returncode == 0
    page.write_text("mine")
    _refused(run("see", SENTENCE, "-m", str(model), "-o", "page.html"), "page.html")
    assert page.read_text() == "mine"
    assert run("see", SENTENCE, "-m", str(model), "-o", "page.html", "--force").returncode == 0
    assert page.read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["see", ""], b"", ["empty"]),
        (["see", "-"], b" \n", ["empty"]),
        (["see", "-"], b"caf\xe9", ["UTF-8", "0xe9", "offset 3"]),
        (["see", "missing.txt"], b"", ["missing.txt", "no such file"]),
        (["see", "photos/dog"], b"", ["no such file"]),
        (["see", "dogs " * 70], b"", ["71", "64"]),
        (["see", "."], b"", ["directory"]),
        (["translate"], b"a dog\n\xff\xfe\n", ["UTF-8", "line 2"]),
        (["translate"], b"a dog\n" + b"dogs " * 70 + b"\n", ["line 2", "64"]),
        (["translate", "missing.en"], b"", ["missing.en"]),
        (["see", SENTENCE, "-o", "no/such/dir/page.html"], b"", ["no/such/dir/page.html"]),
        (["translate", "-o", "no/such/dir/out.de"], b"a dog\n", ["out.de"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    run: Run, model: Path, tmp_path: Path, arguments: list[str], stdin: bytes, words: list[str]
):
    _refused(run(*arguments, "--model", str(model), stdin=stdin), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own(model: Path):
    _refused(_in_a_process("see", b"caf\xe9 noir", "--model", str(model)), "UTF-8")
    result = _in_a_process("translate", "--model", str(model), stdin=b"Two dogs play.\n\n")
    assert result.returncode == 0
    assert result.stdout.count(b"\n") == 2


def test_a_photograph_is_not_text(run: Run, model: Path, tmp_path: Path):
    (tmp_path / "dog.png").write_bytes(b"\x89PNG")
    _refused(run("see", "dog.png", "--model", str(model)), "dog.png", "image")


def test_bad_models_are_one_line_and_code_2(run: Run, model: Path, tmp_path: Path):
    _refused(run("see", SENTENCE, "--model", "nobody"), "'nobody'")
    (tmp_path / "empty").mkdir()
    _refused(run("see", SENTENCE, "--model", "empty"), "config.json")
    broken = tmp_path / "broken"
    for change in (lambda b: b[:-100], lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:], lambda _: b""):
        subprocess.run(["cp", "-r", str(model), str(broken)], check=True)
        weights = broken / "model.safetensors"
        weights.write_bytes(change(weights.read_bytes()))
        _refused(run("see", SENTENCE, "--model", "broken"), "model.safetensors")
        subprocess.run(["rm", "-r", str(broken)], check=True)


def test_translate_gives_a_line_for_every_line(run: Run, model: Path, tmp_path: Path):
    lines = "Two dogs play.\n\nA man opens the window.\nsnow"
    result = run("translate", "--model", str(model), stdin=lines.encode())
    assert result.returncode == 0, result.stderr.decode()
    answers = result.stdout.decode().split("\n")
    assert len(answers) == 5 and answers[1] == "" and answers[4] == ""
    assert b"4 of 4 lines" in result.stderr
    (tmp_path / "in.en").write_text(lines, encoding="utf-8")
    run("translate", "in.en", "--model", str(model), "-o", "out.de")
    assert (tmp_path / "out.de").read_bytes() == result.stdout
    _refused(run("translate", "in.en", "--model", str(model), "-o", "out.de"), "out.de exists")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.en", "out.de"]


def test_white_space_is_the_same_to_see_and_to_translate(run: Run, model: Path):
    spread = "  Two\tdogs   play. "
    seen = json.loads(run("see", spread, "--json", "--model", str(model)).stdout)
    assert seen["input"] == "Two dogs play."
    spans = [element["span"] for element in seen["sequences"]["source"]["elements"] if element["span"]]
    assert [seen["input"][first:stop] for first, stop in spans] == ["Two", "dogs", "play", "."]
    for line in (spread, "Two dogs play."):
        assert run("translate", "--model", str(model), stdin=line.encode()).stdout.decode() == seen["answer"] + "\n"


def test_translate_of_nothing_is_nothing(run: Run, model: Path):
    result = run("translate", "--model", str(model))
    assert (result.returncode, result.stdout) == (0, b"")


@pytest.mark.parametrize("command", [[], ["see"], ["translate"], ["models"]])
def test_help_has_examples(run: Run, command: list[str]):
    result = run(*command, "--help")
    assert result.returncode == 0
    assert b"Usage" in result.stdout
    if command and command != ["models"]:
        assert b"Examples" in result.stdout


def test_version_and_help_without_arguments(run: Run):
    assert run("--version").stdout.startswith(b"regard ")
    assert b"Usage" in run().stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["see"], ["Missing argument 'INPUT'", "regard see --help"]),
        (["nonsense"], ["No such command 'nonsense'", "regard --help"]),
        (["--nonsense"], ["--nonsense", "regard --help"]),
        (["see", "a", "--bema", "3"], ["--bema", "--beams", "regard see --help"]),
        (["see", "a", "--beams", "0"], ["--beams", "1", "regard see --help"]),
        (["translate", "--threads", "two"], ["--threads", "integer", "regard translate --help"]),
        (["translate", "a", "b"], ["(b)", "regard translate --help"]),
        (["see", "a", "-o"], ["-o", "regard"]),
    ],
)
def test_wrong_use_is_one_line_with_a_hint(run: Run, arguments: list[str], words: list[str]):
    _refused(run(*arguments), *words, "--help")


def _in_a_shell(line: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command with what a shell makes of its streams."""
    command = ["sh", "-c", f'"$@" {line}', "sh", sys.executable, "-m", "regard", *arguments]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_closed_streams(model: Path, tmp_path: Path):
    source, page = tmp_path / "in.en", tmp_path / "page.html"
    source.write_text("Two dogs play.\n")
    _refused(_in_a_shell("<&-", "translate", "--model", str(model)), "standard input is closed")
    _refused(_in_a_shell("<&-", "see", "-", "--model", str(model)), "standard input is closed")
    _refused(_in_a_shell(">&-", "translate", str(source), "--model", str(model)), "standard output is closed")
    _refused(_in_a_shell(">&-", "see", "a dog", "--model", str(model), "-o", str(page)), "standard output is closed")
    quiet = _in_a_shell("<&- 2>&-", "translate", str(source), "--model", str(model))
    assert quiet.returncode == 0 and quiet.stdout.count(b"\n") == 1
    lost = _in_a_shell("2>&-", "see", "missing.txt", "--model", str(model))
    assert (lost.returncode, lost.stdout, lost.stderr) == (2, b"", b"")
    nothing = _in_a_shell("<&- >&- 2>&-", "translate", str(source), "--model", str(model))
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (2, b"", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [["models"], ["--help"], ["--version"]])
def test_a_full_disk_is_one_line(command: list[str]):
    result = _in_a_shell(">/dev/full", *command)
    assert result.returncode == 2
    assert result.stderr.decode().splitlines() == ["regard: [Errno 28] No space left on device"]


def test_a_reader_that_has_gone_is_no_error(model: Path, tmp_path: Path):
    (tmp_path / "in.en").write_text("Two dogs play.\n" * 3)
    result = _in_a_shell("| true", "translate", str(tmp_path / "in.en"), "--model", str(model))
    assert result.stderr.decode().splitlines() == ["3 of 3 lines"]


@pytest.mark.parametrize(
    "module",
    ["json", "typer", "typer.main", "numpy", "torch", "torch.nn", "regard.pipelines", "tokenizers"],
)
def test_ctrl_c_during_the_imports_is_one_line(model: Path, module: str):
    code = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

module = sys.argv.pop()
sys.meta_path.insert(0, Interrupt())
runpy.run_module("regard", run_name="__main__")
"""
    command = [sys.executable, "-c", code, "translate", "--model", str(model), module]
    result = subprocess.run(command, input=b"snow\n", capture_output=True, check=False)
    assert result.stderr.decode().splitlines() == ["regard: stopped"]
    assert (result.returncode, result.stdout) == (130, b"")


def test_json_is_utf8_whatever_the_terminal_speaks(model: Path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "regard", "see", "Größe", "--json", "--model", str(model)]
    result = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert json.loads(result.stdout.decode("utf-8"))["input"] == "Größe"


def test_translate_keeps_links_modes_and_what_is_no_file(run: Run, model: Path, tmp_path: Path):
    (tmp_path / "in.en").write_text("snow\n")
    target, link, pipe = tmp_path / "target.de", tmp_path / "link.de", tmp_path / "pipe"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    os.mkfifo(pipe)
    result = run("translate", "in.en", "-m", str(model), "-o", "link.de", "--force")
    assert result.returncode == 0, result.stderr
    assert link.is_symlink() and target.read_text() != "old"
    assert target.stat().st_mode & 0o777 == 0o600
    _refused(run("translate", "in.en", "-m", str(model), "-o", "pipe", "--force"), "pipe", "not a regular file")
    _refused(run("translate", "in.en", "-m", str(model), "-o", ".", "--force"), "not a regular file")
    assert pipe.is_fifo()
