"""What the cache promises: a cut that changes nothing, made once, believed only when it verifies, and only where it pays."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
import transformers as t
from torch import Tensor

from llmtrain import cache
from llmtrain.cache import Case, Dtype, Piece, Settings, Use, Wanted, batches, boundaries_maker, prefix_maker, stored, stored_together
from llmtrain.errors import CheckpointError, ConfigError, DeviceError, NonFiniteError, SettingError, Stopped
from llmtrain.model.anatomy import anatomy, prefix, tail

WIDTH = 8
IDS: dict[str, Any] = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, tuple[type[Any], Any]] = {
    "bert": (
        t.BertForSequenceClassification,
        t.BertConfig(**IDS, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=72, num_labels=3),
    ),
    "gpt2": (t.GPT2ForSequenceClassification, t.GPT2Config(**IDS, n_embd=48, n_layer=3, n_head=6, num_labels=3)),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the entries, empty."""
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / cache.FOLDER


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def sequences(lengths: list[int], dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """One sequence of random states for each length."""
    draw = torch.Generator().manual_seed(0)
    return [[torch.randn(n, WIDTH, generator=draw).to(dtype)] for n in lengths]


def keep(made: list[list[Tensor]], identity: dict[str, Any] | None = None, dtype: str = "fp32", say: Callable[[str], None] | None = None) -> cache.Stored:
    """Store states that are there already."""
    lengths = [sum(map(len, sample)) for sample in made]
    return stored(identity or {}, len(made), lambda batch: [made[i] for i in batch], lengths, width=WIDTH, dtype=dtype, say=say or complain)


def complain(line: str) -> None:
    raise AssertionError(line)


def never(batch: list[int]) -> list[list[Tensor]]:
    raise AssertionError("made again")


# --- the cut ------------------------------------------------------------------------------------------------------


class Texts:
    """Random token ids of 3 to 24 tokens and a random model, in training mode: dropout is on unless somebody turns it off."""

    def __init__(self, family: str, number: int = 23) -> None:
        torch.manual_seed(0)
        model_class, config = MODELS[family]
        self.model, self.anatomy = model_class(config).train(), anatomy(config, model_class)
        self.ids = [torch.randint(3, 99, (int(torch.randint(3, 25, ())),)) for _ in range(number)]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    def batch(self, samples: list[int]) -> tuple[dict[str, Tensor], list[int], list[int]]:
        lengths = [len(self.ids[i]) for i in samples]
        ids = torch.nn.utils.rnn.pad_sequence([self.ids[i] for i in samples], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask}, lengths, [1] * len(samples)

    def store(self, k: int, dtype: str = "fp32") -> cache.Stored:
        make = prefix_maker(self.model, self.anatomy, k, self.batch, device="cpu", precision_context=contextlib.nullcontext)
        return stored({"k": k, "dtype": dtype}, len(self.ids), make, self.lengths, width=48, dtype=dtype, say=complain)

    def prefix(self, k: int, samples: list[int]) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            return prefix(self.model, self.anatomy, k, self.batch(samples)[0])


@pytest.fixture(params=MODELS)
def texts(request: pytest.FixtureRequest) -> Texts:
    return Texts(request.param)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_states_in_fp32_are_those_of_the_prefix_to_the_last_bit_in_the_batches_of_the_store_pass(texts: Texts, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BATCH_TOKENS", 200)
    kept = texts.store(k)
    compared = 0
    for batch in batches(texts.lengths):
        fresh, read = texts.prefix(k, batch), kept.read(batch)
        assert read.shape == fresh.shape
        for i, length in enumerate(kept.lengths(batch)):
            assert torch.equal(read[i, :length], fresh[i, :length])
            assert not read[i, length:].any()
            compared += 1
    assert compared == len(texts.ids)


def test_states_of_other_batches_are_those_of_the_prefix_to_1e_5(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BATCH_TOKENS", 60)  # so that the store pass has several batches
    kept, others = texts.store(2), [[0, 5, 1], [22, 3], [7]]
    assert len(batches(texts.lengths)) > 3
    for batch in others:
        read, fresh, lengths = kept.read(batch), texts.prefix(2, batch), kept.lengths(batch)
        assert all(torch.allclose(read[i, :n], fresh[i, :n], rtol=0, atol=1e-5) for i, n in enumerate(lengths))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_rest_of_the_model_on_stored_states_has_the_losses_of_the_whole_model_to_1e_6(texts: Texts, k: int) -> None:
    kept, samples = texts.store(k), [3, 17, 0, 11]
    inputs, labels = texts.batch(samples)[0], torch.tensor([0, 2, 1, 1])
    rest = tail(texts.model.eval(), texts.anatomy, k)

    def loss(logits: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(logits.detach(), labels))

    whole = loss(texts.model(**inputs).logits)
    assert abs(whole - loss(rest(kept.read(samples), **inputs).logits)) < 1e-6
    assert abs(whole - loss(rest(kept.read(samples).flip(0), **inputs).logits)) > 1e-6  # the guard: the states matter


def test_the_store_pass_has_no_dropout_and_puts_every_mode_back(texts: Texts) -> None:
    texts.model.train()
    next(texts.model.children()).eval()
    before = {name: module.training for name, module in texts.model.named_modules()}
    texts.store(2)
    assert {name: module.training for name, module in texts.model.named_modules()} == before
    assert set(before.values()) == {True, False}
    first = texts.store(2).sha256
    cache.clear()
    assert texts.store(2).sha256 == first


def test_the_store_pass_asks_for_no_gradients_and_runs_in_the_context_it_is_given(texts: Texts) -> None:
    make = prefix_maker(texts.model, texts.anatomy, 1, texts.batch, device="cpu", precision_context=lambda: torch.autocast("cpu", torch.bfloat16))
    autocast, plain = make([0])[0][0], texts.prefix(1, [0])[0]
    assert not autocast.requires_grad
    assert 1e-4 < float((autocast.float() - plain).abs().max()) < 0.1


def test_the_store_pass_keeps_no_keys_and_values() -> None:
    texts, seen = Texts("gpt2"), list[Any]()
    texts.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["use_cache"]), with_kwargs=True)
    texts.store(1)
    assert set(seen) == {False}


def test_rows_are_given_to_the_samples_they_belong_to(texts: Texts) -> None:
    def two_rows(samples: list[int]) -> tuple[dict[str, Tensor], list[int], list[int]]:
        inputs, lengths, _ = texts.batch([row for i in samples for row in (i, i + 1)])
        return inputs, lengths, [2] * len(samples)

    make = prefix_maker(texts.model, texts.anatomy, 1, two_rows, device="cpu", precision_context=contextlib.nullcontext)
    assert [[len(row) for row in sample] for sample in make([4, 9])] == [texts.lengths[4:6], texts.lengths[9:11]]


# --- written and read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "step"), [("fp32", 0), ("bf16", 2**-8), ("fp16", 2**-11)])
def test_a_stored_number_is_the_nearest_of_its_type(dtype: str, step: float) -> None:
    made = sequences([5, 2, 9, 1])
    kept = keep(made, dtype=dtype)
    for i, (states,) in enumerate(made):
        read = kept.read([i])[0]
        assert read.dtype == cache.torch_dtype(dtype)
        assert torch.equal(read, states.to(read.dtype))
        assert bool(((read.float() - states).abs() <= step * states.abs() + 1e-7).all())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_has_the_stored_type_already_is_not_rounded(dtype: str) -> None:
    made = sequences([5, 3], cache.torch_dtype(dtype))
    assert torch.equal(keep(made, dtype=dtype).read([1])[0], made[1][0])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_nothing_is_stored_for_padding(dtype: str, folder: Path) -> None:
    lengths = [40, 1, 7, 3]
    kept = keep(sequences(lengths), dtype=dtype)
    assert (kept.path / cache.STATES).stat().st_size == sum(lengths) * WIDTH * cache.size_of(dtype)
    assert (kept.samples, kept.sequences, kept.tokens) == (4, 4, sum(lengths))
    assert entries(folder) == [kept.path]


def test_samples_are_read_in_the_order_asked_for_padded_to_the_longest_or_to_a_length() -> None:
    made = sequences([4, 1, 6])
    kept = keep(made)
    assert kept.read([2, 0]).shape == (2, 6, WIDTH)
    assert torch.equal(kept.read([2, 0])[1, :4], made[0][0])
    assert torch.equal(kept.read([1, 1], length=9), kept.read([1, 1, 2], length=9)[:2])
    assert kept.lengths([2, 0, 1]) == [6, 4, 1]


def test_a_sample_may_have_several_sequences_or_none() -> None:
    one = sequences([3, 2, 5, 4])
    made = [[one[0][0], one[1][0]], [], [one[2][0]], [one[3][0]]]
    kept = keep(made)
    assert (kept.samples, kept.sequences) == (4, 4)
    read = kept.read([2, 0, 1])
    assert kept.lengths([2, 0, 1]) == [5, 3, 2]
    assert all(torch.equal(read[i, :n], states) for i, (n, states) in enumerate([(5, one[2][0]), (3, one[0][0]), (2, one[1][0])]))
    assert kept.read([1]).shape == (0, 0, WIDTH)


def test_pooled_vectors_are_sequences_of_one() -> None:
    vectors = torch.randn(6, WIDTH)
    kept = keep([[vector] for vector in vectors])
    assert kept.tokens == kept.sequences == 6
    assert torch.equal(kept.read(range(6))[:, 0], vectors)


def test_no_samples_are_an_entry_too() -> None:
    kept = keep([])
    assert kept.read([]).shape == (0, 0, WIDTH)
    assert keep([]) == kept


def test_reading_does_not_change_what_is_stored() -> None:
    kept = keep(sequences([3, 4]))
    before = kept.read([0, 1])
    kept.read([0, 1]).zero_()
    assert torch.equal(kept.read([0, 1]), before)


def test_states_can_be_sent_to_workers_without_the_file_in_the_message() -> None:
    kept = keep(sequences([400, 300]))
    kept.read([0])  # opened here
    message = pickle.dumps(kept)
    assert len(message) < 2000
    assert torch.equal(pickle.loads(message).read([0, 1]), kept.read([0, 1]))


def test_workers_of_a_loader_read_what_this_process_reads() -> None:
    kept = keep(sequences([4, 2, 7, 1]), dtype="bf16")
    kept.read([0])
    loader = torch.utils.data.DataLoader(range(4), batch_size=2, collate_fn=kept.read, num_workers=1, multiprocessing_context="forkserver")  # type: ignore[arg-type]
    assert all(torch.equal(batch, kept.read(samples)) for batch, samples in zip(loader, [[0, 1], [2, 3]], strict=True))


def test_an_entry_removed_under_a_run_is_named(folder: Path) -> None:
    kept = keep(sequences([4, 2]))
    cache.clear()
    with pytest.raises(CheckpointError, match="removed while a run used them"):
        kept.read([0])


# --- the store pass -----------------------------------------------------------------------------------------------


def test_batches_of_the_store_pass_are_by_length_and_bounded_by_padded_tokens() -> None:
    lengths = [int(n) for n in torch.randint(1, 600, (500,), generator=torch.Generator().manual_seed(0))]
    found = batches(lengths)
    assert sorted(i for batch in found for i in batch) == list(range(500))
    assert max(len(batch) * max(lengths[i] for i in batch) for batch in found) <= cache.BATCH_TOKENS
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in found)
    assert padded < 1.05 * sum(lengths)


def test_a_sample_longer_than_a_batch_has_one_of_its_own() -> None:
    assert batches([5, 9000, 7]) == [[0, 2], [1]]


def test_equal_lengths_stay_in_the_order_of_the_data() -> None:
    assert [i for batch in batches([3] * 5000) for i in batch] == list(range(5000))


def test_one_batch_of_states_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BATCH_TOKENS", 64)
    given: list[list[weakref.ref[Tensor]]] = []
    alive = []

    def make(batch: list[int]) -> list[list[Tensor]]:
        alive.append(sum(ref() is not None for refs in given[:-1] for ref in refs))
        made = [[torch.randn(8, WIDTH)] for _ in batch]
        given.append([weakref.ref(sample[0]) for sample in made])
        return made

    stored({}, 200, make, [8] * 200, width=WIDTH, dtype="bf16", say=complain)
    assert len(given) == 25
    assert not any(alive)


@pytest.mark.parametrize(("bad", "dtype", "error", "says"), [(float("nan"), "fp32", NonFiniteError, "not a number"), (1e5, "fp16", ConfigError, "65,504")])
def test_a_state_that_the_type_cannot_hold_is_an_error_that_names_the_sample_and_leaves_nothing(
    bad: float, dtype: str, error: type[Exception], says: str, folder: Path
) -> None:
    made = sequences([3, 4, 5])
    made[1][0][2, 3] = bad
    with pytest.raises(error, match=f"sample 1.*{says}"):
        keep(made, dtype=dtype)
    assert entries(folder) == []
    if dtype == "fp16":
        assert keep(made, dtype="bf16").tokens == 12  # the way out that the message names


def test_states_of_another_width_than_said_are_refused() -> None:
    with pytest.raises(ValueError, match="sample 0: states of 8 numbers instead of 9"):
        stored({}, 1, lambda _: sequences([3]), [3], width=9, dtype="fp32", say=complain)


# --- several entries in one pass ----------------------------------------------------------------------------------


def files_of(kept: cache.Stored) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in kept.path.iterdir()}


class Pass:
    """A pass over texts of one or two sequences each: entries for all depths, and one of means over all positions."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.wanted = [Wanted(identity={"k": k}, width=48, dtype=dtype) for k, dtype in ((2, "fp32"), (3, "bf16"), (1, "fp16"))]
        self.wanted.append(Wanted(identity={"pooled": True}, width=48, dtype="fp32"))
        self.depths = (2, 3, 1)

    @property
    def lengths(self) -> list[int]:
        return [length * (1 + i % 2) for i, length in enumerate(self.texts.lengths)]

    def batch(self, samples: list[int]) -> tuple[dict[str, Tensor], list[int], list[int]]:
        counts = [1 + i % 2 for i in samples]
        inputs, lengths, _ = self.texts.batch([i - second for i, count in zip(samples, counts, strict=True) for second in range(count)])
        return inputs, lengths, counts

    def means(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return [self.texts.model.base_model(**inputs).last_hidden_state.mean(1)]

    def maker(self, missing: list[int] | range) -> cache.Maker:
        depths, above = [self.depths[i] for i in missing if i < 3], self.means if 3 in missing else None
        return boundaries_maker(self.texts.model, self.texts.anatomy, depths, self.batch, device="cpu", precision_context=contextlib.nullcontext, above=above)

    def together(self, chosen: list[int] | None = None, **more: Any) -> list[cache.Stored]:
        chosen = list(range(4)) if chosen is None else chosen
        maker = lambda missing: self.maker([chosen[i] for i in missing])  # noqa: E731
        return stored_together([self.wanted[i] for i in chosen], len(self.lengths), maker, self.lengths, say=complain, **more)

    def alone(self, number: int) -> cache.Stored:
        one, make = self.wanted[number], self.maker([number])
        return stored(one.identity, len(self.lengths), lambda batch: make(batch)[0], self.lengths, width=one.width, dtype=one.dtype, say=complain)


@pytest.fixture
def walk(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> Pass:
    monkeypatch.setattr(cache, "BATCH_TOKENS", 100)
    return Pass(texts)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [2, 0, 1], [1], [2, 3]])
def test_one_pass_writes_each_entry_as_a_pass_of_its_own_to_the_last_bit(walk: Pass, chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    together = walk.together(chosen)
    found = [files_of(kept) for kept in together]
    cache.clear()
    alone = [walk.alone(number) for number in chosen]
    assert [kept.path.name for kept in together] == [kept.path.name for kept in alone]
    assert [kept.sha256 for kept in together] == [kept.sha256 for kept in alone]
    assert len({kept.sha256 for kept in alone}) == len(chosen)
    for kept, content in zip(alone, found, strict=True):
        assert content == files_of(kept)
    assert max(map(len, batches(walk.lengths))) > 1  # the guard: rows were padded
    assert alone[0].sequences > alone[0].samples


def test_a_block_that_changes_what_it_is_given_does_not_change_what_is_stored_below_it(walk: Pass) -> None:
    block = walk.texts.model.get_submodule(walk.texts.anatomy.stack)[2]  # type: ignore[index]
    block.register_forward_pre_hook(lambda module, args: args[0].add_(1))
    together = walk.together()[0]
    cache.clear()
    assert walk.alone(0).sha256 == together.sha256


@pytest.mark.parametrize(("chosen", "ran"), [([2, 0], [0, 1]), ([2], [0]), ([0, 1, 2], [0, 1, 2]), ([2, 3], [0, 1, 2])])
def test_each_block_runs_once_a_batch_and_none_above_the_deepest_that_is_wanted(walk: Pass, chosen: list[int], ran: list[int]) -> None:
    seen: list[int] = []
    for i, block in enumerate(walk.texts.model.get_submodule(walk.texts.anatomy.stack)):  # type: ignore[arg-type]
        block.register_forward_hook(lambda module, args, output, i=i: seen.append(i))
    walk.together(chosen)
    assert seen == ran * len(batches(walk.lengths))


def test_entries_that_are_there_are_left_alone_and_what_is_missing_is_made(walk: Pass) -> None:
    before = [walk.alone(1), walk.alone(3)]
    times = [path.stat().st_mtime_ns for kept in before for path in kept.path.iterdir()]
    told: list[Any] = []
    maker = walk.maker
    walk.maker = lambda missing: (told.append(list(missing)), maker(missing))[1]  # type: ignore[method-assign]
    found = walk.together()
    assert told == [[0, 2]]
    assert [found[1], found[3]] == before
    assert [path.stat().st_mtime_ns for kept in before for path in kept.path.iterdir()] == times
    walk.maker = lambda missing: pytest.fail("made again")  # type: ignore[method-assign]
    assert walk.together() == found


def test_an_entry_that_is_wanted_twice_is_made_once(walk: Pass) -> None:
    told: list[Any] = []
    maker = walk.maker
    walk.maker = lambda missing: (told.append(list(missing)), maker(missing))[1]  # type: ignore[method-assign]
    one, two, three = walk.together([0, 2, 0])
    assert one == three != two
    assert told == [[0, 2]]


def test_progress_is_told_after_every_batch(walk: Pass) -> None:
    told: list[tuple[int, int]] = []
    walk.together(progress=lambda done, total: told.append((done, total)))
    number = len(batches(walk.lengths))
    assert told == [(done, number) for done in range(1, number + 1)]
    assert number > 3


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_pass_that_is_interrupted_stops_before_the_next_batch_and_leaves_nothing(walk: Pass, after: int, folder: Path) -> None:
    told: list[int] = []
    with pytest.raises(Stopped) as caught:
        walk.together(progress=lambda done, total: told.append(done), interrupted=lambda: len(told) >= after)
    assert caught.value.exit_code == 75
    assert len(told) == after
    assert entries(folder) == []
    assert len(walk.together()) == 4  # no lock is left either


def test_a_fault_in_one_entry_leaves_none_of_them(walk: Pass, folder: Path) -> None:
    means = walk.means
    walk.means = lambda inputs: [means(inputs)[0] * float("nan")]  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError):
        walk.together()
    assert entries(folder) == []


def test_one_batch_of_all_states_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BATCH_TOKENS", 64)
    given: list[list[weakref.ref[Tensor]]] = []
    alive = []

    def make(batch: list[int]) -> list[list[list[Tensor]]]:
        alive.append(sum(ref() is not None for refs in given for ref in refs))
        made = [[[torch.randn(8, WIDTH)] for _ in batch] for _ in range(3)]
        given.append([weakref.ref(sample[0]) for of_entry in made for sample in of_entry])
        return made

    stored_together([Wanted(identity={"k": k}, width=WIDTH, dtype="bf16") for k in range(3)], 200, lambda _: make, [8] * 200, say=complain)
    assert len(given) == 25
    assert not any(alive)


SEVERAL = """
    import os, sys, time
    import torch
    from llmtrain import cache

    def maker(numbers):
        def make(missing):
            def states(batch):
                with open(sys.argv[1], "a") as log:
                    log.write("".join(f"{numbers[i]}\\n" for i in missing))
                while not os.path.exists(sys.argv[2]):
                    time.sleep(0.02)
                return [[[torch.full((4000, 8), float(numbers[i]))] for _ in batch] for i in missing]
            return states
        return make

    if __name__ == "__main__":
        numbers = [int(word) for word in sys.argv[3:]]
        wanted = [cache.Wanted(identity={"number": number}, width=8, dtype="fp32") for number in numbers]
        kept = cache.stored_together(wanted, 3, maker(numbers), [4000] * 3, say=lambda line: print(line, file=sys.stderr))
        print(*(one.read([2])[0, 0, 0].item() for one in kept), flush=True)
"""


def several(tmp_path: Path, gate: Path, *numbers: int) -> subprocess.Popen[str]:
    """A process that makes entries in one pass of three batches, as soon as there is a file `gate`."""
    script = tmp_path / "several.py"
    if not script.exists():  # written again, it would be empty for a moment, in which one that is starting may read it
        script.write_text(textwrap.dedent(SEVERAL))
    environment = os.environ | {"PYTHONPATH": str(Path(cache.__file__).parents[1])}
    command = [sys.executable, str(script), str(tmp_path / "log"), str(gate), *map(str, numbers)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("chosen", list(itertools.permutations([0, 1, 3])))
def test_locks_are_taken_in_one_order_whatever_is_wanted_first(walk: Pass, chosen: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    acquire = filelock.FileLock.acquire
    monkeypatch.setattr(filelock.FileLock, "acquire", lambda self, **how: (taken.append(self.lock_file), acquire(self, **how))[1])
    walk.together(list(chosen))
    assert len(taken) == 3
    assert taken == sorted(taken)


def test_processes_that_want_the_same_entries_in_any_order_do_not_wait_in_a_circle_and_make_each_once(tmp_path: Path, folder: Path) -> None:
    gate = tmp_path / "gate"
    started = [several(tmp_path, gate, *numbers) for numbers in ([1, 2, 3], [3, 2, 1], [2, 4])]
    wait_for(tmp_path / "log", 1)
    gate.touch()
    found = [process.communicate(timeout=120)[0] for process in started]
    assert found == ["1.0 2.0 3.0\n", "3.0 2.0 1.0\n", "2.0 4.0\n"]
    lines = (tmp_path / "log").read_text().splitlines()
    assert {number: lines.count(number) for number in "1234"} == dict.fromkeys("1234", 3)
    assert len(entries(folder)) == 4


def test_what_another_process_makes_is_waited_for_and_then_only_the_rest_is_made(tmp_path: Path, folder: Path) -> None:
    gate = tmp_path / "gate"
    with several(tmp_path, gate, 2) as first:
        wait_for(tmp_path / "log", 1)
        with several(tmp_path, gate, 1, 2) as second:
            assert second.stderr is not None
            assert "waiting for another process" in second.stderr.readline()
            gate.touch()
            assert second.communicate(timeout=120)[0] == "1.0 2.0\n"
        assert first.communicate(timeout=120)[0] == "2.0\n"
    assert (tmp_path / "log").read_text() == "2\n" * 3 + "1\n" * 3


def test_one_who_waits_for_another_process_can_be_interrupted(tmp_path: Path) -> None:
    wanted, said = [Wanted(identity={"number": 7}, width=8, dtype="fp32")], list[str]()
    with several(tmp_path, tmp_path / "gate", 7) as process:
        wait_for(tmp_path / "log", 1)
        with pytest.raises(Stopped):
            stored_together(wanted, 3, lambda _: pytest.fail("made"), [4000] * 3, say=said.append, interrupted=lambda: True)
        assert process.poll() is None
        assert "waiting for another process" in said[0]
        process.kill()


# --- found again, or made again -----------------------------------------------------------------------------------


def test_states_are_made_once() -> None:
    first = keep(sequences([3, 4]), {"a": 1})
    assert stored({"a": 1}, 2, never, [3, 4], width=WIDTH, dtype="fp32", say=complain) == first


def test_ready_says_whether_an_entry_is_there() -> None:
    assert not cache.ready({"a": 1})
    keep(sequences([3, 4]), {"a": 1})
    assert cache.ready({"a": 1})
    assert not cache.ready({"a": 2})


@pytest.mark.parametrize("identity", [{"a": 2}, {"a": 1, "b": None}, {}])
def test_another_identity_is_another_entry(identity: dict[str, Any], folder: Path) -> None:
    keep(sequences([3, 4]), {"a": 1})
    assert keep(sequences([5]), identity).tokens == 5
    assert len(entries(folder)) == 2


@pytest.mark.parametrize(("name", "value"), [("version", lambda _: "another"), ("FORMAT", 99), ("BATCH_TOKENS", 64)])
def test_another_library_format_or_batch_composition_is_another_entry(name: str, value: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    keep(sequences([3, 4]))
    monkeypatch.setattr(cache, name, value)
    assert not cache.ready({})
    keep(sequences([3, 4]))
    assert len(entries(folder)) == 2


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({}, True),
        ({"a": torch.tensor([1.0, 2.5])}, False),
        ({"a": torch.tensor([[1.0, 2.0]])}, False),
        ({"a": torch.tensor([1.0, 2.0], dtype=torch.float64)}, False),
        ({"b": torch.tensor([-0.0])}, False),
        ({"c": torch.tensor([])}, False),
    ],
)
def test_a_fingerprint_of_weights_sees_names_types_shapes_and_bits_but_no_order(change: dict[str, Tensor], equal: bool) -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0]), "scalar": torch.tensor(3, dtype=torch.bfloat16)}
    other = dict(reversed({**weights, **change}.items()))
    found = [cache.weights_fingerprint((name, cache.tensor_digest(tensor)) for name, tensor in some.items()) for some in (weights, other)]
    assert (found[0] == found[1]) == equal


def flip(entry: Path, name: str) -> None:
    content = bytearray((entry / name).read_bytes())
    content[len(content) // 2] ^= 1
    (entry / name).write_bytes(content)


def truncate(entry: Path) -> None:
    (entry / cache.STATES).write_bytes((entry / cache.STATES).read_bytes()[:-1])


def edit(entry: Path, name: str, **values: Any) -> None:
    """Change a JSON file, and the manifest with it, as another version would have written them."""
    from llmtrain import files

    (entry / name).write_text(json.dumps(json.loads((entry / name).read_text()) | values))
    if name == cache.ABOUT:
        (entry / files.MANIFEST).unlink()
        files.write_manifest(entry)


DAMAGE: list[Any] = [
    pytest.param(lambda entry: flip(entry, cache.STATES), "states.bin was changed", id="a bit of the states"),
    pytest.param(lambda entry: flip(entry, cache.PLACES), "places.i64 was changed", id="a bit of the index"),
    pytest.param(lambda entry: flip(entry, cache.ABOUT), "about.json was changed", id="a bit of the facts"),
    pytest.param(truncate, "bytes instead of", id="truncated"),
    pytest.param(lambda entry: (entry / cache.STATES).unlink(), "states.bin is missing", id="states missing"),
    pytest.param(lambda entry: (entry / "manifest.json").unlink(), "manifest.json is missing", id="manifest missing"),
    pytest.param(lambda entry: (entry / "manifest.json").write_text("{"), "cannot be read", id="manifest garbled"),
    pytest.param(lambda entry: edit(entry, "manifest.json", version=99), "version 99", id="manifest of another version"),
    pytest.param(lambda entry: edit(entry, cache.ABOUT, format=99), "format is 99", id="another format"),
    pytest.param(lambda entry: edit(entry, cache.ABOUT, dtype="bf16"), "dtype is bf16", id="another dtype"),
    pytest.param(lambda entry: edit(entry, cache.ABOUT, samples=1), "samples is 1", id="another number of samples"),
    pytest.param(lambda entry: edit(entry, cache.ABOUT, width=4), "width is 4", id="another width"),
    pytest.param(lambda entry: edit(entry, "manifest.json", files={}), "cannot be read", id="manifest of nothing"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
def test_b28_a_damaged_entry_is_made_again_with_one_line_that_says_why(damage: Callable[[Path], None], why: str, folder: Path) -> None:
    made, said = sequences([3, 40, 5]), list[str]()
    before = keep(made)
    damage(before.path)
    after = keep(made, say=said.append)
    assert after == before
    assert torch.equal(after.read([1])[0], made[1][0])
    assert len(said) == 1
    assert "made again" in said[0]
    assert why in said[0]
    assert stored({}, 3, never, [3, 40, 5], width=WIDTH, dtype="fp32", say=complain) == before
    assert entries(folder) == [before.path]


@pytest.mark.parametrize("damage", [pytest.param(p.values[0], id=p.id) for p in DAMAGE[:8]])
def test_a_damaged_entry_is_not_ready(damage: Callable[[Path], None]) -> None:
    damage(keep(sequences([3, 40, 5])).path)
    assert not cache.ready({})


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes are read to verify them."""
    from llmtrain import files

    found: list[str] = []
    plain = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: (found.append(path.name), plain(path))[1])
    return found


def made_long_ago(entry: Path) -> None:
    for path in entry.iterdir():
        os.utime(path, (1e9, 1e9))


def test_an_entry_is_verified_once_in_each_process(hashed: list[str]) -> None:
    made_long_ago(keep(sequences([3, 4])).path)
    hashed.clear()
    assert cache.ready({})
    assert sorted(hashed) == sorted([cache.ABOUT, cache.FIRST, cache.PLACES, cache.STATES])
    hashed.clear()
    assert cache.ready({})
    assert keep(sequences([3, 4])).tokens == 7
    assert hashed == []


@pytest.mark.parametrize("when", [1e9 + 1, 1e9 - 1, None])
def test_an_entry_is_verified_again_where_a_file_of_it_has_another_time(when: float | None, hashed: list[str]) -> None:
    entry = keep(sequences([3, 4])).path
    made_long_ago(entry)
    assert cache.ready({})
    flip(entry, cache.STATES)
    if when is not None:
        os.utime(entry / cache.STATES, (when, when))
    assert not cache.ready({})


def test_what_is_verified_while_its_files_are_young_is_verified_again(hashed: list[str]) -> None:
    """Within the grain of a file system's clock, a change would not show."""
    keep(sequences([3, 4]))
    hashed.clear()
    assert cache.ready({})
    assert cache.STATES in hashed


# --- several makers, dead makers, full disks ----------------------------------------------------------------------

MAKER = """
    import sys, time
    import torch
    from llmtrain import cache

    def make(batch):
        with open(sys.argv[1], "a") as log:
            log.write(f"{batch[0]}\\n")
        time.sleep(float(sys.argv[2]))
        return [[torch.full((4000, 8), float(i))] for i in batch]

    if __name__ == "__main__":
        kept = cache.stored({"maker": 1}, 5, make, [4000] * 5, width=8, dtype="fp32", say=lambda line: print(line, file=sys.stderr))
        print(kept.sha256, kept.read([4])[0, 0, 0].item(), flush=True)
"""


def maker(tmp_path: Path, seconds: float, before: str = "") -> subprocess.Popen[str]:
    """A process that makes an entry of five batches, each in so many seconds."""
    script = tmp_path / "maker.py"
    script.write_text(textwrap.dedent(before) + textwrap.dedent(MAKER))
    environment = os.environ | {"PYTHONPATH": str(Path(cache.__file__).parents[1])}
    command = [sys.executable, str(script), str(tmp_path / "log"), str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, lines: int) -> None:
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        time.sleep(0.05)


def test_of_two_makers_one_makes_the_states_and_both_have_them(tmp_path: Path, folder: Path) -> None:
    results = [process.communicate() for process in [maker(tmp_path, 0.5), maker(tmp_path, 0.5)]]
    assert (tmp_path / "log").read_text() == "0\n1\n2\n3\n4\n"
    assert results[0][0] == results[1][0] != ""
    assert len(entries(folder)) == 1


def test_b30_a_maker_killed_in_the_middle_leaves_nothing_that_is_believed_and_holds_up_nobody(tmp_path: Path, folder: Path) -> None:
    with maker(tmp_path, 1) as killed:
        wait_for(tmp_path / "log", 3)
        killed.send_signal(signal.SIGKILL)
    assert [path.name[:5] for path in entries(folder)] == [".tmp-"]  # the guard: it was killed in the middle
    assert not cache.ready({"maker": 1})
    (tmp_path / "log").unlink()
    with maker(tmp_path, 0) as next_one:
        assert next_one.communicate()[0].endswith(" 4.0\n")
    assert (tmp_path / "log").read_text() == "0\n1\n2\n3\n4\n"
    assert [path.name[:5] for path in entries(folder)] != [".tmp-"]
    assert len(entries(folder)) == 1


def test_a_full_disk_is_a_device_error_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    with maker(tmp_path, 0, limit) as process:
        errors = process.communicate()[1]
    assert "DeviceError" in errors
    assert entries(folder) == []


# --- listed and cleared -------------------------------------------------------------------------------------------


def test_entries_are_listed_with_what_they_are(folder: Path) -> None:
    assert cache.listed() == []
    kept = keep(sequences([3, 40]), {"depth": 2}, dtype="bf16")
    keep(sequences([3]), {"depth": 3})
    assert len(cache.listed()) == 2
    (found,) = [entry for entry in cache.listed() if entry.path == kept.path]
    assert found.bytes == sum(path.stat().st_size for path in kept.path.iterdir()) > 43 * WIDTH * 2
    assert {name: found.about[name] for name in ("samples", "tokens", "dtype", "identity")} == {
        "samples": 2,
        "tokens": 43,
        "dtype": "bf16",
        "identity": {"depth": 2},
    }
    assert abs(found.made - time.time()) < 60


def test_an_entry_that_cannot_be_read_is_listed_too() -> None:
    (keep(sequences([3])).path / cache.ABOUT).write_text("[1")
    assert [entry.about for entry in cache.listed()] == [{}]


def test_clear_removes_all_entries_and_what_dead_makers_left(folder: Path) -> None:
    assert cache.clear() == (0, 0)
    for depth in range(3):
        keep(sequences([3, 40]), {"depth": depth})
    left = folder / f".tmp-{'0' * 64}-1"
    left.mkdir()
    (left / cache.STATES).write_bytes(b"12345")
    held = sum(entry.bytes for entry in cache.listed())
    assert cache.clear() == (3, held + 5)
    assert entries(folder) == []


def test_clear_leaves_an_entry_that_is_being_made(tmp_path: Path, folder: Path) -> None:
    keep(sequences([3]))
    with maker(tmp_path, 1) as process:
        wait_for(tmp_path / "log", 1)
        assert cache.clear()[0] == 1
        assert [path.name[:5] for path in entries(folder)] == [".tmp-"]
        assert process.communicate()[0].endswith(" 4.0\n")
    assert len(cache.listed()) == 1


# --- whether it pays ----------------------------------------------------------------------------------------------

# The model and data of the measurements: 6 blocks, 384 wide, 284,000 tokens in 10,568 sequences, bf16.
MEASURED: dict[str, Any] = {
    "blocks": 6,
    "pooled": False,
    "tokens": 284_000,
    "sequences": 10_568,
    "width": 384,
    "bytes_per_number": 2,
    "ready": False,
    "free_gb": 50.0,
}


def case(chosen: Settings, *, name: str = "one", source: str = "rows", members: int = 1, **facts: Any) -> Case:
    """Runs on one data set, whose entry is `name` and comes from the pass `source`."""
    pooled, tokens, sequences = facts["pooled"], facts["tokens"], facts["sequences"]
    gigabytes = (sequences if pooled else tokens) * facts["width"] * facts["bytes_per_number"] / 1e9
    piece = Piece(entry=name, source=source, tokens=tokens, gigabytes=gigabytes, ready=facts["ready"])
    plain = {key: facts[key] for key in ("depth", "blocks", "pooled", "passes", "width", "flops") if key in facts}
    return Case(settings=chosen, members=members, pieces=[piece], **plain)


def decide(chosen: Settings, **facts: Any) -> cache.Decision:
    """On runs that share nothing with others."""
    return cache.decide([case(chosen, **facts)], free_gb=facts["free_gb"])[0]


def settings(use: Use = Use.auto, max_gb: float = 20.0, dtype: Dtype = Dtype.auto) -> Settings:
    return Settings(use=use, max_gb=max_gb, dtype=dtype)


@pytest.mark.parametrize(
    ("depth", "passes", "changed", "use"),
    [
        pytest.param(4, 3, {}, True, id="4 of 6 frozen, 3 passes: 1.36 measured"),
        pytest.param(2, 3, {}, True, id="2 of 6 frozen, 3 passes: 1.09 measured"),
        pytest.param(5, 5, {}, True, id="5 of 6 frozen, 5 passes: 1.94 measured"),
        pytest.param(4, 1, {}, False, id="1 pass: a loss"),
        pytest.param(2, 1, {}, False, id="1 pass, little frozen: a loss"),
        pytest.param(4, 1, {"ready": True}, True, id="1 pass, but the states are there"),
        pytest.param(0, 10, {}, False, id="nothing is frozen"),
        pytest.param(1, 2, {}, False, id="1 of 6 frozen, 2 passes: no more than noise"),
        pytest.param(6, 3, {"pooled": True}, True, id="features"),
        pytest.param(6, 1, {"pooled": True}, True, id="features, 1 pass"),
        pytest.param(4, 3, {"flops": 1e14}, False, id="a device to which the disk is slow"),
        pytest.param(4, 3, {"flops": 1e14, "width": 8192}, True, id="the same with wide blocks"),
    ],
)
def test_auto_decides_by_cost(depth: int, passes: float, changed: dict[str, Any], use: bool) -> None:
    found = decide(settings(max_gb=1000), depth=depth, passes=passes, **{**MEASURED, "free_gb": 1000.0, **changed})
    assert found.use == use
    assert "\n" not in found.why
    assert depth == 0 or f"{passes} passes cost" in found.why


@pytest.mark.parametrize(("passes", "said"), [(20, "are computed once: 20 passes"), (0.1, "are computed once, for later runs: in this one 0.1 passes")])
def test_vectors_are_stored_also_where_it_pays_in_later_runs_alone_and_that_is_said(passes: float, said: str) -> None:
    found = decide(settings(), depth=6, passes=passes, **{**MEASURED, "pooled": True})
    assert found.use
    assert said in found.why


@pytest.mark.parametrize(("depth", "passes", "measured"), [(6, 3, 2.8), (5, 3, 1.65), (4, 3, 1.36), (2, 3, 1.09), (4, 5, 1.48), (2, 10, 1.13), (4, 1, 0.97)])
def test_the_cost_model_agrees_with_what_was_measured_to_a_tenth(depth: int, passes: int, measured: float) -> None:
    balance = cache._Balance([case(settings(), depth=depth, passes=passes, **MEASURED)])
    assert balance.again(0) / (balance.reading(0) + balance.making([0])) == pytest.approx(measured, rel=0.1)


def test_the_size_is_that_of_tokens_or_of_vectors() -> None:
    assert decide(settings(), depth=4, passes=3, **MEASURED).gigabytes == pytest.approx(284_000 * 384 * 2 / 1e9)
    assert decide(settings(), depth=6, passes=3, **{**MEASURED, "pooled": True}).gigabytes == pytest.approx(10_568 * 384 * 2 / 1e9)


@pytest.mark.parametrize("depth", [0, 4])
def test_never_is_never(depth: int) -> None:
    assert decide(settings(Use.never), depth=depth, passes=100, **{**MEASURED, "ready": True}).use is False


def test_always_does_what_would_not_pay() -> None:
    assert decide(settings(Use.always), depth=4, passes=1, **MEASURED).use is True


REFUSED: list[Any] = [
    pytest.param(20.0, {"tokens": 100_000_000}, ConfigError, ["76.80 GB", "cache.max_gb allows 20"], "cache.max_gb=77", id="above the budget"),
    pytest.param(20.0, {"free_gb": 0.2}, DeviceError, ["0.22 GB", "0.20 GB are free"], "LLMTRAIN_CACHE", id="above what is free"),
    pytest.param(20.0, {"depth": 0}, ConfigError, ["no block is frozen"], "freeze", id="nothing frozen"),
]


@pytest.mark.parametrize(("max_gb", "changed", "error", "says", "fix"), REFUSED)
def test_where_states_cannot_be_stored_auto_says_the_numbers_and_always_is_an_error_with_the_way_out(
    max_gb: float, changed: dict[str, Any], error: type[ConfigError | DeviceError], says: list[str], fix: str
) -> None:
    facts = {"depth": 4, "passes": 5.0, **MEASURED, **changed}
    found = decide(settings(max_gb=max_gb), **facts)
    assert found.use is False
    assert all(text in found.why for text in says)
    with pytest.raises(error) as caught:
        decide(settings(Use.always, max_gb), **facts)
    assert caught.value.what == found.why
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize("use", [Use.auto, Use.always])
def test_what_is_on_the_disk_already_needs_no_room(use: Use) -> None:
    assert decide(settings(use, max_gb=0.1), depth=4, passes=5, **{**MEASURED, "ready": True, "free_gb": 0.0}).use is True


def test_free_space_is_that_of_the_stores_disk(folder: Path) -> None:
    import shutil

    assert cache.free_gb() == pytest.approx(shutil.disk_usage(folder.parent).free / 1e9, abs=1)


# --- many runs ----------------------------------------------------------------------------------------------------


def runs(depth: int, passes: float = 1.0, use: Use = Use.auto, **changed: Any) -> Case:
    """Runs of the measured model on the measured data, at some depth; an entry for each depth."""
    pooled = changed.pop("pooled", False)
    name = changed.pop("name", f"{'vectors' if pooled else depth}")
    return case(settings(use, 1000), name=name, depth=depth, passes=passes, **{**MEASURED, "pooled": pooled, **changed})


def used(*cases: Case, free_gb: float = 50.0) -> list[bool]:
    return [decision.use for decision in cache.decide(cases, free_gb=free_gb)]


def test_an_entry_that_many_runs_read_is_paid_once() -> None:
    assert used(runs(4)) == [False]
    assert used(runs(4, members=3)) == [True]
    assert used(runs(4), runs(4), runs(4)) == [True] * 3  # the same entry, by runs that differ elsewhere
    assert used(runs(4, name="a", source="a"), runs(4, name="b", source="b"), runs(4, name="c", source="c")) == [False] * 3
    (found,) = cache.decide([runs(4, members=3)], free_gb=50)
    assert "for 3 runs" in found.why


def test_a_pass_costs_what_its_deepest_boundary_does_and_the_others_are_free() -> None:
    deep, shallow = runs(6, 20, pooled=True), runs(2)
    assert used(shallow) == [False]
    assert used(deep, shallow) == [True, True]
    assert used(deep, runs(2, source="other")) == [True, False]
    assert "in one pass with 1 other boundary" in cache.decide([deep, shallow], free_gb=50)[1].why


def test_boundaries_of_which_none_pays_for_the_pass_alone_can_pay_for_it_together() -> None:
    alone = [runs(depth) for depth in (3, 4, 5)]
    assert [used(one) for one in alone] == [[False]] * 3
    assert used(*alone) == [True] * 3


@pytest.mark.parametrize("seed", range(8))
def test_what_is_chosen_is_the_cheapest_of_all_choices(seed: int) -> None:
    draw = random.Random(seed)
    cases = [
        runs(depth, draw.choice([0.05, 0.2, 0.4, 0.5, 0.7, 1]), members=draw.choice([1, 2]), ready=draw.random() < 0.2)
        for depth in draw.choices(range(1, 6), k=5)
    ]
    flops = draw.choice([1e11, 1e12])
    balance = cache._Balance([dataclasses.replace(one, flops=flops) for one in cases])
    choices = [set(some) for number in range(6) for some in itertools.combinations(range(5), number)]
    assert balance._score(balance.best(set(range(5)))) == pytest.approx(max(map(balance._score, choices)), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_a_decision_is_the_same_whatever_is_decided_beside_it_on_other_data(seed: int) -> None:
    draw = random.Random(seed)
    cases = [runs(draw.randrange(1, 6), draw.choice([0.5, 1, 1.5, 2, 3]), name=f"{i}", source=f"{i}") for i in range(6)]
    assert used(*cases) == [used(one)[0] for one in cases]


def test_what_is_there_costs_its_reading_alone() -> None:
    assert used(runs(4, ready=True), runs(3)) == [True, False]
    assert used(runs(4, 0.001, ready=True)) == [False]


@pytest.mark.parametrize("use", [Use.never, Use.always])
def test_what_one_case_is_told_does_not_bind_the_others(use: Use) -> None:
    assert used(runs(4, 0.1, use), runs(3, 0.1, source="other")) == [use is Use.always, False]
    assert used(runs(3, 3), runs(4, 3, use)) == [True, use is Use.always]


def test_where_the_disk_has_no_room_for_all_what_saves_least_for_each_gb_is_left_out_and_that_is_said() -> None:
    cases = [runs(5, 3, members=9), runs(4, 3), runs(6, 9, pooled=True)]
    states, vectors = cases[0].gigabytes, cases[2].gigabytes
    assert used(*cases) == [True] * 3
    found = cache.decide(cases, free_gb=(1.5 * states + vectors) / cache.SPARE)
    assert [decision.use for decision in found] == [True, False, True]
    assert "are left out" in found[1].why
    assert f"{(1.5 * states + vectors) / cache.SPARE:.2f} GB are free" in found[1].why


def test_an_entry_of_several_cases_is_left_out_for_all_of_them() -> None:
    cases = [runs(4, 3), runs(4, 4), runs(5, 3, members=20)]
    assert used(*cases, free_gb=1.5 * cases[0].gigabytes / cache.SPARE) == [False, False, True]


def test_always_is_not_left_out_where_the_disk_is_short() -> None:
    cases = [runs(5, 30, members=9), runs(4, 0.1, Use.always)]
    assert used(*cases, free_gb=1.5 * cases[0].gigabytes / cache.SPARE) == [False, True]


def test_always_is_an_error_where_all_that_it_asks_for_has_no_room() -> None:
    cases = [runs(5, 3, Use.always), runs(4, 3, Use.always)]
    with pytest.raises(DeviceError, match=r"cache\.use=always asks for take 0\.44 GB"):
        cache.decide(cases, free_gb=1.5 * cases[0].gigabytes / cache.SPARE)


@pytest.mark.parametrize("max_gb", [0.1, 1.0])
def test_max_gb_is_of_one_case_and_not_of_all(max_gb: float) -> None:
    cases = [case(settings(max_gb=max_gb), name=f"{depth}", depth=depth, passes=3, **MEASURED) for depth in (2, 3, 4, 5)]
    assert sum(one.gigabytes for one in cases) > 0.8
    assert used(*cases) == [max_gb == 1.0] * 4


@pytest.mark.parametrize("max_gb", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_a_number_of_gb_above_0(max_gb: float) -> None:
    with pytest.raises(SettingError, match="max_gb"):
        settings(max_gb=max_gb)


@pytest.mark.parametrize(("dtype", "precision", "expected"), [(Dtype.auto, "bf16", "bf16"), (Dtype.auto, "fp32", "fp32"), (Dtype.fp16, "fp32", "fp16")])
def test_numbers_are_stored_in_the_runs_precision_unless_told(dtype: Dtype, precision: str, expected: str) -> None:
    assert settings(dtype=dtype).stored_as(precision) == expected


def test_settings_are_checked_without_torch() -> None:
    code = "import sys; import llmtrain.cache, llmtrain.command.cache; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(cache.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True).stdout == "[]\n"
