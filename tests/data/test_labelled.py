"""Rows with answers, from files good and bad: every row of the faults of data that is about labels, scores and choices."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Value

from llmtrain.data import labelled, readers, store
from llmtrain.data.base import SPLITS, Target
from llmtrain.data.text import Text
from llmtrain.errors import ConfigError, DataError
from tests.conftest import realdata
from tests.data.files import text as built

pytestmark = pytest.mark.usefixtures("folder")


def text(**settings: Any) -> Text:
    return built(**{"train": "train.csv", **settings})


def write(name: str, rows: list[dict[str, Any]] | str) -> str:
    """A file of rows, in the format that its name says."""
    if isinstance(rows, str):
        Path(name).write_bytes(rows.encode())
    elif name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), name)
    elif name.endswith("csv"):
        lines = [list(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
        quoted = (",".join('"' + str(cell).replace('"', '""') + '"' for cell in line) for line in lines)
        Path(name).write_bytes(("\r\n".join(quoted) + "\r\n").encode())
    else:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def given(rows: list[dict[str, Any]] | str, name: str = "train.jsonl", **settings: Any) -> Text:
    """Data whose train, validation and test are one file: so all of its rows train."""
    write(name, rows)
    return text(**({"train": name, "validation": name, "test": name} | settings))


def labels(*values: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": value} for i, value in enumerate(values)]


def named(rows: Dataset) -> list[str]:
    feature = rows.features["label"]
    assert isinstance(feature, ClassLabel)
    return [feature.names[i] for i in rows["label"]]


def refused(data: Text, target: Target = Target.label, split: str = "train") -> DataError:
    with pytest.raises(DataError) as caught:
        data.labelled(split, target)
    assert caught.value.exit_code == 3
    assert len(caught.value.screen().splitlines()) <= 6
    return caught.value


# --- what is read -------------------------------------------------------------------------------------------------

REVIEWS = [{"review": 'good, "very"\r\nmuch', "sentiment": "pos"}, {"review": "bad", "sentiment": "neg"}, {"review": "so so", "sentiment": "neutral"}]


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.parquet"])
def test_a_file_of_reviews_needs_no_word_about_its_columns(name: str) -> None:
    rows = given(REVIEWS, name).labelled("train", Target.label)
    assert rows.column_names == ["text", "key", "label"]
    assert list(rows["text"]) == [row["review"] for row in REVIEWS]
    assert named(rows) == ["pos", "neg", "neutral"]
    assert rows.features["label"].names == ["neg", "neutral", "pos"]


def test_the_same_rows_of_three_formats_are_the_same() -> None:
    found = [given(REVIEWS, name).labelled("train", Target.label) for name in ("r.csv", "r.jsonl", "r.parquet")]
    assert len({store.fingerprint(rows) for rows in found}) == 1


def test_what_was_inferred_is_said_with_the_classes_and_their_counts() -> None:
    data = given([*REVIEWS, {"review": "worse", "sentiment": "neg"}])
    data.labelled("train", Target.label)
    assert "3 classes in train: neg 2, neutral 1, pos 1; text from 'review', answers from 'sentiment' (inferred" in data.summary()


def test_before_labels_are_asked_for_the_summary_is_about_documents() -> None:
    data = given(labels("a", "b"))
    assert "documents" in data.summary()
    data.labelled("train", Target.label)
    assert "documents" not in data.summary()


def test_pairs_have_a_second_text() -> None:
    data = given([{"premise": "a", "hypothesis": "b", "label": "x"}, {"premise": "c", "hypothesis": "d", "label": "y"}])
    rows = data.labelled("train", Target.label)
    assert (list(rows["text"]), list(rows["second"])) == (["a", "c"], ["b", "d"])


def test_a_pair_and_its_reverse_are_of_different_content() -> None:
    rows = given([{"premise": a, "hypothesis": b, "label": a} for a, b in ("xy", "yx")]).labelled("train", Target.label)
    assert len(set(rows["key"])) == 2


def test_a_named_column_is_taken() -> None:
    rows = [{"a": "one", "b": "two", "c": str(i % 2), "label": "same"} for i in range(4)]
    data = given(rows, text_column="b", label_column="c")
    assert list(data.labelled("train", Target.label)["text"]) == ["two"] * 4
    assert "inferred" not in data.summary()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        ([10, 9, 2], ["2", "9", "10"]),
        ([1.0, 0.0, 1.0], ["0", "1"]),
        ([-1, 1, 0], ["-1", "0", "1"]),
        (["1.5", "0.5", "10.5"], ["0.5", "1.5", "10.5"]),
        ([True, False], ["false", "true"]),
        (["b", "B", " a "], ["B", "a", "b"]),
        (["NA", "null", "None"], ["NA", "None", "null"]),
        ([1, "1", 2], ["1", "2"]),
    ],
    ids=str,
)
def test_labels_are_text_or_whole_numbers_sorted_as_what_they_are(values: list[Any], names: list[str]) -> None:
    rows = given(labels(*values)).labelled("train", Target.label)
    assert rows.features["label"].names == names


def test_whole_numbers_of_a_csv_are_sorted_as_numbers() -> None:
    assert given(labels(10, 9, 2), "t.csv").labelled("train", Target.label).features["label"].names == ["2", "9", "10"]


def test_scores_are_finite_numbers() -> None:
    rows = given([{"text": str(i), "score": value} for i, value in enumerate([1, 2.5, "-3e-1", " 4 "])]).labelled("train", Target.score)
    assert rows.column_names == ["text", "key", "score"]
    assert rows.features["score"] == Value("float64")
    assert list(rows["score"]) == [1, 2.5, -0.3, 4]


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_choices_come_as_a_list(name: str) -> None:
    rows = given([{"prompt": "p", "choices": ["a", "b"], "label": 1}, {"prompt": "q", "choices": ["c", "d", "e"], "label": 0}], name)
    found = rows.labelled("train", Target.choice)
    assert found.column_names == ["text", "choices", "key", "label"]
    assert list(found["choices"]) == [["a", "b"], ["c", "d", "e"]]
    assert list(found["label"]) == [1, 0]
    assert "2 to 3 choices" in rows.summary()


def test_choices_come_as_columns_of_which_the_last_may_be_blank() -> None:
    found = given("prompt,choice1,choice2,choice3,label\np,a,b,c,2\nq,d,e,,0\n", "c.csv").labelled("train", Target.choice)
    assert list(found["choices"]) == [["a", "b", "c"], ["d", "e"]]


def test_right_choices_that_are_counted_from_one_are_known_by_the_last_choice() -> None:
    data = given([{"prompt": str(i), "choices": ["a", "b"], "label": number} for i, number in enumerate([1, 2, 1])])
    assert data.first_choice == 0  # before any was asked for
    assert list(data.labelled("train", Target.choice)["label"]) == [0, 1, 0]
    assert data.first_choice == 1
    assert "counted from 1" in data.summary()


def test_equal_choices_with_other_prompts_are_of_different_content() -> None:
    rows = given([{"prompt": p, "choices": ["a", "b"], "label": 0} for p in "xy"]).labelled("train", Target.choice)
    assert len(set(rows["key"])) == 2


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "row", "said"),
    [
        ([0, 1, ""], 3, "label is '', which is blank"),
        ([0, None, 1], 2, "label is None, which is blank"),
        ([0, 1, " "], 3, "which is blank"),
        ([0, 1, 1.5], 3, "label is 1.5, which is a number with a fraction"),
        (["0", "1", "1.5"], 3, "label is '1.5', which is no whole number"),
        (["0.5", "1.5", "1"], 1, "label is '0.5', which is no whole number"),
        ([0, 1, "many"], 3, "label is 'many', which is no whole number, as the others are"),
        (["a", "b", ["c"]], 3, "label is ['c'], which is list"),
        (["a", "b", {"c": 1}], 3, "which is dict"),
        (["a", float("nan"), "b"], 2, "which is a number with a fraction"),
        (["a", "b", "\ud800"], 3, "half of a surrogate pair"),
    ],
    ids=str,
)
def test_b13_a_label_that_cannot_be_one_is_named_with_its_row_and_what_is_allowed(values: list[Any], row: int, said: str, folder: Path) -> None:
    error = refused(given(labels(*values)))
    assert f"{folder / 'train.jsonl'}:{row}: " in error.what
    assert said in error.what
    assert all(f"'{value}'" in str(error.allowed) for value in values if value in (0, 1, "a", "b") and not isinstance(value, bool))


@pytest.mark.parametrize("value", [-1, 5, "c", ""])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_b13_a_label_that_train_does_not_have_is_refused_before_training(value: Any, split: str, folder: Path) -> None:
    write("other.jsonl", labels(0, 1, value))
    error = refused(given(labels(0, 1, 0), **{split: "other.jsonl"}))
    assert f"{folder / 'other.jsonl'}:3: label is {value!r}, which " in error.what
    assert error.allowed == "'0', '1'"


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_b13_the_row_is_named_in_other_formats_too(name: str, folder: Path) -> None:
    error = refused(given([{"text": "a\r\nb", "label": "x"}, {"text": "c", "label": "y"}, {"text": "d", "label": ""}], name))
    assert f"{folder / name}{': row 3' if name.endswith('parquet') else ':5'}: label is ''" in error.what


def test_b13_the_first_bad_row_is_named() -> None:
    assert "train.jsonl:2: " in refused(given(labels("a", "", "b", ["c"], ""))).what


def test_a_class_that_only_a_held_out_row_has_is_refused_with_three_ways_out() -> None:
    data = text(train=write("t.jsonl", labels(*["a", "b"] * 100, *(f"c{i}" for i in range(40)))), validation_fraction=0.4)
    error = refused(data)
    assert "which no training row has" in error.what
    assert "a row held out for validation" in str(error.fix)


def test_b15_one_class_in_train_is_refused() -> None:
    error = refused(given(labels("a", "a", "a")))
    assert "label is 'a' in all 3 training rows" in error.what
    assert "data.label_column=NAME" in str(error.fix)


def test_b15_one_score_in_train_is_refused() -> None:
    assert "score is 3 in all 2 training rows" in refused(given([{"text": t, "score": 3} for t in "ab"]), Target.score).what


@pytest.mark.parametrize("value", ["", None, "four", "4,5", "nan", "inf", float("inf"), float("nan"), True, [1], "1_0", 10**400], ids=lambda v: str(v)[:9])
def test_a_score_that_is_no_finite_number_is_named_with_its_row(value: Any) -> None:
    error = refused(given([{"text": "a", "score": 1}, {"text": "b", "score": value}, {"text": "c", "score": 2}]), Target.score)
    assert "train.jsonl:2: score is " in error.what
    assert error.allowed == "finite numbers"


@pytest.mark.parametrize("value", [2, -1, "b", 0.5, None, True, 10**12], ids=str)
def test_a_number_of_no_choice_is_named_with_its_row(value: Any) -> None:
    rows = [{"prompt": "p", "choices": ["a", "b"], "label": 0}, {"prompt": "q", "choices": ["a", "b"], "label": value}]
    assert f"train.jsonl:2: label is {value!r}, which " in refused(given(rows), Target.choice).what


@pytest.mark.parametrize(
    ("choices", "said"),
    [(["a"], "1 choices"), ([], "0 choices"), (["a", ""], "choice 2 of choices is ''"), (["a", None], "choice 2"), (["a", 5], "is 5"), ("ab", "which is str")],
    ids=str,
)
def test_choices_that_are_not_two_texts_or_more_are_named_with_their_row(choices: Any, said: str) -> None:
    rows = [{"prompt": "p", "choices": ["a", "b"], "label": 0}, {"prompt": "q", "choices": choices, "label": 0}]
    error = refused(given(rows), Target.choice)
    assert "train.jsonl:2: " in error.what
    assert said in error.what


def test_b10_columns_that_cannot_be_told_apart_are_listed(folder: Path) -> None:
    error = refused(given("one,two,label\na,b,c\n", "t.csv"))
    assert str(folder / "t.csv") in error.what
    assert error.allowed == "one of the columns there: 'one', 'two', 'label'"


def test_b10_a_file_for_validation_with_other_columns_is_refused() -> None:
    write("v.csv", "review,stars\na,5\n")
    error = refused(given(labels("a", "b"), validation="v.csv"))
    assert "v.csv:1: no column 'text'" in error.what


@pytest.mark.parametrize(
    ("content", "said"), [('{"text": "a", "label": 0}\n{"text": "b"}\n', "t.jsonl:2: no column 'label'"), ('{"text": "a', "t.jsonl:1: not JSON")]
)
def test_b16_a_row_without_its_label_or_cut_off_is_named(content: str, said: str) -> None:
    assert said in refused(given(content, "t.jsonl")).what


def test_b16_a_text_that_is_a_number_is_named() -> None:
    assert "train.jsonl:2: text is 5, which is int" in refused(given([{"text": "a", "label": 0}, {"text": 5, "label": 1}])).what


@pytest.mark.parametrize(
    ("content", "said"), [("text,label\na,b,c\n", "t.csv:2: 3 cells"), ('text,label\na,b\n"c,d\n', "t.csv:3: not CSV"), ('"text,label\n', "t.csv:1: not CSV")]
)
def test_b09_a_csv_that_is_not_well_formed_is_named_with_its_line(content: str, said: str) -> None:
    assert said in refused(given(content, "t.csv")).what


@pytest.mark.parametrize(("name", "content"), [("t.csv", ""), ("t.csv", "text,label\n"), ("t.jsonl", "\n"), ("t.csv", "text,label\n ,a\n")])
def test_b02_a_file_without_rows_is_refused(name: str, content: str, folder: Path) -> None:
    error = refused(given(content, name))
    assert "data.train has no labelled rows" in error.what
    assert str(folder / name) in error.what


def test_a_text_file_has_no_labels() -> None:
    write("t.txt", "a\nb\n")
    assert ".csv, .jsonl, .parquet" in str(refused(text(train="t.txt")).allowed)


def test_b04_bytes_that_are_no_text_are_named() -> None:
    Path("t.csv").write_bytes(b"text,label\ncaf\xe9,a\n")
    error = refused(text(train="t.csv"))
    assert "t.csv:2: byte 14 is 0xe9" in error.what
    assert "latin-1" in str(error.fix)


def test_a_name_that_is_no_split_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="'eval' is no split"):
        given(labels("a", "b")).labelled("eval", Target.label)


@pytest.mark.parametrize("settings", [{"text_column": "a", "label_column": "a"}, {"second_column": "b"}, {"label_column": ""}, {"choice_columns": [""]}])
def test_columns_that_contradict_each_other_are_a_config_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.\w+_columns?="):
        text(**settings)


# --- what is counted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.csv", 'text,label\na,x\n,y\n"  ",x\n\nb,y\n'),
        ("b.jsonl", '{"text": "a", "label": "x"}\n{"text": null, "label": ""}\n\n{"text": " ", "label": "y"}\n{"text": "b", "label": "y"}\n'),
    ],
)
def test_b12_rows_with_a_blank_text_are_skipped_and_counted(name: str, content: str) -> None:
    write("other.csv", "text,label\nv,x\n")
    data = given(content, name, validation="other.csv", test="other.csv")
    assert list(data.labelled("train", Target.label)["text"]) == ["a", "b"]
    assert "3 blank skipped" in data.summary()


def test_b12_a_pair_with_one_blank_text_is_skipped() -> None:
    rows = [{"premise": a, "hypothesis": b, "label": c} for a, b, c in [("a", "b", "x"), ("c", "", "y"), ("d", "e", "y")]]
    assert len(given(rows).labelled("train", Target.label)) == 2


def test_repeated_rows_are_kept_and_counted_and_contradictions_told() -> None:
    write("other.jsonl", [{"text": "held out", "label": "a"}])
    rows = [{"text": t, "label": value} for t, value in [("one", "a"), ("one", "a"), ("two", "a"), ("two", "b"), ("three", "b")]]
    data = given(rows, validation="other.jsonl", test="other.jsonl")
    assert len(data.labelled("train", Target.label)) == 5
    assert "2 repeat another" in data.summary()
    assert "train: 1 rows repeat another with a different label" in data.warnings()


def test_a_class_of_one_row_is_told() -> None:
    data = given(labels("a", "a", "b", "b", "tyop"))
    data.labelled("train", Target.label)
    assert "a class of one training row: 'tyop'" in data.warnings()


# --- splits -------------------------------------------------------------------------------------------------------


def many(count: int = 300) -> list[dict[str, Any]]:
    return labels(*("ab"[i % 2] for i in range(count)))


def test_the_shares_have_every_row_once_with_its_label() -> None:
    data = text(train=write("t.jsonl", many()))
    found = [data.labelled(name, Target.label) for name in SPLITS]
    together = [(t, name) for rows in found for t, name in zip(rows["text"], named(rows), strict=True)]
    assert sorted(together) == sorted((row["text"], row["label"]) for row in many())
    assert 10 < len(found[1]) < 60


def test_a_row_stands_where_its_text_stands_among_documents() -> None:
    data = text(train=write("t.jsonl", many()))
    assert list(data.labelled("test", Target.label)["text"]) == list(data.split("test")["text"])


def test_b22_equal_texts_stand_on_one_side_whatever_their_labels() -> None:
    doubled = [*many(), *({"text": row["text"], "label": "ba"[row["label"] == "b"]} for row in many())]
    data = text(train=write("t.jsonl", doubled))
    texts = [set(data.labelled(name, Target.label)["text"]) for name in SPLITS]
    assert texts[0].isdisjoint(texts[1] | texts[2])
    assert texts[1].isdisjoint(texts[2])
    assert not any("also stand" in line for line in data.warnings())


def overlapping(**settings: Any) -> Text:
    write("v.jsonl", [{"text": "text 1", "label": "a"}, {"text": "new", "label": "b"}])
    write("u.jsonl", [{"text": "newer", "label": "b"}])
    return given(labels("a", "b", "a"), validation="v.jsonl", test="u.jsonl", **settings)


def test_b22_texts_in_two_files_are_counted_in_a_warning() -> None:
    data = overlapping()
    data.labelled("train", Target.label)
    assert data.warnings()[0] == "1 of 2 different validation rows also stand in train"


@pytest.mark.parametrize("name", SPLITS)
def test_b22_they_are_an_error_on_request(name: str) -> None:
    assert "1 of 2 different validation rows also stand in train" in refused(overlapping(on_overlap="error"), split=name).what


@pytest.mark.parametrize("name", ["validation", "test"])
def test_b19_a_share_that_came_out_empty_is_refused_with_the_numbers(name: str) -> None:
    data = text(train=write("t.jsonl", labels("a", "b", "a")), validation_fraction=1e-6, test_fraction=1e-6)
    error = refused(data, split=name)
    assert f"the {name} split is empty: 3 labelled rows" in error.what
    assert "train 3, validation 0, test 0" in error.what


# --- what is kept -------------------------------------------------------------------------------------------------


def test_a_moved_file_is_not_read_again_and_its_new_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write("t.csv", "text,label\na,x\nb,\n")
    refused(text(train="t.csv"))
    Path("t.csv").rename("moved.csv")
    monkeypatch.setattr(readers, "records", None)
    assert "moved.csv:3: label is ''" in refused(text(train="moved.csv", validation_fraction=1e-6, test_fraction=1e-6)).what


def test_a_changed_file_gives_its_new_rows_though_size_and_time_are_the_same() -> None:
    data = given("text,label\na,x\nb,y\n", "t.csv")
    assert named(data.labelled("train", Target.label)) == ["x", "y"]
    before = Path("t.csv").stat()
    write("t.csv", "text,label\na,y\nb,x\n")
    os.utime("t.csv", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert named(text(train="t.csv", validation="t.csv", test="t.csv").labelled("train", Target.label)) == ["y", "x"]


@pytest.mark.parametrize(
    ("change", "same"),
    [({"max_length": 99}, True), ({"train": "copy.jsonl"}, True), ({"test_fraction": 0.2}, False), ({"label_column": "other"}, False)],
    ids=str,
)
def test_the_fingerprint_says_what_the_rows_hold_and_no_more(change: dict[str, Any], same: bool) -> None:
    for name in ("t.jsonl", "copy.jsonl"):
        write(name, [row | {"other": "ba"[row["label"] == "b"] + "c" * (i % 5 == 0)} for i, row in enumerate(many())])
    before, after = (text(**{"train": "t.jsonl"} | more).labelled("test", Target.label) for more in ({}, change))
    assert (store.fingerprint(before) == store.fingerprint(after)) is same


def test_a_split_says_its_classes_in_its_fingerprint() -> None:
    write("v.jsonl", labels("a", "b"))
    found = [given(labels(*values), f"{values}.jsonl", validation="v.jsonl", test="v.jsonl").labelled("test", Target.label) for values in ("ab", "abc")]
    assert list(found[0]["label"]) == list(found[1]["label"])
    assert store.fingerprint(found[0]) != store.fingerprint(found[1])


# --- small functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "expected"), [(["b", "10", "9"], ["10", "9", "b"]), (["10", "9", "-1"], ["-1", "9", "10"]), (["01", "1"], ["01", "1"])])
def test_names_are_sorted_as_numbers_only_where_all_are(names: list[str], expected: list[str]) -> None:
    assert labelled.in_order(names) == expected


# --- real data ----------------------------------------------------------------------------------------------------


def published(folder: str, **settings: Any) -> Text:
    files = {name: str(path) for name in SPLITS if (path := realdata(folder, f"{name}.jsonl")).is_file()}
    return text(**files, **settings)


def facts(folder: str) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Rows and label counts of each file, as its own description says."""
    page = realdata(folder, "SOURCE.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in page.splitlines() if line.startswith("|")]
    rows = {name.removesuffix(".jsonl"): int(number) for name, number in cells if name in ("train.jsonl", "validation.jsonl", "test.jsonl")}
    counts = json.loads(page.split("```json")[1].split("```")[0])
    return rows, {name.removesuffix(".jsonl"): count for name, count in counts.items()}


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("folder", "classes", "pairs"), [("rt_polarity", 2, False), ("subj", 2, False), ("sms_spam", 2, False), ("banking77", 77, False), ("sick", 3, True)]
)
def test_published_sets_are_read_without_naming_a_column(folder: str, classes: int, pairs: bool) -> None:
    data = published(folder)
    rows, counts = facts(folder)
    found = {name: data.labelled(name, Target.label) for name in SPLITS}
    assert len(found["train"].features["label"].names) == classes
    assert ("second" in found["train"].column_names) is pairs
    if folder == "banking77":  # has no file for validation, so train gives a share
        found["train"] = [*named(found["train"]), *named(found.pop("validation"))]
        found["test"] = named(found["test"])
    else:
        found = {name: named(rows) for name, rows in found.items()}
    assert {name: len(names) for name, names in found.items()} == rows
    assert {name: dict(Counter(names)) for name, names in found.items()} == counts


@pytest.mark.realdata
def test_published_relatedness_is_read_as_scores_from_1_to_5() -> None:
    data = published("sick")
    found = {name: data.labelled(name, Target.score) for name in SPLITS}
    assert {name: len(rows) for name, rows in found.items()} == facts("sick")[0]
    assert "scores in train from 1 to 5" in data.summary()


@pytest.mark.realdata
def test_published_causes_and_effects_are_read_as_choices() -> None:
    data = published("copa")
    rows, counts = facts("copa")
    found = {name: list(data.labelled(name, Target.choice)["label"]) for name in SPLITS}
    found["train"] += found.pop("test")
    assert {name: len(numbers) for name, numbers in found.items()} == rows
    assert {name: {str(k): v for k, v in Counter(numbers).items()} for name, numbers in found.items()} == counts


@pytest.mark.realdata
def test_the_repeated_messages_of_a_published_set_are_all_found() -> None:
    data = published("sms_spam")
    keys = [key for name in SPLITS for key in data.labelled(name, Target.label)["key"]]
    assert len(keys) - len(set(keys)) == 403
