"""A model divided over processes trains as an undivided one does, and its checkpoints are read by any number of processes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st

from llmtrain import checkpoint, files, sharding
from llmtrain.command.parts import parts, without_effect
from llmtrain.config import compose
from llmtrain.errors import CheckpointError, ConfigError, DeviceError, LLMTrainError
from llmtrain.runtime import Precision, refuse_undividable
from llmtrain.sharding import INDEX, Piece, agreed, stored
from tests.command.test_train import damage
from tests.conftest import TINY, TINY_FINETUNE, Pretrained, Train, outcome, tiny

HERE = Path(__file__).parent


def alone(value: Any) -> list[Any]:
    return [value]


# --- two processes ------------------------------------------------------------------------------------------------


def test_two_processes_train_a_divided_model_as_one_trains_a_whole_one_and_its_checkpoints_go_both_ways(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "sharded.py"), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    first, second = (json.loads((tmp_path / f"claims-{rank}.json").read_text()) for rank in range(2))
    for one, two in first["losses"] + first["norms"]:
        assert two == pytest.approx(one, rel=1e-6)
    for found in (first, second):
        assert all(found["frozen"])
        assert len(found["frozen"]) == 5
        assert all(found["moved"])
        assert len(found["moved"]) == 7
        assert all(found[claim] for claim in ("tied", "two to one", "two to two", "one to two", "goes on", "gathered"))
        assert found["manifest"] is None
        assert found["failed shard"] == ["DeviceError", "model-00002-of-00002.safetensors: no space"]
        assert found["failed small"] == ["DeviceError", "state.json: no space"]
        assert found["left shard"] == found["left small"] == ["last", "step-00000004"]
        assert found["misfit"][0] == "CheckpointError"
    assert first["gathered tied"]
    assert first["gathered runs"]
    assert first["local"] + second["local"] == first["all"]
    assert [first["opened"], second["opened"]] == [[f"model-0000{n}-of-00002.safetensors"] for n in (1, 2)]
    assert first["files"] == [
        "index.json",
        "manifest.json",
        *(f"{section}-0000{n}-of-00002.safetensors" for section in ("model", "optimizer") for n in (1, 2)),
        "state.json",
    ]
    kept = [safetensors.torch.load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / f"model-0000{n}-of-00002.safetensors") for n in (1, 2)]
    assert [len(part["embeddings.weight"]) for part in kept] == [6, 5]  # rows of 11
    assert not any(name.startswith(("blocks.0", "table", "counts", "head.weight")) for part in kept for name in part)  # the base's, or tied
    assert ["scale" in part for part in kept] == [True, False]


# --- pieces -------------------------------------------------------------------------------------------------------


def folder_of(folder: Path, tensor: torch.Tensor, cuts: list[int], change: Callable[[dict[str, Any]], None] = lambda index: None) -> Path:
    """A folder that holds a tensor in pieces of rows."""
    folder.mkdir()
    edges = [0, *sorted(cuts), len(tensor)]
    pieces = []
    for number, (a, b) in enumerate(itertools.pairwise(edges)):
        file = f"model-{number:05d}.safetensors"
        (folder / file).write_bytes(safetensors.torch.save({"w": tensor[a:b].contiguous()}))
        pieces.append({"file": file, "offset": [a, *[0] * (tensor.ndim - 1)], "shape": [b - a, *tensor.shape[1:]]})
    index = {"version": 1, "model": {"w": {"shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:], "pieces": pieces}}}
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), cuts=st.lists(st.integers(0, 9), max_size=3), begin=st.integers(0, 9), length=st.integers(0, 9), wide=st.booleans())
def test_any_part_is_read_from_any_pieces(tmp_path_factory: pytest.TempPathFactory, rows: int, cuts: list[int], begin: int, length: int, wide: bool) -> None:
    tensor = torch.arange(rows * 6.0).view(rows, 2, 3) if wide else torch.arange(rows)
    begin, cuts = min(begin, rows), [min(cut, rows) for cut in cuts]
    length = min(length, rows - begin)
    folder = folder_of(tmp_path_factory.mktemp("pieces") / "folder", tensor, cuts)
    with stored(folder, "model") as found:
        assert torch.equal(found.read("w"), tensor)
        part = found.read("w", (begin, *[0] * (tensor.ndim - 1)), (length, *tensor.shape[1:]))
        assert torch.equal(part, tensor[begin : begin + length])
        assert part.dtype == tensor.dtype


def spoil(**entry: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["model"]["w"].update(entry)


def cut_off(index: dict[str, Any]) -> None:
    del index["model"]["w"]["pieces"][0]


def outside(index: dict[str, Any]) -> None:
    index["model"]["w"]["pieces"][0]["file"] = "../model-00000.safetensors"


def longer(index: dict[str, Any]) -> None:
    index["model"]["w"]["shape"] = [2**50, 2]
    index["model"]["w"]["pieces"] = [{**index["model"]["w"]["pieces"][0], "shape": [2**50, 2]}]


@pytest.mark.parametrize(
    "change",
    [
        cut_off,
        outside,
        longer,
        spoil(pieces=[]),
        spoil(pieces="no"),
        spoil(dtype="int64"),
        spoil(shape=[-4, -2]),
        spoil(shape=None),
        lambda index: index.update(version=2),
        lambda index: index.pop("model"),
    ],
    ids=["a piece is gone", "a file outside", "a terabyte", "no pieces", "words", "another type", "negative", "no shape", "another version", "no section"],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    folder = folder_of(tmp_path / "folder", torch.ones(4, 2), [2], change)
    shutil.copy(folder / "model-00000.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="folder"), stored(folder, "model") as found:
        found.read("w")


def test_a_folder_is_verified_by_several_processes_together(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    files.write_manifest(tmp_path)
    (tmp_path / "b").write_text("x")
    assert [files.problem(tmp_path, (i, 2)) is None for i in range(2)] == [True, False]


def test_a_file_that_another_process_wrote_elsewhere_is_missed(tmp_path: Path) -> None:
    facts = {"bytes": 1, "sha256": hashlib.sha256(b"a").hexdigest()}
    with pytest.raises(DeviceError, match="of another process is not there") as caught:
        files.write_manifest(tmp_path, known={"a": facts})
    assert "a file system that all processes share" in str(caught.value.fix)
    (tmp_path / "a").write_text("ab")
    with pytest.raises(DeviceError, match="has 2 bytes here, and 1 for the process that wrote it"):
        files.write_manifest(tmp_path, known={"a": facts})
    (tmp_path / "a").write_text("a")
    files.write_manifest(tmp_path, known={"a": facts})
    assert files.problem(tmp_path) is None


# --- agreeing -----------------------------------------------------------------------------------------------------


def test_an_error_of_another_process_is_raised_here() -> None:
    with pytest.raises(DeviceError, match="full"):
        agreed(lambda mine: [mine, (None, DeviceError("full"))], lambda: 1)


def test_all_raise_the_same_error_where_several_have_one() -> None:
    def fail() -> None:
        raise CheckpointError("mine")

    with pytest.raises(DeviceError, match="theirs"):
        agreed(lambda mine: [(None, DeviceError("theirs")), mine], fail)


def test_an_error_that_is_not_ours_stays_itself_here_and_is_told_to_the_others() -> None:
    told: list[Any] = []

    def gather(mine: Any) -> list[Any]:
        told.append(mine[1])
        return [mine]

    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        agreed(gather, fail)
    assert isinstance(told[0], LLMTrainError)
    assert told[0].what == "RuntimeError: out of memory"


def test_one_process_writes_a_folder_that_reads_back(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(6.0).view(2, 3), "step": torch.tensor(3.0), "none": torch.ones(0, 2)}
    sharding.write(tmp_path / "folder", {"model": tensors}, {"state.json": b"{}"}, {"step": 1}, rank=0, gather=alone)
    assert files.problem(tmp_path / "folder") is None
    with stored(tmp_path / "folder", "model") as found:
        assert all(torch.equal(found.read(name), tensor) for name, tensor in tensors.items())


def test_the_piece_of_a_whole_tensor_is_all_of_it() -> None:
    tensor = torch.ones(2, 3)
    assert sharding.mine(tensor)[0] == (0, 0)
    assert sharding.mine(tensor)[1].data_ptr() == tensor.data_ptr()
    assert not sharding.divided(tensor)
    assert sharding.whole(tensor) is tensor
    assert Piece("f", (0, 0), (2, 3)).shape == (2, 3)


# --- what cannot be divided ---------------------------------------------------------------------------------------

FSDP = ("devices=2", "distributed.strategy=fsdp")


def test_compiling_a_divided_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer.compile=true with distributed.strategy=fsdp"):
        parts(compose("pretrain", [*tiny(), *FSDP, "trainer.compile=true"]).config)
    parts(compose("pretrain", [*tiny(), "distributed.strategy=fsdp", "trainer.compile=true"]).config)  # one process


def test_fp16_is_refused_and_so_is_accelerates_own_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("pretrain", [*tiny("device=auto"), *FSDP]).config
    divided = parts(config).runtime
    with pytest.raises(ConfigError, match=r"distributed.strategy=fsdp with precision=fp16"):
        refuse_undividable(divided, "cuda", Precision.fp16, 2)
    refuse_undividable(divided, "cuda", Precision.bf16, 2)
    refuse_undividable(divided, "cuda", Precision.fp16, 1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="accelerate launch was told to use FSDP"):
        parts(config)


def test_a_strategy_for_one_process_is_said_to_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = compose("pretrain", [*tiny(), "distributed.strategy=fsdp"])
    said = "distributed.strategy has no effect: there is one process"
    assert said in without_effect(parts(composed.config), composed.given)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():  # as torchrun sets them; devices says nothing then
        monkeypatch.setenv(name, value)
    assert said not in without_effect(parts(composed.config), composed.given)


# --- damaged --------------------------------------------------------------------------------------------------------

SHARDS = [f"{section}-0000{n}-of-00002.safetensors" for section in ("model", "optimizer") for n in (1, 2)]
DIVIDED = ("trainer.max_steps=4", "checkpoint.keep_best=false", "checkpoint.keep_last=9")


def divide(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint again as two processes that share the model would: here two threads, each of which holds its rows."""
    rank, met, said = threading.local(), threading.Barrier(2, timeout=60), [None, None]
    sections = {name: dict(sorted(safetensors.torch.load((path / f"{name}.safetensors").read_bytes()).items())) for name in ("model", "optimizer")}
    small = {"state.json": (path / "state.json").read_bytes()}

    def mine(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.Tensor]:
        if not tensor.ndim:
            return (), tensor
        half = -(-len(tensor) // 2)
        return (rank.number * half, *[0] * (tensor.ndim - 1)), tensor[rank.number * half :][:half]

    def gather(value: Any) -> list[Any]:
        said[rank.number] = value
        met.wait()
        found = list(said)
        met.wait()
        return found

    def write(number: int) -> None:
        rank.number = number
        sharding.write(path, sections, small, {"step": checkpoint.step_of(path)}, rank=number, gather=gather)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(sharding, "mine", mine)
        patch.setattr(sharding, "divided", lambda tensor: tensor.ndim > 0)
        list(threads.map(write, range(2)))
    assert sorted(file.name for file in path.iterdir()) == sorted([*SHARDS, INDEX, "state.json", "manifest.json"])
    assert files.problem(path) is None


@pytest.fixture(scope="module")
def divided(token_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run whose checkpoints two processes share, and what it came to."""
    from llmtrain.command import train as command

    run = tmp_path_factory.mktemp("divided") / "run"
    typed = [*tiny(*DIVIDED), f"output_dir={run}"]
    assert command.start(compose("pretrain", typed), typed, "pretrain") == 0
    unbroken = outcome(run)
    with pytest.MonkeyPatch.context() as patch:
        for path in checkpoint.listed(run):
            divide(path, patch)
    return run, unbroken


@pytest.fixture
def shared(divided: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(divided[0], tmp_path / "run", symlinks=True))


def exchange(path: Path, fault: str, name: str) -> None:
    """Put another file in a file's place: that of the other process, or of another step's checkpoint."""
    if fault == "the other's":
        other = path / (name.replace("-00001-", "-00002-") if "-00001-" in name else name.replace("-00002-", "-00001-"))
        kept = other.read_bytes()
        shutil.copyfile(path / name, other)
        (path / name).write_bytes(kept)
    else:
        shutil.copyfile(path.with_name("step-00000002") / name, path / name)


# An index of another step is the same to the byte, unless tensors have other shapes.
FAULTS = [
    *((name, fault) for name in (*SHARDS, INDEX, "state.json", "manifest.json") for fault in ("delete", "empty", "half", "last byte", "bit")),
    *((name, fault) for name in SHARDS for fault in ("the other's", "another step's")),
    *((name, "another step's") for name in ("state.json", "manifest.json")),
]
ORDINARY = [(SHARDS[0], "the other's"), (SHARDS[1], "bit"), (SHARDS[3], "delete"), (INDEX, "half"), (INDEX, "delete")]
EACH = pytest.mark.parametrize(("name", "fault"), [pytest.param(*one, marks=() if one in ORDINARY else pytest.mark.long) for one in FAULTS])


def harm(path: Path, name: str, fault: str) -> str:
    """Damage a file of a checkpoint of two processes, and return a pattern of what is to be named."""
    exchange(path, fault, name) if fault.endswith("'s") else damage(path / name, fault)
    # Two that are exchanged are both wrong; a foreign manifest says of other files what they are not.
    return {"the other's": name.split("-")[0], "another step's": "model-00001" if name == "manifest.json" else re.escape(name)}.get(fault, re.escape(name))


@EACH
def test_a_damaged_part_of_the_newest_checkpoint_of_several_processes_is_named_and_the_previous_one_used(
    train: Train, divided: tuple[Path, dict[str, Any]], shared: Path, capsys: pytest.CaptureFixture[str], name: str, fault: str
) -> None:
    named = harm(shared / "checkpoints" / "step-00000004", name, fault)
    train(shared, *DIVIDED)
    said = capsys.readouterr().out
    (warned,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert re.search(rf"/step-00000004 is not used: ({named})", warned), warned
    assert "resumed from step 2" in said
    assert outcome(shared) == divided[1]


@EACH
def test_a_damaged_part_of_a_checkpoint_of_several_processes_that_is_named_is_an_error(train: Train, shared: Path, name: str, fault: str) -> None:
    path = shared / "checkpoints" / "step-00000004"
    named = harm(path, name, fault)
    with pytest.raises(CheckpointError, match=rf"/step-00000004: ({named})") as caught:
        train(shared, *DIVIDED, "trainer.max_steps=6", f"resume={path}")
    assert caught.value.exit_code == 4


# --- the command --------------------------------------------------------------------------------------------------

STEADY = ("schedule=constant", "model.dropout=0")


def launch(folder: Path, verb: str, *overrides: str, code: int = 0) -> subprocess.CompletedProcess[str]:

    typed = [*tiny(*overrides, base=TINY if verb == "pretrain" else TINY_FINETUNE), f"output_dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "llmtrain", verb, *typed], capture_output=True, text=True, timeout=400, cwd=folder.parent, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [value for record in records for name, value in record.items() if "loss" in name or name == "grad_norm"]


def final(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "final" / "model.safetensors")


def learned(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Without the bias of keys: softmax does not see what all keys have in common, so its gradient is rounding alone, of which AdamW makes whole steps."""
    return torch.cat(tensor.chunk(3)[::2]) if name.endswith("c_attn.bias") else tensor


def same(one: Path, two: Path) -> None:
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    assert len(losses(one)) > 3
    a, b = final(one), final(two)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(learned(name, b[name]), learned(name, tensor), rtol=1e-4, atol=1e-6)


def back_to(run: Path, step: int, new: Path) -> Path:
    """A copy of a run as it was when a checkpoint had been saved."""
    shutil.copytree(run, new, symlinks=True)
    for path in checkpoint.listed(new):
        if checkpoint.step_of(path) > step:
            shutil.rmtree(path)
    shutil.rmtree(new / "final")
    return new


@pytest.mark.long
def test_a_divided_run_equals_ddp_and_one_process_and_is_resumed_by_either(tmp_path: Path) -> None:
    kept = (*STEADY, "checkpoint.keep_last=9")
    one = tmp_path / "one"
    launch(one, "pretrain", *kept)
    done = launch(tmp_path / "divided", "pretrain", *kept, *FSDP)
    assert "× 2 processes, the model divided over them" in " ".join(done.stdout.split())
    launch(tmp_path / "ddp", "pretrain", *kept, "devices=2")
    same(one, tmp_path / "ddp")
    same(one, tmp_path / "divided")
    pieces = tmp_path / "divided" / "checkpoints" / "step-00000002"
    assert (pieces / INDEX).is_file()
    assert not (pieces / "model.safetensors").exists()
    for source, ways in {"divided": ((), ("devices=2",), FSDP), "one": (FSDP,), "ddp": (FSDP,)}.items():
        for number, way in enumerate(ways):
            again = back_to(tmp_path / source, 2, tmp_path / f"{source}-{number}")
            assert "resumed from step 2" in launch(again, "pretrain", *kept, *way).stdout
            same(one, again)
            if source == "divided" and way == FSDP:
                assert (again / "final" / "model.safetensors").read_bytes() == (tmp_path / "divided" / "final" / "model.safetensors").read_bytes()


@pytest.mark.long
def test_two_processes_that_share_a_model_go_on_from_the_checkpoint_before_a_damaged_one_and_refuse_it_where_it_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(run, "pretrain", *DIVIDED, *FSDP)
    for name, fault in {SHARDS[1]: "bit", INDEX: "half"}.items():
        again = Path(shutil.copytree(run, tmp_path / name, symlinks=True))
        shutil.rmtree(again / "final")
        path = again / "checkpoints" / "step-00000004"
        damage(path / name, fault)
        done = launch(again, "pretrain", *DIVIDED, *FSDP, f"resume={path}", code=4)
        assert done.stderr.count("error: ") == 1
        assert f"step-00000004: {name} " in done.stderr
        if name != INDEX:
            done = launch(again, "pretrain", *DIVIDED, *FSDP)
            assert done.stdout.count("warning: ") == 1
            assert f"step-00000004 is not used: {name} " in " ".join(done.stdout.split())
            assert "resumed from step 2" in done.stdout
            assert (again / "final" / "model.safetensors").read_bytes() == (run / "final" / "model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("finetune=last_layers", "finetune.blocks=1", "cache.use=never"), id="frozen blocks"),
        pytest.param(("finetune=last_layers", "finetune.blocks=1", "cache.use=always"), id="a frozen prefix from the cache"),
        pytest.param(("finetune=lora",), id="adapters"),
        pytest.param(("finetune=full", "trainer.gradient_checkpointing=true"), id="activations computed again"),
        pytest.param(("finetune=full", "trainer.micro_batch_size=2", "checkpoint.export=best"), id="accumulation, the best exported"),
        pytest.param(("finetune=features", "cache.use=auto"), id="a head alone"),
    ],
)
def test_finetuning_a_divided_model_equals_ddp(tmp_path: Path, pretrained: Pretrained, overrides: tuple[str, ...]) -> None:
    if "finetune=lora" in overrides:
        pytest.importorskip("peft")
    common = (*overrides, f"model.checkpoint={pretrained('bert')}", "devices=2")
    launch(tmp_path / "ddp", "finetune", *common)
    launch(tmp_path / "divided", "finetune", *common, "distributed.strategy=fsdp")
    same(tmp_path / "ddp", tmp_path / "divided")
    proofs = [json.loads((tmp_path / name / "run.json").read_text())["freezing"] for name in ("ddp", "divided")]
    assert proofs[0] == proofs[1]
    assert proofs[1]["frozen_but_moved"] == []


@pytest.mark.long
def test_a_run_that_thaws_is_refused_before_it_trains(tmp_path: Path, pretrained: Pretrained) -> None:
    done = launch(tmp_path / "run", "finetune", "finetune=gradual", f"model.checkpoint={pretrained('bert')}", *FSDP, code=2)
    assert "error: distributed.strategy=fsdp: what moves changes during the run, and a divided model cannot be thawed" in done.stderr
    assert "fix: distributed.strategy=ddp" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_two_gpus_a_divided_run_equals_ddp(tmp_path: Path, precision: str) -> None:
    common = ("device=cuda", "devices=2", f"precision={precision}", "deterministic=true", *STEADY)
    launch(tmp_path / "ddp", "pretrain", *common)
    launch(tmp_path / "divided", "pretrain", *common, "distributed.strategy=fsdp")
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-5 if precision == "fp32" else 1e-2)
