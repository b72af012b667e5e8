"""Text files, good and bad: every row of FAULTS.md, section B, that is about files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtrain.data import documents, readers, store
from llmtrain.errors import ConfigError, DataError
from tests.data.files import text

pytestmark = pytest.mark.usefixtures("folder")


def write(name: str, content: str | bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def read(name: str, **settings: Any) -> list[str]:
    """All documents of a file, in its order; a second file keeps them out of the shares."""
    write("other.txt", "held out one\nheld out two\n".encode(settings.get("encoding", "utf-8")))
    given = {"validation": "other.txt", "test": "other.txt"}
    return list(text(train=name, **given, **settings).split("train")["text"])


def refused(name: Any, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(name, **settings)
    assert caught.value.exit_code == 3
    assert len(caught.value.screen().splitlines()) <= 6
    return caught.value


# --- settings -----------------------------------------------------------------------------------------------------


def test_without_a_training_file_the_config_error_shows_an_example() -> None:
    with pytest.raises(ConfigError, match=r"data\.train=None") as caught:
        text(train=None)
    assert "data.train=corpus.txt" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train", 3),
        ("train", [1]),
        ("validation", []),
        ("test", ""),
        ("encoding", "utf-9"),
        ("encoding", "base64"),
        ("text_column", ""),
        ("second_column", "other"),  # of no text that is named
        ("label_column", ""),
        ("choice_columns", [""]),
        ("documents", "page"),
        ("validation_fraction", 0),
        ("validation_fraction", 1),
        ("test_fraction", 2),
        ("test_fraction", 0.9),
        ("num_workers", -1),
    ],
)
def test_a_setting_out_of_range_is_a_config_error_that_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}="):
        text(**{key: value})


def test_shares_have_no_effect_beside_files_of_their_own() -> None:
    assert text().without_effect().keys() == {"short_fraction"}
    assert set(text(validation="a.txt").without_effect()) == {"short_fraction", "validation_fraction"}
    assert set(text(validation="a.txt", test="b.txt").without_effect()) == {"short_fraction", "validation_fraction", "test_fraction"}


# --- which files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("a.txt", ["a"]),
        ("b/c.txt, a.txt", ["c", "a"]),
        (["a.txt", "b/c.txt"], ["a", "c"]),
        ("*.txt", ["a", "x,y"]),
        ("**/*.txt", ["a", "c", "x,y"]),
        ("b", ["c", "d"]),
        (".", ["a", "c", "d", "x,y"]),
        ("a.txt,a.txt", ["a"]),
        ("x,y.txt", ["x,y"]),
    ],
    ids=str,
)
def test_paths_globs_and_folders_name_files_in_the_order_of_their_names(train: Any, expected: list[str], folder: Path) -> None:
    for name in ("b/d.jsonl", "b/c.txt", "a.txt", "x,y.txt", "notes.md", ".hidden.txt", "b/.git/e.txt"):
        stem = Path(name).stem
        write(name, json.dumps({"text": stem}) if name.endswith("jsonl") else stem)
    found = text(train=train)
    assert list(documents.facts(found.source("train"))["per_source"]) == [1] * len(expected)
    assert list(found.source("train")["text"]) == expected


@pytest.mark.parametrize("name", ["missing.txt", "missing/*.txt", "*.nothing", "missing"])
def test_b01_a_missing_file_or_an_empty_glob_is_named_with_its_whole_path(name: str, folder: Path) -> None:
    assert str(folder / name) in refused(name).what


def test_b03_a_folder_is_read_as_all_files_below_it() -> None:
    write("many/1.txt", "one")
    write("many/deep/2.txt", "two")
    assert read("many") == ["one", "two"]


def test_b03_a_folder_without_files_to_read_is_refused() -> None:
    write("many/notes.md", "no")
    assert "no file to read" in refused("many").what


def test_b18_scripts_are_not_run() -> None:
    write("data.py", "raise SystemExit('it ran')")
    assert "scripts are not run" in refused("data.py").what


def test_a_file_of_another_kind_is_refused_with_those_that_are_read() -> None:
    write("data.pdf", "%PDF")
    assert ".parquet" in str(refused("data.pdf").allowed)


def loop_of_files() -> None:
    Path("many/a.txt").symlink_to(Path("many/b.txt").absolute())
    Path("many/b.txt").symlink_to(Path("many/a.txt").absolute())


def loop_of_folders() -> None:
    Path("many/again").symlink_to(Path("many").absolute())


def dangling_link() -> None:
    Path("many/a.txt").symlink_to("gone.txt")


def pipe() -> None:
    os.mkfifo("many/a.txt")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (loop_of_files, "a.txt: cannot be read: Too many levels of symbolic links"),
        (loop_of_folders, "again: the link leads back to"),
        (dangling_link, "a.txt: cannot be read: No such file or directory"),
        (pipe, "a.txt: not a regular file"),
    ],
)
def test_b31_what_cannot_be_read_in_a_folder_is_named(make: Callable[[], None], said: str, folder: Path) -> None:
    write("many/c.txt", "fine")
    make()
    assert f"{folder / 'many'}/{said}" in refused("many").what


def test_b31_a_file_without_permission_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    write("secret.txt", "x")
    monkeypatch.setattr(readers, "sha256", forbidden)  # root may read everything, so a mode would not do
    assert f"{folder / 'secret.txt'}: cannot be read: Permission denied" in refused("secret.txt").what


@pytest.mark.parametrize("name", ["missing.txt", "data.py", "many"])
def test_check_finds_what_is_missing_before_anything_is_read(name: str) -> None:
    write("many/notes.md", "no")
    with pytest.raises(DataError):
        text(train=name).check()


# --- what a document is -------------------------------------------------------------------------------------------

POEM = "one\ntwo\n\n \nthree\n\n\nfour\nfive"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("file", [POEM]), ("line", ["one", "two", "three", "four", "five"]), ("blank_line", ["one\ntwo", "three", "four\nfive"])],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_document_is_the_file_a_line_or_what_stands_between_blank_lines(unit: str, expected: list[str], end: str) -> None:
    assert read(write("poem.txt", POEM.replace("\n", end)), documents=unit) == expected


@pytest.mark.parametrize("unit", ["file", "line", "blank_line"])
def test_a_byte_order_mark_is_dropped(unit: str) -> None:
    assert read(write("marked.txt", "\ufeffone"), documents=unit) == ["one"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.txt", "NA\nnull\nNone\nnan\n"),
        ("w.csv", "text\nNA\nnull\nNone\nnan\n"),
        ("w.jsonl", "".join(json.dumps({"text": word}) + "\n" for word in ("NA", "null", "None", "nan"))),
    ],
)
def test_words_that_others_take_for_absent_stay_text(name: str, content: str) -> None:
    assert read(write(name, content)) == ["NA", "null", "None", "nan"]


def test_a_quoted_csv_cell_keeps_its_line_ends_commas_and_quotes() -> None:
    assert read(write("q.csv", 'id,text\r\n1,"a, ""b""\nc"\r\n2,d\r\n')) == ['a, "b"\nc', "d"]


def test_a_csv_with_a_byte_order_mark_has_its_first_column() -> None:
    assert read(write("m.csv", "\ufefftext,id\none,1\n")) == ["one"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_parquet_column_of_text_is_read(kind: pa.DataType) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3], "body": pa.array(["one", None, "three"], kind)}), "t.parquet")
    assert read("t.parquet", text_column="body") == ["one", "three"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "cp1252"])
def test_other_encodings_are_read_when_named(encoding: str) -> None:
    assert read(write("e.txt", "déjà vu\nça".encode(encoding)), encoding=encoding) == ["déjà vu", "ça"]


# --- bad content --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [("e.txt", ""), ("e.txt", "\n \n\t\n"), ("e.csv", ""), ("e.csv", "text,id\n"), ("e.jsonl", ""), ("e.json", "\n")],
    ids=["empty", "blank lines", "empty csv", "header only", "empty jsonl", "empty json"],
)
def test_b02_a_file_without_documents_is_refused_with_its_count(name: str, content: str, folder: Path) -> None:
    assert f"{folder / name}: 0" in refused(write(name, content)).what


def test_b02_an_empty_parquet_file_is_refused() -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), "e.parquet")
    assert "e.parquet: 0" in refused("e.parquet").what


def test_an_empty_file_among_others_is_counted() -> None:
    write("many/1.txt", "one\ntwo")
    write("many/2.txt", "")
    assert "1 files without documents" in text(train="many").summary()


@pytest.mark.parametrize(
    ("content", "said", "hint"),
    [
        ("fine\nalso\ncaf\xe9\n".encode("latin-1"), "bad.txt:3: byte 13 is 0xe9", "latin-1"),
        ("fine\n".encode("utf-16"), "bad.txt:1: byte 0 is 0xff", "utf-16"),
        (b"x" * 100_000 + b"\n" + b"y\x80", "bad.txt:2: byte 100002 is 0x80", "latin-1"),
        (("é" * 40_000 + "\n").encode() + b"\xff", "bad.txt:2: byte 80001 is 0xff", "latin-1"),
        (b"cut off \xe2\x82", "bad.txt:1: byte 8 is 0xe2", "latin-1"),
        ("fine\nfine".encode("utf-16-le"), "bad.txt:1: a NUL character", "utf-16-le"),
    ],
    ids=["latin-1", "utf-16", "far into the file", "behind many characters", "cut off", "utf-16 without mark"],
)
@pytest.mark.parametrize("unit", ["file", "line", "blank_line"])
def test_b04_a_byte_that_is_no_text_is_named_with_line_and_offset(content: bytes, said: str, hint: str, unit: str) -> None:
    error = refused(write("bad.txt", content), documents=unit)
    assert said in error.what
    assert f"data.encoding={hint}" in str(error.fix)


@pytest.mark.parametrize(("name", "start"), [("bad.jsonl", b'{"text": "'), ("bad.csv", b"text\n")])
def test_b04_holds_for_json_and_csv_too(name: str, start: bytes) -> None:
    assert "0xe9" in refused(write(name, start + b"caf\xe9")).what


def test_b04_a_mark_that_the_encoding_asks_for_is_missed() -> None:
    assert "utf-16" in refused(write("bad.txt", b"plain text"), encoding="utf-16").what


@pytest.mark.parametrize("unit", ["file", "line", "blank_line"])
def test_b07_a_line_of_any_length_is_read_in_parts(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (documents, readers):
        monkeypatch.setattr(module, "PART", 1000)
    rows = read(write("long.txt", "word " * 10_000), documents=unit)
    assert "".join(rows) == "word " * 10_000
    assert max(map(len, rows)) <= 1000


def test_b07_parts_are_told_in_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART", 1000)
    assert "1 longer than 1,000 characters, read in 3 parts" in text(train=write("long.txt", "word " * 500)).summary()


@pytest.mark.parametrize(("name", "start"), [("long.jsonl", '{"text": "'), ("long.csv", "text\n")])
def test_b07_a_line_that_must_be_parsed_whole_has_a_limit(name: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "RECORD", 1000)
    error = refused(write(name, start + "word " * 1000))
    assert f"{name}:{start.count(chr(10)) + 1}: a line of over 1,000 characters" in error.what


def test_b07_a_quote_that_never_closes_does_not_swallow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "RECORD", 1000)
    assert "long.csv:2: not CSV: field larger than field limit (1000)" in refused(write("long.csv", 'text\n"' + "word\n" * 1000)).what


def test_b08_very_many_very_short_lines_are_read() -> None:
    lines = 20_000  # a million take seconds; what is held in memory is bounded by the store's batches
    assert len(read(write("short.txt", "x\n" * lines))) == lines


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,text\n1,a\n2,b,c\n", "bad.csv:3: 3 cells, the header has 2"),
        ('id,text\n1,"a\nb"\n2\n', "bad.csv:4: 1 cells, the header has 2"),
        ('id,text\n1,a\n2,"b\n3,c\n', "bad.csv:3: not CSV"),
        ('id,text\n1,"a" b\n', "bad.csv:2: not CSV"),
        ("text,text\na,b\n", "bad.csv:1: 2 columns are called 'text'"),
    ],
    ids=["too many cells", "too few", "unclosed quote", "text after a quote", "a column twice"],
)
def test_b09_a_csv_that_is_not_well_formed_is_named_with_its_line(content: str, said: str) -> None:
    assert said in refused(write("bad.csv", content)).what


def test_reading_csv_leaves_the_limit_of_others_alone() -> None:
    import csv

    before = csv.field_size_limit()
    read(write("a.csv", "text\none\n"))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content"), [("c.csv", "id,body\n1,a\n"), ("c.jsonl", '{"id": 1, "body": "a"}\n'), ("c.parquet", "")], ids=["csv", "jsonl", "parquet"]
)
def test_b10_without_the_text_column_the_columns_that_are_there_are_listed(name: str, content: str) -> None:
    write(name, content)
    if name.endswith("parquet"):
        pq.write_table(pa.table({"id": [1], "body": ["a"]}), name)
    error = refused(name)
    assert "no column 'text'" in error.what
    assert "'id', 'body'" in str(error.allowed)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.csv", 'id,text\n1,a\n2,\n3,"  "\n'),
        ("b.jsonl", '{"text": "a"}\n{"text": null}\n{"text": " "}\n'),
        ("b.txt", "a\n\n  \n"),
        ("b.csv", "text\na\n\n\n"),
    ],
    ids=["csv", "jsonl", "txt", "csv of one column"],
)
def test_b12_blank_texts_are_skipped_and_counted(name: str, content: str) -> None:
    assert read(write(name, content)) == ["a"]
    assert "1 documents, 1 words; 2 blank skipped" in text(train=name).summary()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"text": "b', "bad.jsonl:2: not JSON"),
        ('{"text": "a"}\n["b"]\n', "bad.jsonl:2: ['b'] is no object"),
        ('{"text": "a"}\n{"text": 5}\n', "bad.jsonl:2: text is 5, which is int"),
        ('{"text": "a"}\n{"label": 1}\n', "bad.jsonl:2: no column 'text'"),
        ('{"text": "a\\ud800"}\n', "bad.jsonl:1: text holds '\\ud800'"),
        ("[" * 100_000 + "\n", "bad.jsonl:1: not JSON"),
        ('{"text": "a"}\n\n[\n', "bad.jsonl:3: not JSON"),
    ],
    ids=["truncated", "no object", "mixed types", "missing key", "half a character", "deep", "after a blank line"],
)
def test_b16_a_bad_json_line_is_named_with_its_number(content: str, said: str) -> None:
    assert said in refused(write("bad.jsonl", content)).what


def test_b16_a_last_line_without_an_end_may_be_cut_off() -> None:
    assert "cut off" in refused(write("bad.jsonl", '{"text": "a"}\n{"text": "b')).what
    assert "cut off" not in refused(write("bad.jsonl", '{"text": "a"}\n{"text": "b\n')).what


def test_a_damaged_parquet_file_is_named(folder: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 1000}), "d.parquet")
    content = Path("d.parquet").read_bytes()
    Path("d.parquet").write_bytes(content[: len(content) // 2])
    assert f"{folder / 'd.parquet'}: not a Parquet file, or a damaged one" in refused("d.parquet").what


def test_a_parquet_column_that_is_no_text_is_named_with_its_row() -> None:
    pq.write_table(pa.table({"text": [1, 2]}), "n.parquet")
    assert "n.parquet: row 1: text is 1, which is int" in refused("n.parquet").what


# --- splits -------------------------------------------------------------------------------------------------------


def numbered(count: int) -> str:
    return "".join(f"document {i}\n" for i in range(count))


def test_the_splits_have_every_document_once() -> None:
    data = text(train=write("train.txt", numbered(300)))
    together = [row for name in ("train", "validation", "test") for row in data.split(name)["text"]]
    assert sorted(together) == sorted(numbered(300).splitlines())


def test_a_split_has_the_column_text_and_no_other() -> None:
    assert text(train=write("train.txt", numbered(300))).split("validation").column_names == ["text", "document", "key"]


def test_b22_equal_documents_stand_on_one_side() -> None:
    data = text(train=write("train.txt", numbered(300) * 2))
    assert data.warnings() == []
    assert set(data.split("train")["text"]).isdisjoint(data.split("validation")["text"])


def test_the_order_and_number_of_files_moves_no_document() -> None:
    write("a.txt", numbered(300))
    write("b.txt", "".join(f"more {i}\n" for i in range(300)))
    one, both = text(train="a.txt"), text(train="b.txt,a.txt")
    assert set(one.split("validation")["text"]) <= set(both.split("validation")["text"])


def test_files_of_its_own_leave_the_training_files_whole() -> None:
    write("train.txt", numbered(300))
    data = text(validation=write("v.txt", "another"), test=write("t.txt", "a third"))
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [300, 1, 1]


def test_a_file_for_validation_leaves_the_test_a_share() -> None:
    write("train.txt", numbered(300))
    data = text(validation=write("v.txt", "another"))
    assert len(data.split("train")) + len(data.split("test")) == 300
    assert 10 < len(data.split("test")) < 60


@pytest.mark.parametrize("name", ["validation", "test"])
def test_b19_a_share_that_came_out_empty_is_refused_with_the_numbers(name: str) -> None:
    data = text(train=write("few.txt", "one\ntwo\nthree\n"), validation_fraction=1e-6, test_fraction=1e-6)
    with pytest.raises(DataError, match=f"the {name} split is empty: 3 documents") as caught:
        data.split(name)
    assert "train 3, validation 0, test 0" in caught.value.what


def test_b19_a_split_that_nobody_asks_for_may_be_empty() -> None:
    assert len(text(train=write("few.txt", "one\ntwo\nthree\n"), validation_fraction=1e-6, test_fraction=1e-6).split("train")) == 3


def test_a_name_that_is_no_split_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="'eval' is no split"):
        text(train=write("train.txt", "one")).split("eval")


def test_b22_documents_in_train_and_validation_files_are_counted_in_a_warning() -> None:
    write("train.txt", numbered(30))
    data = text(validation=write("v.txt", "document 1\ndocument 2\ndocument 2\nnew\n"), test=write("t.txt", "newer"))
    assert data.warnings() == ["2 of 3 different validation documents also stand in train"]
    assert len(data.split("validation")) == 4


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_b22_they_are_an_error_on_request(name: str) -> None:
    write("train.txt", numbered(30))
    data = text(validation=write("v.txt", "document 1\nnew\n"), test=write("t.txt", "newer"), on_overlap="error")
    with pytest.raises(DataError, match="1 of 2 different validation documents also stand in train"):
        data.split(name)


def test_repeated_documents_of_one_source_are_kept_and_counted() -> None:
    assert len(read(write("r.txt", "a\nb\na\na\n"))) == 4
    assert "2 repeat another" in text(train="r.txt").summary()


# --- what changes ---------------------------------------------------------------------------------------------------


def replaced(name: str, content: str) -> None:
    """Another content of the same size and times."""
    before = Path(name).stat()
    assert len(content.encode()) == before.st_size
    Path(name).write_text(content)
    os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_b26_a_file_that_changed_is_noticed_though_size_and_time_are_the_same() -> None:
    before = text(train=write("train.txt", "one\ntwo\n")).fingerprint()
    assert text(train="train.txt").fingerprint() == before
    replaced("train.txt", "one\ntoo\n")
    assert text(train="train.txt").fingerprint() != before


def test_a_changed_file_gives_its_new_rows_though_size_and_time_are_the_same() -> None:
    assert read(write("train.txt", "one\ntwo\n")) == ["one", "two"]
    replaced("train.txt", "one\ntoo\n")
    assert read("train.txt") == ["one", "too"]


def test_a_file_that_changes_while_it_is_read_is_refused() -> None:
    data = text(train=write("train.txt", "one\ntwo\n"))
    data.fingerprint()
    replaced("train.txt", "one\ntoo\n")
    with pytest.raises(DataError, match="changed while it was read"):
        data.split("train")


def test_a_moved_file_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    text(train=write("train.txt", numbered(30))).split("train")
    Path("train.txt").rename("moved.txt")
    monkeypatch.setattr(readers, "read", None)
    assert len(text(train="moved.txt").split("train"))


@pytest.mark.parametrize(
    "change",
    [{"validation": "more.txt"}, {"test_fraction": 0.3}, {"max_length": 99}],
    ids=["a file for validation", "a share for the test", "max_length"],
)
def test_the_fingerprint_of_a_split_says_what_it_holds_and_no_more(change: dict[str, Any]) -> None:
    write("train.txt", numbered(300))
    write("more.txt", "more\n")
    before, after = text().split("validation" if "test_fraction" in change else "test"), text(**change)
    assert store.fingerprint(before) == store.fingerprint(after.split("validation" if "test_fraction" in change else "test"))


def test_other_rows_of_a_split_have_another_fingerprint() -> None:
    data = text(train=write("train.txt", numbered(300)))
    assert len({store.fingerprint(data.split(name)) for name in ("train", "validation", "test")}) == 3


# --- real data ----------------------------------------------------------------------------------------------------

REAL = os.environ.get("LLMTRAIN_REALDATA")


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="LLMTRAIN_REALDATA is not set")
def test_six_novels_divide_into_paragraphs() -> None:
    data = text(train=f"{REAL}/austen/train.txt", documents="blank_line")
    assert [round(len(data.split(name)) / 10_298, 1) for name in ("train", "validation", "test")] == [0.8, 0.1, 0.1]
    assert "141 repeat another" in data.summary()


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="LLMTRAIN_REALDATA is not set")
@pytest.mark.parametrize(("name", "shared"), [("subj", 0), ("sms_spam", 3)])
def test_published_splits_are_read_and_their_overlaps_counted(name: str, shared: int) -> None:
    files = {split: f"{REAL}/{name}/{split}.jsonl" for split in ("train", "validation", "test")}
    assert len(text(**files).warnings()) == shared
