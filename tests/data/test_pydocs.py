"""The embedded default: prose of the running Python, read without importing it."""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from llmtrain.config import build
from llmtrain.data import documents as docs, families, pydocs, store
from llmtrain.data.base import SPLITS, Data, Target
from llmtrain.data.pydocs import PyDocs
from llmtrain.errors import ConfigError, DataError

DEFAULTS: dict[str, Any] = {
    "kind": "pydocs",
    "packages": [],
    "max_length": 32,
    "short_length": None,
    "short_fraction": 0.9,
    "validation_fraction": 0.05,
    "test_fraction": 0.05,
    "on_overlap": "warn",
    "num_workers": 0,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def cache(shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One store for this module: the standard library is read once."""
    monkeypatch.setenv("LLMTRAIN_CACHE", shared)


def data(**settings: Any) -> PyDocs:
    built = build(DEFAULTS | settings, Data, "data")  # type: ignore[type-abstract]
    assert isinstance(built, PyDocs)
    return built


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of the test's own, and a path to install packages in."""
    monkeypatch.setattr(pydocs, "_stdlib", lambda: tmp_path / "lib")
    monkeypatch.setattr(pydocs, "MIN_DOCUMENTS", 1)
    monkeypatch.setattr(pydocs, "MIN_DOCUMENT_WORDS", 4)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "lib").mkdir()
    return tmp_path / "lib"


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def texts(**settings: Any) -> list[str]:
    return list(data(**settings).source("train")["text"])


# --- the running Python -------------------------------------------------------------------------------------------


def test_the_running_python_carries_about_two_megabytes_of_prose() -> None:
    rows = data().source("train")
    size = sum(len(text) for text in rows["text"])
    assert 400 < len(rows) < 2000
    assert 1_500_000 < size < 6_000_000


def test_the_summary_says_how_many_documents_and_words_of_which_python() -> None:
    counted = docs.facts(data().source("train"))
    summary = data().summary()
    assert f"{platform.python_version()} standard library: {counted['documents']:,} documents, {counted['words']:,} words" in summary
    assert f"{counted['topics']:,} help topics; {counted['modules']:,} files with docstrings" in summary
    assert counted["topics"] + counted["modules"] == counted["documents"]


def test_all_three_splits_have_documents_and_share_none() -> None:
    assert [len(data().split(name)) > 5 for name in ("train", "validation", "test")] == [True] * 3
    assert data().warnings() == []


def test_another_process_finds_the_same_documents(shared: str, tmp_path: Path) -> None:
    code = f"""
from llmtrain.config import build
from llmtrain.data import store
from llmtrain.data.base import Data
print(store.fingerprint(build({DEFAULTS!r}, Data, "data").split("train")))
"""
    environment = os.environ | {"LLMTRAIN_CACHE": str(tmp_path), "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(store.__file__).parents[2])}
    other = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == store.fingerprint(data().split("train"))
    assert other.stderr == ""


# --- what is read -------------------------------------------------------------------------------------------------


def test_topics_and_docstrings_become_documents_in_the_order_of_their_names(library: Path) -> None:
    write(library / "pydoc_data/topics.py", "topics = {'b': 'The second of two topics.', 'a': 'The first of two topics.'}")
    write(library / "zlib.py", '"""Compression of data, in short."""')
    write(library / "json/tool.py", '"""A tool for the command line."""')
    assert texts() == ["The first of two topics.", "The second of two topics.", "A tool for the command line.", "Compression of data, in short."]


def test_docstrings_stand_in_the_order_of_the_source_cleaned_with_a_blank_line_between() -> None:
    source = '''
"""The module does this."""
class A:
    """The class is here.

        Indented in it.
    """
    async def b(self):
        """The method comes next."""
if True:
    try:
        def c():
            """A function of its own."""
    except ImportError:
        def d():
            """Another one instead."""
def e():
    """And the last one."""
'''
    expected = [
        "The module does this.",
        "The class is here.\n\nIndented in it.",
        "The method comes next.",
        "A function of its own.",
        "Another one instead.",
        "And the last one.",
    ]
    assert pydocs.prose(ast.parse(source), Counter()) == "\n\n".join(expected)


@pytest.mark.parametrize("docstring", ["Helper.", ">>> add(1, 2)\n    3\n    >>> add(2, 2)\n    4", "Two words\n\n    >>> a\n    three four five"])
def test_docstrings_of_labels_and_examples_only_are_left_out_and_counted(docstring: str) -> None:
    count: Counter[str] = Counter()
    source = f'"""Prose of four words."""\ndef f():\n    """{docstring}"""'
    assert pydocs.prose(ast.parse(source), count) == "Prose of four words."
    assert count["short_docstrings"] == 1


@pytest.mark.parametrize(("name", "content"), [("empty.py", ""), ("label.py", '"""Only three words."""')])
def test_short_documents_are_left_out_and_counted(name: str, content: str, library: Path) -> None:
    write(library / "a.py", '"""A module with some prose."""')
    write(library / name, content)
    assert texts() == ["A module with some prose."]
    assert "1 files of under 4 words" in data().summary()


def test_equal_documents_count_as_one(library: Path) -> None:
    for name in "abc":
        write(library / f"{name}.py", '"""The same prose in each."""')
    assert texts() == ["The same prose in each."]
    assert "2 equal to another" in data().summary()


@pytest.mark.parametrize("folder", ["test", "tests", "idlelib/idle_test", "lib2to3/tests", "site-packages/x", "__pycache__"])
def test_tests_and_installed_packages_are_not_the_standard_library(folder: str, library: Path) -> None:
    write(library / "a.py", '"""A module with some prose."""')
    write(library / folder / "b.py", '"""Prose that must not appear."""')
    assert texts() == ["A module with some prose."]


@pytest.mark.parametrize("content", ["print 'Python 2'", "\0", '"""\ud800"""'.encode("utf-8", "surrogatepass").decode("latin-1")])
def test_a_file_that_is_no_python_is_counted(content: str, library: Path) -> None:
    write(library / "a.py", '"""A module with some prose."""')
    (library / "b.py").write_bytes(content.encode("latin-1"))
    assert texts() == ["A module with some prose."]
    assert "1 files that are no Python" in data().summary()


def test_invalid_escapes_of_others_warn_nobody(library: Path) -> None:
    write(library / "a.py", '"""A module with \\d some \\w prose."""')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(texts()) == 1


def test_half_of_a_surrogate_pair_in_a_docstring_is_replaced(library: Path) -> None:
    write(library / "a.py", '"""A character \\ud800 in some prose."""')
    assert texts() == ["A character ? in some prose."]


def test_a_changed_file_is_read_again(library: Path) -> None:
    write(library / "a.py", '"""A module with some prose."""')
    before = texts()
    write(library / "a.py", '"""A module with more prose."""')
    assert texts() != before


def test_a_stripped_python_gets_two_ways_out(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "MIN_DOCUMENTS", 50)
    for i in range(60):
        write(library / f"m{i}.py", f'"""Number {i} of some prose."""' if i < 3 else "")
    with pytest.raises(DataError, match="carries 3 documents") as caught:
        data().split("train")
    assert "python3-full" in str(caught.value.fix)
    assert "data=text data.train=FILE" in str(caught.value.fix)


def test_check_finds_a_python_without_sources(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "MIN_DOCUMENTS", 50)
    with pytest.raises(DataError, match="stripped"):
        data().check()


# --- labelled docstrings --------------------------------------------------------------------------------------------


def answered(share: float = 0.15) -> dict[str, Dataset]:
    built = data(validation_fraction=share, test_fraction=share)
    return {name: built.labelled(name, Target.label) for name in SPLITS}


def every_text() -> list[str]:
    return [text for rows in answered().values() for text in rows["text"]]


def test_the_docstrings_of_the_running_python_are_rows_of_eight_families() -> None:
    found = answered()
    assert 5_500 < sum(map(len, found.values())) < 8_500
    assert found["train"].features["label"].names == sorted(families.FAMILIES)


@pytest.mark.parametrize("share", [0.1, 0.15, 0.2])
def test_every_family_gives_about_its_share_to_every_split(share: float) -> None:
    counts = np.array([np.bincount(rows["label"], minlength=8) for rows in answered(share).values()])
    assert counts.sum(1) / counts.sum() == pytest.approx([1 - 2 * share, share, share], abs=0.04)
    assert counts[1:].min() > 20
    assert (counts.sum(0) / counts.sum()).max() < 0.25


def test_no_text_stands_in_two_splits_or_twice_in_one() -> None:
    texts = every_text()
    assert len(set(texts)) == len(texts)
    assert data().warnings() == []


def test_the_summary_of_labelled_docstrings_names_the_task() -> None:
    built = data()
    built.labelled("train", Target.label)
    assert "8 classes in train: " in built.summary()
    assert "split by file" in built.summary()


def test_words_find_the_family_less_often_where_whole_files_are_held_out() -> None:
    # The claim of families.py: a random split leaks what the docstrings of one file have in common.
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    def accuracy(train: list[int], test: list[int]) -> float:
        judge = make_pipeline(CountVectorizer(), MultinomialNB())
        judge.fit([texts[i] for i in train], [labels[i] for i in train])
        return float(judge.score([texts[i] for i in test], [labels[i] for i in test]))

    parts = [answered()[name] for name in ("train", "test")]
    texts = [text for part in parts for text in part["text"]]
    labels = [label for part in parts for label in part["label"]]
    honest, torn = list(range(len(texts))), np.random.default_rng(0).permutation(len(texts)).tolist()
    cut = len(parts[0])
    by_file, at_random = accuracy(honest[:cut], honest[cut:]), accuracy(torn[:cut], torn[cut:])
    assert 0.4 < by_file < 0.65
    assert at_random > by_file + 0.1


@pytest.fixture
def labelled_library(library: Path) -> Path:
    for i in range(20):
        write(library / f"tkinter/w{i}.py", f'"""Window number {i} of the Tkinter package."""\ndef f():\n    """Draw window w{i} again now please."""')
        write(library / f"asyncio/t{i}.py", f'"""Task number {i} of the asyncio package."""\ndef f():\n    """Await task T{i} again now please."""')
    return library


def test_a_docstring_is_a_row_without_the_name_of_its_module(labelled_library: Path) -> None:
    texts = every_text()
    assert "Window number 3 of the  package." in texts
    # What is left of two docstrings of a family is equal in all files, so it is one row.
    assert sorted(text for text in texts if "again" in text) == ["Await task  again now please.", "Draw window  again now please."]


def test_all_docstrings_of_a_file_stand_in_one_split(library: Path) -> None:
    for folder, things in (("tkinter", "windows"), ("asyncio", "tasks")):
        for i in range(20):
            write(library / folder / f"f{i}.py", "\n".join(f'def g{j}():\n    """Open {j} {things} of file {i} here."""' for j in range(5)))
    files = [{(text.split()[2], text.split()[5]) for text in rows["text"]} for rows in answered().values()]
    assert len(every_text()) == 200
    assert sum(map(len, files)) == 40  # each of the 40 files is in one split only
    assert min(map(len, files)) > 2


def test_modules_of_no_family_and_short_docstrings_are_no_rows(labelled_library: Path) -> None:
    before = every_text()
    write(labelled_library / "os.py", '"""Routines of the system, whatever it is."""')
    write(labelled_library / "tkinter/short.py", '"""Only four words here."""')
    assert every_text() == before


@pytest.mark.parametrize("target", [Target.score, Target.choice])
def test_docstrings_have_no_other_answers_and_the_way_out_is_named(target: Target) -> None:
    with pytest.raises(ConfigError, match=f"no {target.value}") as caught:
        data().labelled("train", target)
    assert "data=text data.train=FILE" in str(caught.value.fix)


def test_a_python_without_docstrings_gets_two_ways_out_for_labels_too(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "MIN_DOCUMENTS", 50)
    write(library / "turtle.py", '"""Drawing with a pen that is a turtle."""')
    with pytest.raises(DataError, match="stripped"):
        answered()


# --- packages -----------------------------------------------------------------------------------------------------


@pytest.fixture
def site(library: Path) -> Path:
    write(library / "a.py", '"""A module with some prose."""')
    return library.parent / "site"


@pytest.mark.parametrize(("file", "name"), [("bomb/__init__.py", "bomb"), ("single.py", "single"), ("spread/part.py", "spread")])
def test_a_package_is_read_without_importing_it(file: str, name: str, site: Path) -> None:
    write(site / file, '"""Prose of a package."""\nraise SystemExit("it was imported")')
    assert texts(packages=[name]) == ["A module with some prose.", "Prose of a package."]
    assert name not in sys.modules


def test_packages_count_once_in_the_order_of_their_names(site: Path) -> None:
    for name in ("zebra", "ape"):
        write(site / name / "__init__.py", f'"""The prose of {name}."""')
    assert texts(packages=["zebra", "ape", "zebra"]) == ["A module with some prose.", "The prose of ape.", "The prose of zebra."]


def test_the_summary_names_the_packages(site: Path) -> None:
    write(site / "ape/__init__.py", '"""The prose of ape."""')
    assert "standard library, ape: 2 documents" in data(packages=["ape"]).summary()


@pytest.mark.parametrize("name", ["no_such_package", "made_by_hand"])
def test_a_package_that_is_not_installed_is_named(name: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))  # find_spec raises ValueError for it
    with pytest.raises(DataError, match=f"data.packages: {name}: not installed"):
        data(packages=[name]).check()


def test_a_package_without_source_is_named(site: Path) -> None:
    with pytest.raises(DataError, match=r"data\.packages: sys: has no Python source"):
        data(packages=["sys"]).check()


@pytest.mark.parametrize("name", ["os.path", "a b", "", "../x"])
def test_what_is_no_name_of_a_package_is_a_config_error(name: str) -> None:
    # find_spec imports the parent of a dotted name.
    with pytest.raises(ConfigError, match=r"data\.packages="):
        data(packages=[name])
