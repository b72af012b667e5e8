"""Eight families of modules, and which files of them are held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmtrain.data import documents as docs, families


def test_there_are_eight_families_and_no_module_is_in_two() -> None:
    assert len(families.FAMILIES) == 8
    assert Counter(module for modules in families.FAMILIES.values() for module in modules).most_common(1)[0][1] == 1


@pytest.mark.parametrize(
    ("file", "family"),
    [("tkinter/ttk.py", "gui"), ("turtle.py", "gui"), ("_pydecimal.py", "numbers"), ("_threading_local.py", "concurrency"), ("os.py", None), ("gui.py", None)],
)
def test_a_files_family_is_that_of_its_top_module(file: str, family: str | None) -> None:
    assert families.family(file) == family


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("email/message.py", ["email", "message"]),
        ("json/__init__.py", ["json"]),
        ("venv/__main__.py", ["venv"]),
        ("re/__init__.py", ["re"]),
        ("abc.py", ["abc"]),
    ],
)
def test_a_module_is_named_by_its_dotted_parts(file: str, parts: list[str]) -> None:
    assert families.dotted(file) == parts


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("An email message.", "An  ."),
        ("EMAIL.Message and Email", ". and "),
        ("my_email_policy, emails", "my__policy, emails"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_each_part_of_a_modules_name_is_removed_in_any_case_as_a_word(text: str, left: str) -> None:
    assert families.unnamed(text, "email/message.py") == left


def test_a_private_modules_name_is_removed_with_and_without_its_underscore() -> None:
    assert families.unnamed("_pydecimal is pydecimal", "_pydecimal.py") == "_ is "


# --- which files are held out ---------------------------------------------------------------------------------------

SIZES = {f"asyncio/f{i}.py": 1 + i % 7 for i in range(60)} | {"threading.py": 200} | {f"tkinter/f{i}.py": 3 for i in range(40)} | {"os.py": 5}


def shares(validation: float, test: float) -> dict[str, np.ndarray]:
    """Of each family, the rows of train, validation and test."""
    groups = families.groups(SIZES)
    counted = {name: np.zeros(3) for name in ("concurrency", "gui")}
    for (file, _), split in zip(groups.items(), docs.assign(np.array(list(groups.values())), validation, test), strict=True):
        counted[str(families.family(file))][split] += SIZES[file]
    return counted


def test_each_family_gives_about_the_shares_that_are_asked_for() -> None:
    for rows in shares(0.15, 0.2).values():
        assert rows / rows.sum() == pytest.approx([0.65, 0.15, 0.2], abs=0.03)


def test_a_file_that_is_much_of_its_family_is_not_held_out() -> None:
    groups = families.groups(SIZES)
    assert docs.assign(np.array([groups["threading.py"]]), 0.2, 0.2).tolist() == [0]


def test_a_file_of_no_family_has_no_place() -> None:
    assert "os.py" not in families.groups(SIZES)


def test_the_order_in_which_files_are_listed_moves_none() -> None:
    assert families.groups(dict(reversed(SIZES.items()))) == families.groups(SIZES)
