"""Texts to answer: every row in its place or refused by its place, other columns carried along, answers written without harm."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtrain.data import questions
from llmtrain.data.base import Target
from llmtrain.data.columns import Named
from llmtrain.errors import DataError

TEXTS = ['zwei, "drei"\nvier', "naïve 🙂 שלום", " kept as it is ", "a"]
KINDS = ["rows.csv", "rows.jsonl", "rows.json", "rows.parquet"]


def csv_of(records: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def table_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, strict=True))


def file_of(path: Path, records: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text(csv_of(records) if path.suffix == ".csv" else "".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def read(path: str, target: Target = Target.label, encoding: str = "utf-8", **named: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, records = questions.read(path, target, Named(**named), encoding)
    return rows.to_list(), records


Typed = Callable[[bytes], str]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Put bytes on standard input; returns the path that means it."""

    def put(content: bytes) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        return "-"

    return put


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_text_is_read_as_it_is_in_its_order_and_other_columns_are_carried_along(tmp_path: Path, name: str) -> None:
    records = [{"id": f"n{i}", "text": text} for i, text in enumerate(TEXTS)]
    rows, carried = read(file_of(tmp_path / name, records))
    assert rows == [{"text": text} for text in TEXTS]
    assert carried == records


@pytest.mark.parametrize("name", KINDS)
def test_the_columns_may_be_named_and_pairs_are_inferred(tmp_path: Path, name: str) -> None:
    records = [{"premise": text, "hypothesis": text[::-1], "label": "x"} for text in TEXTS]
    path = file_of(tmp_path / name, records)
    assert read(path)[0] == [{"text": text, "second": text[::-1]} for text in TEXTS]
    assert read(path, text="hypothesis")[0] == [{"text": text[::-1]} for text in TEXTS]
    assert read(path, text="hypothesis", second="premise")[0] == [{"text": text[::-1], "second": text} for text in TEXTS]


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path / name, [{"text": "a", "other": "b"}])
    for named in ({"text": "review"}, {"text": "text", "second": "review"}):
        with pytest.raises(DataError, match="no column 'review'") as caught:
            read(path, **named)
        assert "'text', 'other'" in str(caught.value.allowed)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("blank", ["", " \t", "\n"])
def test_a_blank_text_is_refused_with_its_place(tmp_path: Path, name: str, blank: str) -> None:
    path = file_of(tmp_path / name, [{"id": "1", "text": "a"}, {"id": "2", "text": blank}])
    with pytest.raises(DataError, match=r"row 2: text is|:\d: text is"):
        read(path)


@pytest.mark.parametrize("value", [None, 7, ["a"], {"a": "b"}])
def test_what_is_no_text_is_refused_with_its_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: text is"):
        read(file_of(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": value}]))


@pytest.mark.parametrize("where", ["file", "standard input"])
def test_half_a_character_is_refused_with_its_place(tmp_path: Path, typed: Typed, where: str) -> None:
    content = b'{"text": "a"}\n{"text": "b\\ud800"}\n'
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r":2: text holds half of a surrogate pair"):
        read(typed(content) if where == "standard input" else str(tmp_path / "rows.jsonl"))


def test_an_object_may_lack_what_is_not_asked_for_and_nothing_else(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"text": "a"}, {"text": "b", "id": 7}, {"id": 8, "text": "c"}]
    rows, carried = read(file_of(tmp_path / "rows.jsonl", records))
    assert [row["text"] for row in rows] == ["a", "b", "c"]
    assert carried == records
    with pytest.raises(DataError, match=r"rows\.jsonl:2: second is None"):
        read(file_of(tmp_path / "rows.jsonl", [{"text": "a", "second": "b"}, {"text": "c"}]))


def test_the_first_object_does_not_decide_which_columns_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: review is None"):
        read(file_of(tmp_path / "rows.jsonl", [{"id": 1}, {"review": "b"}]), text="review")


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("text", [None, "review"])
def test_a_txt_file_has_a_text_a_line_whatever_the_column_of_the_text_is_called(tmp_path: Path, ending: str, text: str | None) -> None:
    lines = ["eins: 1, 2", "", "  ", ' naïve "🙂" ', "{no: json}"]
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbf" + ending.join(lines).encode())
    rows, records = read(str(tmp_path / "texts.txt"), text=text)
    assert [row["text"] for row in rows] == [lines[0], *lines[3:]]
    assert records == [{text or "text": row["text"]} for row in rows]


def test_a_file_is_read_in_its_encoding_and_a_wrong_one_is_named_with_its_line(tmp_path: Path) -> None:
    for name, content in (("texts.txt", "ä\nnaïve"), ("rows.csv", "text\nä\nnaïve\n")):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        assert [row["text"] for row in read(str(tmp_path / name), encoding="latin-1")[0]] == ["ä", "naïve"]
        with pytest.raises(DataError, match=r"0xe4: not utf-8"):
            read(str(tmp_path / name))


def test_standard_input_holds_objects_or_texts(typed: Typed) -> None:
    content = '{"text": "naïve", "id": 7}\n\nplain, "text"\r\n  {"text": "c"}\n'
    rows, records = read(typed(content.encode()))
    assert [row["text"] for row in rows] == ["naïve", 'plain, "text"', "c"]
    assert records == [{"text": "naïve", "id": 7}, {"text": 'plain, "text"'}, {"text": "c"}]
    assert read(typed(b"\xef\xbb\xbfa\n"), text="review")[1] == [{"review": "a"}]


def test_standard_input_holds_pairs(typed: Typed) -> None:
    rows, _ = read(typed(b'{"question1": "a", "question2": "b"}\n'))
    assert rows == [{"text": "a", "second": "b"}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"text": \n', r"standard input:2: not JSON"),
        (b"a\nb\xe4\n", r"standard input:\d: a byte 0xe4 that is not utf-8"),
        (b"\n \n", "standard input has no text to answer"),
        (b"", "standard input has no text to answer"),
        (b'{"text": " "}\n', r"standard input:1: text is"),
        (b'{"id": 1}\n', "no column"),
    ],
)
def test_what_standard_input_may_not_hold_is_named_with_its_line(typed: Typed, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(typed(content))


@pytest.mark.parametrize(("name", "content"), [("texts.txt", ""), ("texts.txt", "\n \n"), ("rows.jsonl", "\n"), ("rows.csv", "text\n"), ("rows.csv", "")])
def test_a_file_without_a_text_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="no text to answer"):
        read(str(tmp_path / name))


def test_paths_that_are_no_one_file_are_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a\n")
    (tmp_path / "a.md").write_text("a\n")
    for path, said in ((tmp_path, "2 files"), (tmp_path / "*.txt", "2 files"), (tmp_path / "a.md", "are not read"), (tmp_path / "none.csv", "no such file")):
        with pytest.raises(DataError, match=said):
            read(str(path))


# --- choices --------------------------------------------------------------------------------------------------------


def test_choices_stand_in_a_list_or_in_columns_of_their_own(tmp_path: Path, typed: Typed) -> None:
    listed = [{"text": "a", "choices": ["x", "y", "z"]}, {"text": "b", "choices": ["x", "y"]}]
    expected = [{"text": "a", "choices": ["x", "y", "z"]}, {"text": "b", "choices": ["x", "y"]}]
    assert read(file_of(tmp_path / "rows.jsonl", listed), Target.choice)[0] == expected
    assert read(file_of(tmp_path / "rows.parquet", listed), Target.choice)[0] == expected
    assert read(typed("".join(json.dumps(r) + "\n" for r in listed).encode()), Target.choice)[0] == expected
    columns = [{"text": "a", "choice1": "x", "choice2": "y", "choice3": "z"}, {"text": "b", "choice1": "x", "choice2": "y", "choice3": ""}]
    assert read(file_of(tmp_path / "rows.csv", columns), Target.choice)[0] == expected
    assert read(file_of(tmp_path / "rows.csv", columns), Target.choice, text="text", choices=("choice2", "choice1"))[0][1]["choices"] == ["y", "x"]


@pytest.mark.parametrize("choices", [["x", "", "z"], ["x", "y", ""], ["x", None, "z"], ["x", " "], ["x"], [], "xy", None, ["x", 2]])
def test_a_choice_is_never_left_out_since_the_answer_is_its_number(tmp_path: Path, choices: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*choice"):
        read(file_of(tmp_path / "rows.jsonl", [{"text": "a", "choices": ["x", "y"]}, {"text": "b", "choices": choices}]), Target.choice)


def test_a_blank_column_between_choices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choice 1 of choice1, choice2"):
        read(file_of(tmp_path / "rows.csv", [{"text": "a", "choice1": "", "choice2": "y"}]), Target.choice)


@pytest.mark.parametrize("where", ["file", "standard input"])
def test_a_line_of_plain_text_has_no_choices(tmp_path: Path, typed: Typed, where: str) -> None:
    (tmp_path / "texts.txt").write_text("\na\n")
    with pytest.raises(DataError, match=r":2: a line of text has no choices"):
        read(typed(b"\na\n") if where == "standard input" else str(tmp_path / "texts.txt"), Target.choice)


# --- writing --------------------------------------------------------------------------------------------------------

HARMFUL = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", '=cmd|"/c"!A1']


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_what_is_written_is_read_back_in_its_order(tmp_path: Path, name: str) -> None:
    records = [{"id": f"n{i}", "text": text, "probability": 0.25 + i} for i, text in enumerate(TEXTS)]
    questions.write(tmp_path / name, records)
    rows, carried = read(str(tmp_path / name), text="text")
    assert [row["text"] for row in rows] == TEXTS
    assert [float(record["probability"]) for record in carried] == [0.25, 1.25, 2.25, 3.25]
    assert "naïve 🙂" in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("cell", HARMFUL)
def test_h16_a_cell_or_a_name_that_a_spreadsheet_would_run_gets_an_apostrophe(tmp_path: Path, cell: str) -> None:
    questions.write(tmp_path / "out.csv", [{cell: cell, "text": f"a{cell}", "score": -1.5}])
    header, row = table_of(tmp_path / "out.csv")
    assert header == [f"'{cell}", "text", "score"]
    assert row == [f"'{cell}", f"a{cell}", "-1.5"]  # a number is a number
    questions.write(tmp_path / "out.jsonl", [{cell: cell}])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {cell: cell}


def test_records_of_several_shapes_share_a_header(tmp_path: Path) -> None:
    questions.write(tmp_path / "out.csv", [{"text": "a", "choices": ["x", "=y"]}, {"text": "b", "id": 7}])
    assert table_of(tmp_path / "out.csv") == [["text", "choices", "id"], ["a", '["x", "=y"]', ""], ["b", "", "7"]]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_what_json_has_no_word_for_is_written_as_text(tmp_path: Path, name: str) -> None:
    import datetime

    questions.write(tmp_path / name, [{"text": "a", "day": datetime.date(2024, 2, 29), "bytes": b"x", "half": "\ud800", "list": [datetime.date(2024, 2, 29)]}])
    assert "2024-02-29" in (tmp_path / name).read_text(encoding="utf-8")


def test_a_line_cannot_drive_a_terminal_and_is_the_same_json() -> None:
    record = {"text": "naïve 🙂 \x1b[2J\x9b2J\u202egnp.\x7f\n", "n": 1}
    line = questions.as_json(record)
    assert json.loads(line) == record
    assert "naïve 🙂" in line
    assert not set("\x1b\x9b\u202e\x7f\n") & set(line)


@pytest.mark.parametrize("name", ["out.txt", "out", "out.parquet"])
def test_other_kinds_of_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="are not written") as caught:
        questions.write(tmp_path / name, [{"text": "a"}])
    assert caught.value.allowed == ".csv, .jsonl"
    assert not (tmp_path / name).exists()
