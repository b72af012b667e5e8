"""Draws are functions of a seed and of what they are for."""

from __future__ import annotations

import subprocess
import sys

from llmtrain.seeding import generator, key


def test_the_same_parts_give_the_same_key_in_another_process() -> None:
    code = "from llmtrain.seeding import key; print(key(7, 'mask', 3, 41))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "1"})
    assert int(done.stdout) == key(7, "mask", 3, 41)


def test_keys_differ_where_any_part_differs() -> None:
    keys = {key(seed, what, epoch, sample) for seed in range(3) for what in ("mask", "order") for epoch in range(3) for sample in range(50)}
    assert len(keys) == 3 * 2 * 3 * 50


def test_parts_are_not_glued_together() -> None:
    assert key(1, "a", "bc") != key(1, "ab", "c")
    assert key(1, 2, 3) != key(1, 23)


def test_a_key_fits_what_takes_seeds() -> None:
    assert all(0 <= key(s) < 2**63 for s in range(100))
    assert generator(0, "x").integers(1000) == generator(0, "x").integers(1000)
