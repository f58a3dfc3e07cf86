"""Tables are read a row at a time, and what is wrong with them is counted or one line."""

import json
import math
from datetime import date
from pathlib import Path

import pytest

from regard.training.tables import Skipped, fingerprint, flaw, names_of, read_rows

ROWS = [("plain", "a"), ('with, comma "quoted"\nand two lines', "b"), ("ärger", "a")]


def read(path: Path, *columns: str) -> tuple[list[tuple[object, ...]], list[str]]:
    skipped = Skipped()
    return [row.values for row in read_rows(path, columns or ("text", "label"), skipped)], skipped.sentences()


def test_every_kind_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '\ufeffid,text,label\n1,plain,a\n2,"with, comma ""quoted""\nand two lines",b\n\n3,ärger,a\n', encoding="utf-8"
    )
    assert read(tmp_path / "a.csv") == (ROWS, [])
    objects = [{"label": label, "text": text, "more": [1]} for text, label in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, objects)) + "\n\n")
    assert read(tmp_path / "a.jsonl") == (ROWS, [])
    (tmp_path / "a.TSV").write_text('text\tlabel\n"as it is\ta\n')
    assert read(tmp_path / "a.TSV") == ([('"as it is', "a")], [])
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame(ROWS, columns=["text", "label"]).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "label", "text") == ([(label, text) for text, label in ROWS], [])


def test_damaged_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nfine,a\nno label\ntoo,many,fields\n")
    reason = f"2 rows are left out: it does not have the 2 fields of the first line ({path}, line 3; {path}, line 4)"
    assert read(path) == ([("fine", "a")], [reason])
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine", "label": 1}\n{"text"\n[]\n{"text": "without"}\n')
    reason = f"2 rows are left out: it is no JSON object ({path}, line 2; {path}, line 3)"
    assert read(path) == ([("fine", 1), ("without", None)], [reason])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"text,class\na,b\n", "no column 'label'; it has 'text', 'class'"),
        ("a.csv", b"", "no column 'text'; it has none"),
        ("a.csv", b"text,label,label\na,b,c\n", "2 columns 'label'; it has 'text', 'label', 'label'"),
        ("a.csv", b'text,label\na,b\n"b,a\nc,b\nd,a\n', "line 3: a quotation mark opens a field that never ends"),
        ("a.csv", b'text,label\n"b,a\n"c",b\nd,"a\n\n', "line 4: a quotation mark opens a field that never ends"),
        ("a.jsonl", b'[\n{"text": "a", "label": "b"},\n]\n', "no line with a JSON object; it may have one a line"),
        ("a.jsonl", b'{"text": "a"}\n', "no column 'label'; it has 'text'"),
        ("a.jsonl", b"", "no column 'text'; it has none"),
        ("a.csv", b"text,label\n\xff\xfe,b\n", "is not UTF-8"),
        ("a.parquet", b"nothing of the kind", "a.parquet is damaged"),
        ("a.xlsx", b"", "is no table; it may be .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = [pyarrow.array(["a"])] * 3
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "label", "label"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet has 2 columns 'label'"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", None), (0, None), (False, None), (1.5, None), (date(2026, 1, 2), None), (None, "missing"),
        (" ", "missing"), (math.nan, "missing"), (b"a", "no text"), ({}, "no text"),
        ("\ud800", "no text: it has half a character"),
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_class(value: object, expected: str | None) -> None:
    assert flaw(value) == expected


def test_numbers_are_no_texts() -> None:
    assert flaw(1, number=False) == "no text" and flaw("1", number=False) is None


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing.csv cannot be read: no such file"):
        read(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="missing.csv cannot be read: no such file"):
        fingerprint(tmp_path / "missing.csv")


def test_columns_are_named_where_the_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a moving film\t1\ndull\t0\nno label\n")
    (tmp_path / "a.csv").write_text('"a moving film",1\ndull,0\nno label\n')
    for name in ("a.tsv", "a.csv"):
        skipped = Skipped()
        rows = [*read_rows(tmp_path / name, ("label", "sentence"), skipped, ("sentence", "label"))]
        assert [row.values for row in rows] == [("1", "a moving film"), ("0", "dull")]
        assert rows[0].place == f"{tmp_path / name}, line 1"
        assert "it does not have the 2 fields of sentence, label" in skipped.sentences()[0]
    with pytest.raises(ValueError, match="has no column 'text'; it has 'sentence', 'label'"):
        [*read_rows(tmp_path / "a.tsv", ("text",), Skipped(), ("sentence", "label"))]
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"a.jsonl names its columns; those of a .csv or .tsv"):
        [*read_rows(tmp_path / "a.jsonl", ("text",), Skipped(), ("text",))]


def test_a_list_of_names() -> None:
    assert names_of(None) is None
    for wrong in ("", "a,", "a,a"):
        with pytest.raises(ValueError, match="different names with commas between"):
            names_of(wrong)
