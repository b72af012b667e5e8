"""Weights that exist: the same numbers as transformers gives, in fp32, all of them, and no code of the folder's own."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llmtrain import checkpoint as saved
from llmtrain.cli import main
from llmtrain.config import build
from llmtrain.data import tokenizer as tokens
from llmtrain.errors import CheckpointError, ConfigError
from llmtrain.model.base import Attention, Head, Model
from tests.conftest import TINY, realdata

IDS = torch.arange(3, 15)[None]
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained run."""
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    assert main(["pretrain", *TINY, "trainer.max_steps=2", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def tokenizer(run: Path) -> Any:
    return tokens.load(str(run / "final"))


@pytest.fixture
def final(run: Path, tmp_path: Path) -> Path:
    """A copy of final/ without its manifest, as any folder of the hub."""
    folder = tmp_path / "copy"
    shutil.copytree(run / "final", folder)
    (folder / "manifest.json").unlink()
    return folder


def model_of(folder: Path | str) -> Any:
    return build({"kind": "checkpoint", "checkpoint": str(folder)}, Model, "model")


def load(folder: Path | str, tokenizer: Any, resize: bool = False) -> Any:
    return model_of(folder).load(tokenizer, Head.next_token, resize=resize).eval()


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


# --- both ways ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu"])
def test_a_gpt2_of_transformers_gives_its_logits_here(tmp_path: Path, tokenizer: Any, activation: str) -> None:
    torch.manual_seed(1)
    theirs = GPT2LMHeadModel(GPT2Config(**GPT2, vocab_size=len(tokenizer), activation_function=activation))
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, tokenizer)
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.lm_head.weight is ours.transformer.wte.weight


def test_a_run_of_ours_gives_its_logits_in_transformers(run: Path, tokenizer: Any) -> None:
    theirs, info = AutoModelForCausalLM.from_pretrained(run / "final", output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert torch.equal(logits(theirs), logits(load(run, tokenizer)))
    assert theirs.lm_head.weight is theirs.transformer.wte.weight


def test_a_run_of_ours_gives_the_logits_of_the_released_activation_to_1e_6(final: Path, run: Path, tokenizer: Any) -> None:
    set_config(final, activation_function="gelu_new")
    assert torch.allclose(logits(load(final, tokenizer)), logits(load(run, tokenizer)), atol=1e-6)


def test_the_exported_weights_are_those_of_the_last_checkpoint(run: Path, tokenizer: Any) -> None:
    model = load(run, tokenizer)
    before = logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    last = saved.newest(run)
    assert last is not None
    saved.load_weights(model, saved.read(last).weights)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_c13_weights_stored_in_half_precision_are_loaded_as_fp32_and_that_is_said(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, stored: torch.dtype
) -> None:
    GPT2LMHeadModel(GPT2Config(**GPT2, vocab_size=len(tokenizer))).to(stored).save_pretrained(tmp_path)
    logger = logging.getLogger("llmtrain")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        ours = load(tmp_path, tokenizer)
    finally:
        logger.removeHandler(caplog.handler)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert f"stored in {str(stored).removeprefix('torch.')} and loaded as fp32" in caplog.text
    assert torch.equal(logits(ours), logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)))


def test_c15_tied_weights_stay_one_tensor_through_training_checkpoint_and_export(run: Path, tokenizer: Any) -> None:
    from safetensors import safe_open

    last = saved.newest(run)
    assert last is not None
    for file in (run / "final" / "model.safetensors", last / "model.safetensors"):
        with safe_open(file, framework="pt") as opened:
            assert [name for name in opened.keys() if "lm_head" in name or "wte" in name] == ["transformer.wte.weight"]  # noqa: SIM118
    model = load(run, tokenizer)
    saved.load_weights(model, saved.read(last).weights)
    assert model.lm_head.weight is model.transformer.wte.weight


# --- what a folder says of itself -----------------------------------------------------------------------------------


def test_a_run_stands_for_its_final_folder(run: Path) -> None:
    model = model_of(run)
    assert (model.folder, model.tokenizer_path) == (str(run / "final"), str(run / "final"))
    assert (model.attention, model.width, model.positions) == (Attention.causal, 32, 32)


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        (GPT2Config(), Attention.causal),
        (LlamaConfig(), Attention.causal),
        (BertConfig(), Attention.bidirectional),
        (BertConfig(is_decoder=True), Attention.causal),
    ],
)
def test_which_positions_a_family_sees_is_read_from_its_config(tmp_path: Path, config: Any, attention: Attention) -> None:
    config.save_pretrained(tmp_path)
    assert model_of(tmp_path).attention is attention


def test_a_run_without_final_is_refused_with_how_to_finish_it(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text("")
    with pytest.raises(CheckpointError, match="no final/ yet"):
        _ = model_of(tmp_path).folder


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere/at/all", "a/b/c", __file__])
def test_a_path_that_is_no_folder_is_never_looked_up_on_the_hub(path: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder|not a folder"):
        _ = model_of(path).attention


def test_a_home_folder_may_be_written_with_a_tilde(final: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setenv("HOME", str(final.parent))
    assert load("~/copy", tokenizer) is not None


# --- faults ---------------------------------------------------------------------------------------------------------

Fault = Callable[[Path], object]
WEIGHTS = "model.safetensors"


def cut(size: int) -> Fault:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def flip(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def pickled(folder: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {folder / 'ran'}",)

    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))


def with_code(folder: Path) -> None:
    set_config(folder, auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}, model_type="evil")
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


def config(**changes: Any) -> Fault:
    return lambda folder: set_config(folder, **changes)


def write(name: str, data: bytes) -> Fault:
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("fault", "code", "answer"),
    [
        pytest.param(write("config.json", b"{"), 4, "config.json is not valid JSON", id="C06 invalid"),
        pytest.param(write("config.json", b"\xff"), 4, "config.json is not valid JSON", id="C06 bytes"),
        pytest.param(write("config.json", b"[]"), 4, "does not hold a config", id="C06 list"),
        pytest.param(config(model_type="nonsense"), 4, "`nonsense`", id="C06 unknown type"),
        pytest.param(config(model_type=...), 4, "Unrecognized model", id="C06 no type"),
        pytest.param(config(n_layer="many"), 4, "n_layer", id="C06 type of a field"),
        pytest.param(config(n_layer=-3), 4, "-3 layers", id="C06 negative"),
        pytest.param(config(n_head=5), 4, "divisible", id="C06 heads"),
        pytest.param(lambda folder: (folder / "config.json").unlink(), 4, "config.json: no such file", id="C06 missing"),
        pytest.param(cut(2000), 4, "model.safetensors is damaged", id="C07 truncated"),
        pytest.param(cut(0), 4, "model.safetensors is damaged", id="C07 empty"),
        pytest.param(write(WEIGHTS, (2**40).to_bytes(8, "little") + b"{}"), 4, "model.safetensors is damaged", id="H07"),
        pytest.param(config(n_embd=64), 4, "28 of 29 tensors of GPT2LMHeadModel are missing or of another shape", id="C08 shape"),
        pytest.param(config(n_layer=3), 4, "12 of 41 tensors", id="C08 depth"),
        pytest.param(config(model_type="bert", is_decoder=True), 4, "204 of 204 tensors of BertLMHeadModel", id="C08"),
        pytest.param(with_code, 2, "code of its own", id="C11"),
        pytest.param(with_code, 2, "llmtrain never does", id="H08"),
        pytest.param(pickled, 4, "only pytorch_model.bin, which could run code", id="C12"),
        pytest.param(lambda folder: (folder / WEIGHTS).unlink(), 4, "no weights in safetensors format", id="no weights"),
        pytest.param(lambda folder: (folder / "tokenizer.json").unlink(), 4, "tokenizer", id="no tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_named_with_what_is_wrong(
    final: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: Fault, code: int, answer: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on stdin"))
    fault(final)
    assert main(["generate", f"model.checkpoint={final}", "max_new_tokens=1"]) == code
    said = capsys.readouterr()
    assert answer in said.err
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) <= 6
    assert said.out == ""
    assert not (final / "ran").exists()


@pytest.mark.parametrize(
    ("fault", "answer"), [(cut(2000), "model.safetensors has 2,000 bytes"), (cut(0), "model.safetensors has 0 bytes"), (flip, "model.safetensors was changed")]
)
def test_c07_with_a_manifest_every_changed_byte_is_noticed(run: Path, tmp_path: Path, tokenizer: Any, fault: Fault, answer: str) -> None:
    shutil.copytree(run / "final", tmp_path / "copy")
    fault(tmp_path / "copy")
    with pytest.raises(CheckpointError, match=answer):
        load(tmp_path / "copy", tokenizer)


def test_a_pickle_beside_safetensors_is_left_alone(final: Path, run: Path, tokenizer: Any) -> None:
    shutil.copy(final / WEIGHTS, final.parent / WEIGHTS)
    pickled(final)
    shutil.move(final.parent / WEIGHTS, final / WEIGHTS)
    assert torch.equal(logits(load(final, tokenizer)), logits(load(run, tokenizer)))
    assert not (final / "ran").exists()


def test_weights_that_have_no_place_in_the_model_are_counted_in_a_warning(final: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    set_config(final, n_layer=1)
    logger = logging.getLogger("llmtrain")
    logger.addHandler(caplog.handler)
    try:
        load(final, tokenizer)
    finally:
        logger.removeHandler(caplog.handler)
    assert "tensors of the file have no place in GPT2LMHeadModel" in caplog.text


# --- tokenizer and embedding ----------------------------------------------------------------------------------------


def larger(tokenizer: Any, folder: Path) -> Any:
    tokenizer.save_pretrained(folder)
    grown = tokens.load(str(folder))
    grown.add_tokens(["<one>", "<two>", "<three>"])
    return grown


def test_c01_a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes(run: Path, tmp_path: Path, tokenizer: Any) -> None:
    rows = len(tokenizer)
    with pytest.raises(ConfigError, match=f"{rows + 3:,} tokens, the model's embedding {rows:,} rows") as caught:
        load(run, larger(tokenizer, tmp_path))
    assert "tokenizer.resize=true" in str(caught.value.fix)


def test_c01_resize_adds_rows_keeps_the_others_and_stays_tied(run: Path, tmp_path: Path, tokenizer: Any) -> None:
    rows = len(tokenizer)
    model = load(run, larger(tokenizer, tmp_path), resize=True)
    assert model.transformer.wte.weight.shape[0] == model.config.vocab_size == rows + 3
    assert torch.equal(logits(model)[..., :rows], logits(load(run, tokenizer)))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_c01_through_the_command_line(run: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    larger(tokenizer, tmp_path / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    base = [o for o in TINY if not o.startswith("model.")]
    given = ["model=checkpoint", f"model.checkpoint={run}", f"tokenizer.path={tmp_path / 'tokenizer'}", "trainer.max_steps=1"]
    assert main(["pretrain", *base, *given, f"output_dir={tmp_path / 'run'}"]) == 2
    assert "tokenizer.resize=true" in capsys.readouterr().err
    assert main(["pretrain", *base, *given, "tokenizer.resize=true", f"output_dir={tmp_path / 'resized'}"]) == 0


def test_c02_a_causal_model_trains_without_a_padding_token_and_that_is_said(final: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = final / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    base = [o for o in TINY if not o.startswith("model.")]
    assert main(["pretrain", *base, "model=checkpoint", f"model.checkpoint={final}", "objective.packing=false", f"output_dir={tmp_path / 'run'}"]) == 0
    assert "the tokenizer has no padding token" in capsys.readouterr().out


# --- objective and memory -------------------------------------------------------------------------------------------


def bert(folder: Path, tokenizer: Any, model: type = BertLMHeadModel) -> Path:
    small = BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=len(tokenizer), max_position_embeddings=32)
    model(small).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("verb", ["pretrain", "evaluate", "generate"])
def test_a05_a_bert_is_refused_for_next_token(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    folder = bert(tmp_path / "bert", tokenizer, BertModel)
    given = {"pretrain": ["model=checkpoint", "data=synthetic", f"output_dir={tmp_path / 'run'}"], "evaluate": ["data=synthetic"], "generate": []}[verb]
    assert main([verb, *given, f"model.checkpoint={folder}"]) == 2
    said = capsys.readouterr().err
    assert "bidirectional" in said
    assert "causal models" in said
    assert not (tmp_path / "run").exists()


def test_c16_a_model_larger_than_memory_is_refused_before_it_is_allocated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [o for o in TINY if not o.startswith("model.")]
    assert main(["pretrain", *base, "model=gpt3_175b", f"output_dir={tmp_path / 'run'}"]) == 6
    assert "GiB are free on cpu" in capsys.readouterr().err


def test_c16_counts_the_weights_of_a_checkpoint_too(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("llmtrain.estimate.available_bytes", lambda device: 1000)
    base = [o for o in TINY if not o.startswith("model.")]
    assert main(["pretrain", *base, "model=checkpoint", f"model.checkpoint={run}", f"output_dir={tmp_path / 'run'}"]) == 6
    assert "weights, gradients and optimizer need" in capsys.readouterr().err


def test_a_small_llama_is_loaded_with_its_logits(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(2)
    small = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
    }
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **small))
    theirs.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path, tokenizer)), logits(theirs))


@pytest.mark.realdata
def test_a_real_llama_is_loaded_with_its_logits() -> None:
    folder = realdata("stories260k")
    assert torch.equal(logits(load(folder, tokens.load(str(folder)))), logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)))
