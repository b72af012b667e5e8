"""What relative paths of a sweep mean from another directory than the one where it was started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from llmtrain.sweep.moved import Meaning, meanings


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories in which some names mean the same and others do not."""
    there, here = tmp_path / "there", tmp_path / "here"
    for directory, word in ((there, "then"), (here, "now")):
        (directory / "texts").mkdir(parents=True)
        (directory / "run" / "final").mkdir(parents=True)
        (directory / "a.txt").write_text("equal")
        (directory / "b.txt").write_text(word)
        (directory / "texts" / "1.txt").write_text("equal")
        (directory / "run" / "final" / "weights").write_text("equal")
    (there / "left.txt").write_text("x")
    (here / "new.txt").write_text("x")
    (here / "texts" / "2.md").write_text("x")
    return there, here


@pytest.mark.parametrize(
    ("key", "value", "means"),
    [
        ("data.train", "a.txt", {"a.txt": Meaning.same}),
        ("data.train", "b.txt", {"b.txt": Meaning.other}),
        ("data.train", "a.txt, b.txt", {"a.txt": Meaning.same, "b.txt": Meaning.other}),
        ("data.validation", ["b.txt", "a.txt"], {"a.txt": Meaning.same, "b.txt": Meaning.other}),
        ("data.test", "texts", {"texts": Meaning.other}),
        ("data.test", "texts/*.txt", {"texts/*.txt": Meaning.same}),
        ("data.test", "*/*", {"*/*": Meaning.other}),
        ("model.checkpoint", "run", {"run": Meaning.same}),
        ("tokenizer.path", "./run/final", {"./run/final": Meaning.same}),
        ("model.checkpoint", "owner/name", {}),
        ("data.train", "left.txt", {"left.txt": Meaning.other}),
        ("data.train", "new.txt", {"new.txt": Meaning.moved}),
        ("data.train", "/etc", {}),
        ("data.train", "~/b.txt", {}),
        ("data.train", None, {}),
        ("data.text_column", "b.txt", {}),
    ],
)
def test_a_relative_path_means_the_same_where_it_leads_to_equal_files(places: tuple[Path, Path], key: str, value: Any, means: dict[str, Meaning]) -> None:
    config = OmegaConf.create()
    OmegaConf.update(config, key, value)
    assert meanings(*places, [config]) == {f"{key}={path}": meaning for path, meaning in means.items()}


def test_a_link_to_the_same_file_is_the_same_and_one_to_nothing_is_another(places: tuple[Path, Path]) -> None:
    there, here = places
    (here / "left.txt").symlink_to(there / "left.txt")
    (here / "b.txt").unlink()
    (here / "b.txt").symlink_to(here / "nowhere")
    found = meanings(there, here, [OmegaConf.create({"data": {"train": ["left.txt", "b.txt"]}})])
    assert found == {"data.train=b.txt": Meaning.other, "data.train=left.txt": Meaning.same}


@pytest.mark.parametrize("there", ["gone", "here/a.txt", "no\0name", "x" * 5000])
def test_from_a_directory_that_is_none_any_more_what_is_here_was_moved(places: tuple[Path, Path], there: str) -> None:
    _, here = places
    found = meanings(here.parent / there, here, [OmegaConf.create({"data": {"train": "*.txt", "test": "nothing"}})])
    assert found == {"data.train=*.txt": Meaning.moved}
