"""Weights that exist: the same numbers as transformers gives, in fp32, all of them, and no code of the folder's own."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from llmtrain import checkpoint as saved
from llmtrain.cli import main
from llmtrain.config import build
from llmtrain.data import tokenizer as tokens
from llmtrain.errors import CheckpointError, ConfigError
from llmtrain.model import forward, head as heads
from llmtrain.model.base import Attention, Head, Model, Outputs, Pooling, for_task, fresh
from tests.conftest import TINY, realdata

CONFIGS = Path(__file__).parents[2] / "configs"
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


def built(folder: Path | str, **settings: Any) -> Any:
    return build({"kind": "checkpoint", "checkpoint": str(folder), "head": "pooled", "pooling": "auto", **settings}, Model, "model")


def model_of(folder: Path | str) -> Any:
    return built(folder)


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
        pytest.param(config(attn_implementation="somebody/kernel"), 2, "an attention kernel of the hub", id="a kernel of the hub"),
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


def test_h07_nothing_is_allocated_for_a_header_that_lies_about_its_length(final: Path, tokenizer: Any) -> None:
    resource = pytest.importorskip("resource", reason="Windows does not tell what a process has used")
    load(final, tokenizer)  # what is imported and made once is there now
    write(WEIGHTS, (2**40).to_bytes(8, "little") + b"{}")(final)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="is damaged"):
        load(final, tokenizer)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # in KiB; on macOS in bytes
    assert grown < 50 * 2 ** (20 if sys.platform == "darwin" else 10)


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


# --- heads of a task ------------------------------------------------------------------------------------------------

CLASSES = Outputs(3, ("gut", 'sagt "nein"', "naïve 🙂"))
SHAPE: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}


def body_of(folder: Path, tokenizer: Any, model: type = BertForMaskedLM, seed: int = 3, **settings: Any) -> Path:
    torch.manual_seed(seed)
    model(BertConfig(**SHAPE, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **settings)).save_pretrained(folder)
    return folder


def sentences_of(folder: Path, tokenizer: Any, outputs: Outputs = CLASSES, model: type = BertForSequenceClassification) -> Path:
    """A family's own model for sentences, with these classes."""
    torch.manual_seed(4)
    kind = {BertForSequenceClassification: BertConfig, RobertaForSequenceClassification: RobertaConfig}[model]
    model(for_task(kind(**SHAPE, vocab_size=len(tokenizer)), outputs)).save_pretrained(folder)
    return folder


def pooled_of(folder: Path, tokenizer: Any, outputs: Outputs = CLASSES, **settings: Any) -> Path:
    """A body with our head beside it."""
    body_of(folder, tokenizer, BertModel)
    torch.manual_seed(5)
    worn = heads.PooledHead(16, outputs, **{"pooling": Pooling.max, "states": (0, 1), **settings})
    with torch.no_grad():
        worn.bias.normal_()
    heads.save(worn, folder)
    return folder


def task_of(folder: Path, tokenizer: Any, outputs: Outputs | None = None, new_head: bool = False, words: bool = False, **settings: Any) -> Any:
    return built(folder, **settings).load(tokenizer, Head.task, resize=False, new_head=new_head, outputs=outputs, words=words).eval()


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return forward.answers(model, input_ids=IDS)


def test_the_familys_own_head_is_loaded_with_its_logits_and_classes(tmp_path: Path, tokenizer: Any) -> None:
    model = task_of(sentences_of(tmp_path, tokenizer), tokenizer)
    theirs = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(answers(model), logits(theirs))
    assert tuple(model.config.id2label.values()) == CLASSES.names
    assert fresh(model) == frozenset()


def test_our_head_is_loaded_beside_its_body_with_its_answers_and_classes(tmp_path: Path, tokenizer: Any) -> None:
    model = task_of(pooled_of(tmp_path, tokenizer), tokenizer)
    worn, saved = heads.pooled_head(model), heads.read(tmp_path)
    assert worn is not None
    assert saved is not None
    assert worn.outputs == CLASSES
    with torch.no_grad():
        output = BertModel.from_pretrained(tmp_path).eval()(IDS, output_hidden_states=True)
        expected = saved(torch.stack([state.amax(1) for state in output.hidden_states], 1))
    assert torch.allclose(answers(model), expected, rtol=1e-5, atol=1e-6)
    assert fresh(model) == frozenset()


@pytest.mark.parametrize("make", [sentences_of, pooled_of])
@pytest.mark.parametrize("outputs", [CLASSES, Outputs(2, ("no", "yes")), Outputs(1)])
def test_where_no_head_may_be_new_the_saved_one_is_read_whatever_the_settings_say(
    tmp_path: Path, tokenizer: Any, make: Callable[..., Path], outputs: Outputs
) -> None:
    # As `llmtrain evaluate` asks: with the classes of its data, and with a config that was not the run's.
    folder = make(tmp_path, tokenizer, outputs)
    for head in ("pooled", "family"):
        assert torch.equal(answers(task_of(folder, tokenizer, outputs, head=head)), answers(task_of(folder, tokenizer)))


@pytest.mark.parametrize("make", [sentences_of, pooled_of])
@pytest.mark.parametrize("outputs", [Outputs(2, ("gut", "schlecht")), Outputs(3, ("gut", "naïve 🙂", 'sagt "nein"')), Outputs(1)])
def test_a_head_of_other_classes_is_refused_with_both(tmp_path: Path, tokenizer: Any, make: Callable[..., Path], outputs: Outputs) -> None:
    folder = make(tmp_path, tokenizer)
    with pytest.raises(CheckpointError, match="no head for these answers") as caught:
        task_of(folder, tokenizer, outputs)
    assert caught.value.exit_code == 4
    assert f"of the head: {', '.join(CLASSES.names)}; of the data: {', '.join(outputs.names) or 'a number'}" in str(caught.value.allowed)


@pytest.mark.parametrize("model", [BertForMaskedLM, BertModel])
def test_a_task_is_refused_where_no_head_was_trained(tmp_path: Path, tokenizer: Any, model: type) -> None:
    folder = body_of(tmp_path, tokenizer, model)
    assert not model_of(folder).has_head
    for outputs in (None, CLASSES):
        with pytest.raises(CheckpointError, match="no head") as caught:
            task_of(folder, tokenizer, outputs)
        assert "llmtrain finetune" in str(caught.value.fix)


@pytest.mark.parametrize("make", [sentences_of, pooled_of])
def test_a_folder_with_a_head_says_so(tmp_path: Path, tokenizer: Any, make: Callable[..., Path]) -> None:
    assert model_of(make(tmp_path, tokenizer)).has_head


@pytest.mark.parametrize("kind", [BertForSequenceClassification, RobertaForSequenceClassification])
def test_a_familys_head_starts_anew_as_a_whole_where_it_answered_another_question(tmp_path: Path, tokenizer: Any, kind: type) -> None:
    folder = sentences_of(tmp_path, tokenizer, model=kind)
    saved = dict(kind.from_pretrained(folder).named_parameters())  # type: ignore[attr-defined]
    outer = {name for name in saved if name.startswith("classifier.")}
    torch.manual_seed(6)
    for outputs in (Outputs(3, ("a", "b", "c")), Outputs(2, ("a", "b"))):
        model = task_of(folder, tokenizer, outputs, new_head=True, head="family")
        now = dict(model.named_parameters())
        assert fresh(model) == outer
        assert not any(now[name].shape == saved[name].shape and torch.equal(now[name], saved[name]) for name in outer if name.endswith("weight"))
        assert all(torch.equal(now[name], saved[name]) for name in saved.keys() - outer)
        assert tuple(model.config.id2label.values()) == outputs.names
        assert model.config.label2id == {name: i for i, name in enumerate(outputs.names)}


@pytest.mark.parametrize("make", [sentences_of, pooled_of])
def test_a_head_that_answers_the_same_question_is_gone_on_with(tmp_path: Path, tokenizer: Any, make: Callable[..., Path]) -> None:
    folder = make(tmp_path, tokenizer)
    model = task_of(folder, tokenizer, CLASSES, new_head=True, head="family" if make is sentences_of else "pooled")
    assert fresh(model) == frozenset()
    assert torch.equal(answers(model), answers(task_of(folder, tokenizer)))


def test_our_head_of_other_classes_is_left_off_where_a_new_one_may_be(tmp_path: Path, tokenizer: Any) -> None:
    model = task_of(pooled_of(tmp_path, tokenizer), tokenizer, Outputs(2, ("a", "b")), new_head=True)
    assert heads.pooled_head(model) is None


def test_a_new_familys_head_on_a_language_model_is_said_to_be_fresh(tmp_path: Path, tokenizer: Any) -> None:
    model = task_of(body_of(tmp_path, tokenizer), tokenizer, CLASSES, new_head=True, head="family")
    assert fresh(model) == {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, BertForMaskedLM.from_pretrained(tmp_path).bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("pooling", ["auto", "mean", "cls"])
def test_a_pooler_that_the_weights_lack_is_left_out(tmp_path: Path, tokenizer: Any, pooling: str) -> None:
    model = task_of(body_of(tmp_path, tokenizer), tokenizer, CLASSES, new_head=True, pooling=pooling)
    assert model.pooler is None
    assert not any("pooler" in name for name in model.state_dict())
    assert fresh(model) == frozenset()


def test_a_pooler_that_is_asked_for_and_lacking_is_fresh_and_one_that_is_there_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    new = task_of(body_of(tmp_path / "lm", tokenizer), tokenizer, CLASSES, new_head=True, pooling="pooler")
    assert fresh(new) == {"pooler.dense.weight", "pooler.dense.bias"}
    there = task_of(body_of(tmp_path / "body", tokenizer, BertModel), tokenizer, CLASSES, new_head=True)
    assert torch.equal(there.pooler.dense.weight, BertModel.from_pretrained(tmp_path / "body").pooler.dense.weight)
    assert fresh(there) == frozenset()


def test_rows_for_new_tokens_are_fresh(run: Path, tmp_path: Path, tokenizer: Any) -> None:
    assert fresh(load(run, larger(tokenizer, tmp_path), resize=True)) == {"embeddings: the new rows"}
    assert fresh(load(run, tokenizer)) == frozenset()


def test_c08_weights_of_another_architecture_are_refused_for_a_task_too(run: Path, final: Path, tokenizer: Any) -> None:
    set_config(final, model_type="bert", num_hidden_layers=2)
    for head in ("pooled", "family"):
        with pytest.raises(CheckpointError, match=r"tensors of Bert\w+ are missing"):
            task_of(final, tokenizer, CLASSES, new_head=True, head=head)


@pytest.mark.parametrize(("fault", "code"), [(pickled, 4), (with_code, 2), (cut(100), 4)], ids=["C12", "H08", "C07"])
def test_c12_h08_nothing_of_a_folder_with_a_head_is_run(tmp_path: Path, tokenizer: Any, fault: Fault, code: int) -> None:
    folder = pooled_of(tmp_path, tokenizer)
    fault(folder)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        task_of(folder, tokenizer)
    assert caught.value.exit_code == code
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(("width", "states"), [(17, (1,)), (16, (0, 2))])
def test_a_head_that_does_not_fit_its_body_is_refused(tmp_path: Path, tokenizer: Any, width: int, states: tuple[int, ...]) -> None:
    body_of(tmp_path, tokenizer, BertModel)
    heads.save(heads.PooledHead(width, CLASSES, pooling=Pooling.mean, states=states), tmp_path)
    with pytest.raises(CheckpointError, match=r"head\.json: reads states of"):
        task_of(tmp_path, tokenizer)


def test_a_damaged_head_file_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    folder = pooled_of(tmp_path, tokenizer)
    (folder / "head.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not the head of a task"):
        task_of(folder, tokenizer)


def test_another_pooling_than_the_heads_own_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    folder = pooled_of(tmp_path, tokenizer)
    with pytest.raises(ConfigError, match="was trained on max") as caught:
        task_of(folder, tokenizer, pooling="mean")
    assert caught.value.fix == "model.pooling=auto"
    assert heads.pooled_head(task_of(folder, tokenizer, pooling="max")) is not None


def test_a_body_may_keep_its_language_models_head(run: Path, tokenizer: Any) -> None:
    model = task_of(run, tokenizer, CLASSES, new_head=True, words=True)
    assert torch.equal(logits(model), logits(load(run, tokenizer)))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not hasattr(task_of(run, tokenizer, CLASSES, new_head=True), "lm_head")


def test_our_head_on_a_model_of_two_stacks_is_refused_with_the_way_out(tmp_path: Path, tokenizer: Any) -> None:
    small = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(small).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="two") as caught:
        task_of(tmp_path, tokenizer, CLASSES, new_head=True)
    assert caught.value.fix == "model.head=family"
    assert fresh(task_of(tmp_path, tokenizer, CLASSES, new_head=True, head="family"))


@pytest.mark.parametrize(("head", "pooling"), [("pooled", "mean"), ("pooled", "pooler"), ("family", "auto")])
def test_a_model_from_nothing_is_fresh_in_every_parameter(tokenizer: Any, head: str, pooling: str) -> None:
    config = OmegaConf.merge(OmegaConf.load(CONFIGS / "model" / "bert.yaml"), {**SHAPE, "head": head, "pooling": pooling})
    model = build(config, Model, "model").load(tokenizer, Head.task, resize=False, outputs=CLASSES)
    assert fresh(model) == {name for name, _ in model.named_parameters()}
    assert any("pooler" in name for name in model.state_dict()) is (head == "family" or pooling == "pooler")
    assert (head == "family") is hasattr(model, "classifier")
    assert head == "pooled" or tuple(model.config.id2label.values()) == CLASSES.names


def test_a_config_for_a_task_is_a_copy() -> None:
    config = BertConfig(num_labels=5)
    changed = for_task(config, CLASSES)
    assert (config.num_labels, changed.num_labels) == (5, 3)
    assert changed.problem_type == "single_label_classification"
    assert (for_task(config, Outputs(1)).num_labels, for_task(config, Outputs(1)).problem_type) == (1, "regression")
