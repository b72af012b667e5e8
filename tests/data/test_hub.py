"""Data sets of the hub and local folders, all without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtrain.config import build
from llmtrain.data import store
from llmtrain.data.base import Data, Target
from llmtrain.data.hub import Hub
from llmtrain.errors import ConfigError, DataError

DEFAULTS: dict[str, Any] = {
    "kind": "hub",
    "name": "corpus",
    "subset": None,
    "revision": None,
    "text_column": None,
    "second_column": None,
    "label_column": None,
    "choice_columns": None,
    "streaming": False,
    "max_documents": None,
    "train_split": "train",
    "validation_split": None,
    "test_split": None,
    "max_length": 16,
    "short_length": None,
    "short_fraction": 0.9,
    "validation_fraction": 0.1,
    "test_fraction": 0.1,
    "on_overlap": "warn",
    "num_workers": 0,
}
TRAIN = [f"document {i}" for i in range(200)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like a data set, beside a store of its own."""
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_jsonl(corpus / "train.jsonl", TRAIN)
    write_jsonl(corpus / "validation.jsonl", ["held out", None, " "])
    return corpus


def write_jsonl(path: Path, texts: list[Any]) -> None:
    path.write_text("".join(json.dumps({"text": text, "label": 1}) + "\n" for text in texts))


def hub(**settings: Any) -> Hub:
    built = build(DEFAULTS | settings, Data, "data")  # type: ignore[type-abstract]
    assert isinstance(built, Hub)
    return built


def texts(split: str = "train", /, **settings: Any) -> list[str]:
    source = hub(**settings).source(split)
    assert source is not None
    return list(source["text"])


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"text_column": ""}, "text_column"),
        ({"train_split": ""}, "train_split"),
        ({"max_documents": 0}, "max_documents"),
        ({"streaming": True}, "max_documents"),
    ],
)
def test_a_setting_out_of_range_is_a_config_error_that_names_the_key(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}="):
        hub(**settings)


def test_shares_have_no_effect_beside_splits_of_their_own() -> None:
    assert hub().without_effect().keys() == {"short_fraction"}
    assert set(hub(validation_split="validation", test_split="test").without_effect()) == {"short_fraction", "validation_fraction", "test_fraction"}


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_a_local_folder_is_read_in_its_own_order(streaming: bool) -> None:
    assert texts(streaming=streaming, max_documents=10**6 if streaming else None) == TRAIN


def test_a_folder_of_parquet_files_is_read(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    pq.write_table(pa.table({"body": TRAIN, "n": list(range(200))}), folder / "train-00000-of-00001.parquet")
    assert texts(text_column="body") == TRAIN


@pytest.mark.parametrize("streaming", [False, True])
def test_max_documents_takes_the_first_ones(streaming: bool) -> None:
    assert texts(streaming=streaming, max_documents=7) == TRAIN[:7]


def test_streamed_rows_are_the_rows() -> None:
    streamed, loaded = hub(streaming=True, max_documents=50), hub(max_documents=50)
    assert store.fingerprint(streamed.split("train")) == store.fingerprint(loaded.split("train"))


def test_a_split_of_its_own_is_used_and_its_blank_rows_are_counted() -> None:
    data = hub(validation_split="validation")
    assert list(data.split("validation")["text"]) == ["held out"]
    assert "2 blank skipped" in data.summary()


def test_splits_without_one_are_shares_of_train() -> None:
    together = [text for name in ("train", "validation", "test") for text in hub().split(name)["text"]]
    assert sorted(together) == sorted(TRAIN)


def test_a_changed_file_gives_its_new_rows_though_size_and_time_are_the_same(folder: Path) -> None:
    before = texts()
    state = (folder / "train.jsonl").stat()
    write_jsonl(folder / "train.jsonl", ["DOCUMENT 0", *TRAIN[1:]])
    os.utime(folder / "train.jsonl", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (folder / "train.jsonl").stat().st_size == state.st_size
    assert texts() == ["DOCUMENT 0", *before[1:]]


def test_nothing_is_written_outside_the_store(tmp_path: Path) -> None:
    code = f"from llmtrain.config import build; from llmtrain.data.base import Data; build({DEFAULTS!r}, Data, 'data').split('train')"
    (tmp_path / "home").mkdir()
    environment = os.environ | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(store.__file__).parents[2])}
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert list((tmp_path / "home").rglob("*")) == []
    assert not list((tmp_path / "cache").rglob(".tmp-*"))
    assert done.stderr == ""


# --- labelled rows ------------------------------------------------------------------------------------------------


def answered(folder: Path, rows: list[dict[str, Any]], features: Any = None) -> None:
    """Replace the data set by one of labelled rows, train and validation alike."""
    from datasets import Dataset

    for file in folder.iterdir():
        file.unlink()
    for name in ("train", "validation"):
        Dataset.from_list(rows, features).to_parquet(folder / f"{name}.parquet")


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_keep_their_names(streaming: bool, folder: Path) -> None:
    from datasets import ClassLabel, Features, Value

    features = Features({"review": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    answered(folder, [{"review": "a", "label": 1}, {"review": "b", "label": 0}, {"review": " ", "label": -1}], features)
    data = hub(validation_split="validation", test_split="validation", streaming=streaming, max_documents=10)
    rows = data.labelled("train", Target.label)
    assert (list(rows["text"]), rows.features["label"].int2str(rows["label"])) == (["a", "b"], ["pos", "neg"])
    assert "text from 'review', answers from 'label' (inferred" in data.summary()


def test_an_unlabelled_row_of_the_hub_is_named(folder: Path) -> None:
    from datasets import ClassLabel, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    answered(folder, [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": -1}], features)
    with pytest.raises(DataError, match="corpus: train row 3: label is None, which is blank"):
        hub(validation_split="validation", test_split="validation").labelled("train", Target.label)


def test_pairs_with_scores_and_choices_are_read(folder: Path) -> None:
    rows = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "score": i / 2, "choices": ["x", "y"], "label": i % 2} for i in range(5)]
    answered(folder, rows)
    data = hub(validation_split="validation", test_split="validation")
    found = data.labelled("train", Target.score)
    assert (list(found["second"])[:2], list(found["score"])[:2]) == (["b0", "b1"], [0, 0.5])
    chosen = hub(validation_split="validation", test_split="validation", text_column="sentence1").labelled("train", Target.choice)
    assert (next(iter(chosen["choices"])), list(chosen["label"])[:2]) == (["x", "y"], [0, 1])


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_column": "body"}, "corpus: train: no column 'body'"),
        ({"train_split": "nope"}, "['train', 'validation']"),
        ({"subset": "nope"}, "'nope' not found"),
        ({"text_column": "label"}, "corpus: train row 1: label is 1, which is int"),
    ],
    ids=["column", "split", "subset", "type"],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_not_there_is_named(settings: dict[str, Any], said: str, streaming: bool) -> None:
    with pytest.raises(DataError) as caught:
        texts(streaming=streaming, max_documents=10, **settings)
    assert said in caught.value.what


def test_b10_the_columns_that_are_there_are_listed() -> None:
    with pytest.raises(DataError) as caught:
        texts(text_column="body")
    assert "'text', 'label'" in str(caught.value.allowed)


def test_a_split_without_documents_is_refused(folder: Path) -> None:
    write_jsonl(folder / "validation.jsonl", ["", None])
    with pytest.raises(DataError, match="the split 'validation' has no documents"):
        texts("validation", validation_split="validation")


def test_a_file_that_is_cut_off_is_refused_with_the_reason(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b')
    with pytest.raises(DataError, match=r"JSON parse error|Unterminated|Missing a"):
        texts()


def script() -> str:
    Path("data.py").write_text("raise SystemExit('it ran')")
    return "data.py"


def folder_with_script() -> str:
    Path("scripted").mkdir()
    Path("scripted/scripted.py").write_text("raise SystemExit('it ran')")
    return "scripted"


@pytest.mark.parametrize("make", [script, folder_with_script])
def test_b18_scripts_are_not_run(make: Callable[[], str]) -> None:
    with pytest.raises(DataError, match="scripts are not run"):
        texts(name=make())


@pytest.mark.parametrize(
    ("name", "said"), [("./missing", "no such folder"), ("/missing/corpus", "no such folder"), ("corpus/train.jsonl", "a file, not a folder")]
)
def test_a_path_that_is_no_folder_is_refused_without_asking_the_hub(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    with pytest.raises(DataError, match=said):
        hub(name=name).check()


# --- the hub ------------------------------------------------------------------------------------------------------


def answering(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> None:
    """A hub that gives one commit, or one error."""

    def dataset_info(*args: Any, **kwargs: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(sha=answer)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(dataset_info=dataset_info))


def test_a_name_that_the_hub_does_not_know_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ConnectionError("offline mode is enabled"))
    with pytest.raises(DataError, match="someone/nothing: no such folder, and not found on the hub: ConnectionError: offline mode is enabled"):
        hub(name="someone/nothing").check()


@pytest.mark.parametrize("revision", [None, "main"])
def test_without_the_hub_the_commit_of_last_time_is_used(revision: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "a" * 40)
    online = hub(name="someone/something", revision=revision)._commit()
    answering(monkeypatch, ConnectionError("down"))
    assert hub(name="someone/something", revision=revision)._commit() == online == "a" * 40
    with pytest.raises(DataError, match="not found on the hub"):
        hub(name="someone/something", revision="v2").check()


def test_a_whole_commit_needs_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ConnectionError("down"))
    assert hub(name="someone/something", revision="b" * 40)._commit() == "b" * 40


def test_rows_of_the_hub_are_kept_under_their_commit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import datasets

    opened = []
    local = datasets.load_dataset

    def load_dataset(path: str, *args: Any, revision: str, **kwargs: Any) -> Any:
        opened.append(revision)
        return local(str(folder), *args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for commit in ("a" * 40, "a" * 40, "b" * 40):
        answering(monkeypatch, commit)
        assert texts(name="someone/something") == TRAIN
    assert opened == ["a" * 40, "b" * 40]


# --- real data ----------------------------------------------------------------------------------------------------

REAL = os.environ.get("LLMTRAIN_REALDATA")


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="LLMTRAIN_REALDATA is not set")
def test_a_published_folder_is_read() -> None:
    data = hub(name=f"{REAL}/rt_polarity", validation_split="validation", test_split="test")
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [8529, 1066, 1067]
