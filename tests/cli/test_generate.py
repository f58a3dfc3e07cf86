"""`regard generate` and `regard chat` as commands: output, one-line errors, a conversation, Ctrl-C."""

import json
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from regard.pipelines import GenerationPipeline, pipeline
from tests.command_line import Run
from tests.models.small_llama import small_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def write(place: Path) -> GenerationPipeline:
    found = pipeline(place)
    assert isinstance(found, GenerationPipeline)
    return found


def test_a_prompt_and_a_piped_one(run: Run, place: Path, write: GenerationPipeline):
    expected = write("Two dogs", max_new_tokens=9).text
    for args, stdin in ((("Two dogs",), b""), ((), b"Two dogs\n")):
        result = run("generate", "-m", place, *args, "--max-new-tokens", "9", stdin=stdin)
        assert (result.returncode, result.stdout.decode()) == (0, expected + "\n")


def test_json_lines_and_seeds(run: Run, place: Path, write: GenerationPipeline):
    options = ("--lines", "--json", "--temperature", "1.5", "--top-p", "0.9", "--seed", "4", "--max-new-tokens", "7")
    result = run("generate", "-m", place, *options, stdin=b"Two dogs\nx\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    expected = write(["Two dogs", "x"], temperature=1.5, top_p=0.9, seed=4, max_new_tokens=7)
    assert [a["ids"] for a in answers] == [list(e.ids) for e in expected]
    assert [a["prompt"] for a in answers] == ["Two dogs", "x"]
    assert [len(a["log_probabilities"]) for a in answers] == [len(e.ids) for e in expected]
    assert b"2 of 2" in result.stderr


def test_one_message(run: Run, place: Path, write: GenerationPipeline):
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "dogs?"}]
    expected = write.chat(messages, max_new_tokens=6)
    options = ("--system", "Brief.", "--max-new-tokens", "6", "--threads", "1")
    assert run("chat", "-m", place, "dogs?", *options).stdout.decode() == expected.text + "\n"
    piped = run("chat", "-m", place, "--json", *options, stdin=b"dogs?")
    assert json.loads(piped.stdout) == expected.to_dict() | {
        "log_probabilities": json.loads(piped.stdout)["log_probabilities"]
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generate", "-m", "PLACE", ""), "the prompt is empty"),
        (("generate", "-m", "PLACE", "dogs run far " * 50), "this model takes at most 96"),
        (("generate", "-m", "/nowhere/model", "x"), "is neither a directory nor the name of"),
        (("generate", "-m", "/nowhere/model.gguf", "x"), "is neither a directory nor the name of"),
        (("generate", "-m", "PLACE", "--beams", "2", "--temperature", "1", "x"), "beams is 2 and temperature 1.0"),
        (("generate", "-m", "PLACE", "--top-p", "3", "x"), "--top-p"),
        (("generate", "-m", "PLACE", "--lines", "x"), "leave PROMPT out"),
        (("generate", "x"), "--model"),
        (("chat", "-m", "PLACE", " "), "the message is empty"),
    ],
)
def test_bad_input_is_one_line(run: Run, place: Path, args: tuple[str, ...], message: str):
    result = run(*(place if arg == "PLACE" else arg for arg in args))
    error = result.stderr.decode()
    assert result.returncode == 2 and result.stdout == b""
    assert message in error and error.startswith("regard: ") and error.count("\n") == 1


class Terminal:
    """A command that believes that it talks to a person."""

    def __init__(self, *args: str | Path) -> None:
        self.pid, self._file = pty.fork()
        if self.pid == 0:  # what other tests left of Ctrl-C is not this command's
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.execv(sys.executable, [sys.executable, "-m", "regard", *map(str, args)])
        self.seen = ""

    def wait_for(self, text: str) -> str:
        """What comes until this text, which it forgets."""
        end = time.monotonic() + 120
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            self.seen += os.read(self._file, 4096).decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def interrupt_until(self, text: str) -> None:
        """Ctrl-C until this text comes: one that comes before the prompt is read may go unnoticed."""
        for _ in range(20):
            os.kill(self.pid, signal.SIGINT)
            if select.select([self._file], [], [], 5)[0]:
                self.wait_for(text)
                return
        raise AssertionError("Ctrl-C is not answered")

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_conversation(place: Path, write: GenerationPipeline):
    first = write.chat([{"role": "user", "content": "dogs"}], max_new_tokens=5).text
    terminal = Terminal("chat", "-m", place, "--max-new-tokens", "5")
    terminal.wait_for("> ")
    answers = []
    for text in ("dogs", "dogs", "/reset", "dogs", "/what"):
        terminal.type(text + "\n")
        terminal.wait_for(text + "\r\n")
        answers.append(terminal.wait_for("> ").replace("\r\n", "\n"))
    visible = first.replace("\r\n", "\n") + "\n"
    assert answers[0] == visible and answers[3] == visible
    assert "forgotten" in answers[2] and "/what is no command" in answers[4]
    terminal.interrupt_until("> ")  # at the prompt it ends nothing
    terminal.type("/exit\n")
    assert terminal.status() == 0
