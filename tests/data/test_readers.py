"""Reading is streamed: what is held in memory does not grow with the file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from llmtrain.data import documents, readers
from llmtrain.data.readers import Unit

MB = 2**20


def peak_of_reading(path: Path, unit: Unit) -> tuple[int, int]:
    """Bytes held at most while a file's rows are made, and how many rows there are."""
    tracemalloc.start()
    found = documents.rows([readers.read(readers.look(path), column="text", documents=unit, encoding="utf-8")])
    count = sum(1 for _ in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, count


@pytest.mark.parametrize("unit", Unit)
def test_b07_a_line_much_longer_than_a_part_is_never_held_whole(unit: Unit, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("word" * (10 * MB))
    peak, count = peak_of_reading(path, unit)
    assert count == 40
    assert peak < 12 * MB


def test_b08_many_short_lines_are_never_held_together(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("x\n" * 20_000)
    peak, count = peak_of_reading(path, Unit.line)
    assert count == 20_000
    assert peak < MB


@pytest.mark.parametrize(("name", "row"), [("a.jsonl", '{"text": "some words"}\n'), ("a.csv", '1,"some words"\n')])
def test_rows_are_read_one_by_one(name: str, row: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(("id,text\n" if name.endswith("csv") else "") + row * 20_000)
    peak, count = peak_of_reading(path, Unit.line)
    assert count == 20_000
    assert peak < MB


def test_an_error_in_the_middle_closes_the_file(tmp_path: Path) -> None:
    # Warnings are errors here, so a file left open would fail this test.
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n' * 1000 + "{")
    with pytest.raises(readers.DataError, match=r"bad\.jsonl:1001"):
        peak_of_reading(path, Unit.line)
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "lines"),
    [("a\n\nb\nc\n\n\nd", [1, 3, 7]), ("\n\na\n", [3]), (" \n\t\n", [])],
    ids=["three", "after blank lines", "none"],
)
def test_a_paragraph_is_named_by_its_first_line(content: str, lines: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    places = []
    for where, chunks in readers.read(readers.look(path), column="text", documents=Unit.blank_line, encoding="utf-8"):
        places.append(int(where.rpartition(":")[2]))
        list(chunks or ())
    assert places == lines


def test_a_chapter_goes_from_one_heading_to_the_next(tmp_path: Path) -> None:
    parts = [
        "A title\nand a preface.\n\n",
        "CHAPTER I\n\nIt began.\nChapter 2 is none here.\n\n",
        "Part two\n\nIt went on.\n\n",
        "# Heading\nIt ended.\n",
    ]
    path = tmp_path / "book.txt"
    path.write_text("".join(parts))
    found = [(where, "".join(chunks or ())) for where, chunks in readers.read(readers.look(path), column="text", documents=Unit.chapter, encoding="utf-8")]
    assert [text for _, text in found] == parts
    assert [where.rpartition(":")[2] for where, _ in found] == ["1", "4", "9", "13"]
