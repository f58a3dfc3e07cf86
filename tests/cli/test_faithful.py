"""`regard faithful` as a command: reports of texts and of word alignments, Ctrl-C, one-line errors."""

import json
from pathlib import Path

import pytest

from regard.pipelines import ClassificationPipeline, pipeline
from regard.pipelines.faithful import METHODS, TextFaithfulness
from regard.relations import alignment_scores, compare_with_control
from regard.relations.faithfulness import METRICS
from tests.command_line import Run
from tests.models.small_bert import small_bert

TEXTS = ["two dogs run over the green grass", "good", "the film was not very good , and it was bad"]
PAIRS = (["two dogs play in the snow .", "a man ."], ["zwei hunde spielen im schnee .", "ein mann ."])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faithful")
    return small_bert(place, "ForSequenceClassification", id2label={0: "bad", 1: "good"})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "films.tsv"
    path.write_text("".join(f"{text}\t1\n" for text in [*TEXTS[:2], " ", TEXTS[2]]), encoding="utf-8")
    return path


@pytest.fixture
def aligned(tmp_path: Path) -> Path:
    place = tmp_path / "aligned"
    place.mkdir()
    for language, lines in zip(("en", "de"), PAIRS, strict=True):
        (place / f"test.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (place / "de-en.ref.wa").write_text("1 0 0 S\n1 1 1 S\n1 4 5 S\n2 1 1 P\n2 0 0 S\n2 9 0 S\n")
    return place


NAMED = ("--columns", "review,stars", "--text", "review")


def test_a_report_of_texts(run: Run, model: Path, table: Path, tmp_path: Path):
    out = tmp_path / "report.json"
    done = run("faithful", table, *NAMED, "-m", model, "--controls", "3", "--seed", "4", "-o", out, "--threads", "1")
    assert done.returncode == 0, done.stderr
    classify = pipeline(model, "classify")
    assert isinstance(classify, ClassificationPipeline)
    measure = TextFaithfulness(classify, controls=3, seed=4)
    measured = [measure(text) for text in TEXTS]
    expected = compare_with_control([one.values for one in measured], seed=4)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["comparisons"] == [row.to_dict() for row in expected]
    assert [one["text"] for one in report["texts"]] == TEXTS and report["complete"]
    assert (report["inputs"], report["deletion"], report["seed"]) == (3, "mask", 4)
    assert [*report["methods"]] == [*METHODS] and [*report["metrics"]] == [*METRICS]
    shown = done.stdout.decode()
    for row in expected:
        assert f"{row.method:15} {row.value}    difference {row.difference}  {row.verdict}" in shown
        assert f"random          {row.control}" in shown
    assert "1 row is left out: the text is missing" in done.stderr.decode() and b"3 of 3 texts" in done.stderr
    printed = run("faithful", table, *NAMED, "-m", model, "--controls", "3", "--seed", "4", "--json")
    assert json.loads(printed.stdout) == report
    again = run("faithful", table, *NAMED, "-m", model, "-o", out)
    assert (again.returncode, b"exists; choose another path" in again.stderr) == (2, True)


def test_a_choice_of_methods_metrics_and_texts(run: Run, model: Path, tmp_path: Path):
    rows = [{"text": text} for text in TEXTS]
    (tmp_path / "films.jsonl").write_text("\n".join(map(json.dumps, rows)))
    choice = ("--method", "rollout", "--method", "attention", "--metric", "sufficiency", "--deletion", "attention")
    done = run("faithful", "films.jsonl", "-m", model, *choice, "--limit", "2", "--json")
    report = json.loads(done.stdout)
    assert [(row["method"], row["metric"]) for row in report["comparisons"]] == [
        ("rollout", "sufficiency"),
        ("attention", "sufficiency"),
    ]
    assert report["inputs"] == 2 and report["deletion"] == "attention"
    shown = run("faithful", "films.jsonl", "-m", model, *choice, "--limit", "2", "--force").stdout.decode()
    assert "a deleted piece is hidden from attention" in shown and "deletion, lower" not in shown


def test_ctrl_c_prints_what_there_is(
    run: Run, model: Path, table: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, count = TextFaithfulness.__call__, 0

    def stopped(self: TextFaithfulness, text: str, name: str):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return whole(self, text, name)

    monkeypatch.setattr(TextFaithfulness, "__call__", stopped)
    done = run("faithful", table, *NAMED, "-m", model, "-o", tmp_path / "report.json")
    assert done.returncode == 130
    assert b"stopped before the last text: what follows is of the first 2 of 3" in done.stderr
    assert done.stdout.startswith(b"2 texts, ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["inputs"], report["complete"]) == (2, False)
    count = 2  # before the first text there is nothing to print
    done = run("faithful", table, *NAMED, "-m", model)
    assert (done.returncode, done.stdout) == (130, b"")


def test_a_report_of_alignments(run: Run, aligned: Path, tmp_path: Path):
    from regard.pipelines.word_alignment import aligned_pairs, read_aligned

    out = tmp_path / "aer.json"
    done = run("faithful", "--alignment", aligned, "-o", out, "--seed", "2")
    assert done.returncode == 0, done.stderr
    assert b"'2 9 0 S' is left out, for there is no such word" in done.stderr
    text = read_aligned(aligned, "de")
    pairs = [*aligned_pairs(pipeline("translate-en-de", "translate"), text)]
    expected = alignment_scores(
        {method: [pair.links[method] for pair in pairs] for method in pairs[0].links}, text.reference, seed=2
    )
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["scores"] == [row.to_dict() for row in expected]
    assert [row.method for row in expected][-2:] == ["diagonal", "random"]
    assert report["pieces_a_word"] == sum(p.pieces for p in pairs) / 10
    shown = done.stdout.decode()
    assert "2 pairs from en to de, 4 sure links and 1 more possible ones" in shown
    assert all(f"error {row.error}" in shown for row in expected)
    limited = json.loads(run("faithful", "--alignment", aligned, "--limit", "1", "--json").stdout)
    assert (limited["inputs"], limited["complete"]) == (1, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "one of DATA, a table of texts, and --alignment, a directory, must be given"),
        (("TABLE", "--alignment", "."), "one of DATA, a table of texts, and --alignment"),
        (("TABLE",), "--model must be given: a classifier of texts"),
        (("--alignment", ".", "--method", "rollout"), "--method is for texts: --alignment takes --limit, --controls"),
        (("--alignment", "."), "has 0 files X-Y.ref.wa"),
        (("TABLE", "-m", "MODEL"), "has no column 'text'; it has"),
        (("TABLE", "-m", "MODEL", *NAMED, "--method", "lime"), "method is 'lime': it must be one of attention"),
        (("TABLE", "-m", "MODEL", *NAMED, "--metric", "auc"), "metric is 'auc': it must be one of deletion"),
        (("TABLE", "-m", "MODEL", *NAMED, "--deletion", "blur"), "deletion is 'blur': it must be one of mask"),
        (("TABLE", "-m", "MODEL", *NAMED, "--limit", "0"), "see regard faithful --help"),
        (("TABLE", "-m", "nowhere/model", *NAMED), "nowhere/model"),
        (("missing.csv", "-m", "MODEL"), "missing.csv cannot be read: no such file"),
        (("LONG", "-m", "MODEL"), "line 3 has 62 pieces"),
        (("TABLE", "-m", "MODEL", *NAMED, "-o", "nowhere/x.json"), "nowhere is no directory"),
    ],
)
def test_errors_are_one_line(run: Run, model: Path, table: Path, tmp_path: Path, args: tuple[str, ...], message: str):
    (tmp_path / "long.csv").write_text("text\ngood\n" + "good " * 60 + "\n")
    names = {"TABLE": table, "MODEL": model, "LONG": tmp_path / "long.csv"}
    done = run("faithful", *(names.get(word, word) for word in args))
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("1 row is left out")]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("regard: ") and message in lines[0]
    assert done.stdout == b""


def test_texts_of_nothing_are_left_out(run: Run, model: Path, tmp_path: Path):
    (tmp_path / "a.csv").write_text("text\n\u200b\ngood\n", encoding="utf-8")
    done = run("faithful", "a.csv", "-m", model, "--json")
    report = json.loads(done.stdout)
    assert (report["inputs"], report["complete"]) == (1, True)
    assert report["skipped"][0] in done.stderr.decode()
    assert "a.csv, line 2 has no piece but special ones" in report["skipped"][0]
    (tmp_path / "a.csv").write_text("text\n\u200b\n", encoding="utf-8")
    done = run("faithful", "a.csv", "-m", model)
    assert done.returncode == 2 and b"no piece but special ones: there is nothing to delete" in done.stderr


def test_the_help_has_examples(run: Run):
    shown = run("faithful", "--help").stdout.decode()
    assert "regard faithful reviews.csv" in shown and "--alignment" in shown and "--deletion" in shown
