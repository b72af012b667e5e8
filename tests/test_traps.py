"""Traps that others fell into (T11 to T21), each with a test that was seen to fail on the wrong version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llmtrain import cache, frozen, trainer
from llmtrain.cli import main
from llmtrain.errors import ConfigError, Stopped
from llmtrain.objective.base import IGNORED, Batch
from tests.conftest import TINY_FINETUNE, Pretrained, Train, stop_after, tiny
from tests.table import missing

TABLE: dict[str, tuple[str, ...]] = {
    "T11": (
        "objective/test_masked_lm.py::test_padded_and_unpadded_give_the_same_logits_and_loss",
        "model/test_forward.py::test_t11_c18_our_head_answers_alike_with_padding_and_without",
        "model/test_forward.py::test_t11_c18_the_familys_own_head_answers_alike_with_padding_and_without",
    ),
    "T12": (
        "test_traps.py::test_t12_a_tokenizer_that_pads_on_the_left_does_not_make_training_do_so",
        "test_traps.py::test_t12_nor_predict_and_evaluate_where_a_text_has_the_same_answer_alone_and_beside_longer_ones",
        "test_traps.py::test_t12_nor_the_pass_that_stores_states",
    ),
    "T13": (
        "model/test_head.py::test_t13_the_last_token_goes_by_the_mask_where_a_text_ends_in_the_padding_token",
        "model/test_forward.py::test_t13_a_decoders_head_reads_the_last_token_by_the_mask_where_padding_and_end_are_one_token",
    ),
    "T14": (
        "test_traps.py::test_t14_the_end_of_a_text_is_asked_for_though_it_is_the_padding_token_too",
        "test_traps.py::test_t14_gpt_1s_auxiliary_loss_asks_for_the_end_of_a_text_too",
    ),
    "T15": (
        "model/test_gpt.py::test_c19_packed_documents_give_the_losses_and_logits_of_documents_alone",
        "model/test_gpt.py::test_c19_changing_the_first_document_changes_nothing_in_the_second_only_where_they_are_kept_apart",
    ),
    "T16": (
        "test_traps.py::test_t16_c15_tied_weights_are_one_tensor_at_every_update_before_and_after_a_resume",
        "command/test_finetune.py::test_a_head_that_stays_frozen_with_the_embeddings_is_said_with_the_way_out",
        "command/test_finetune.py::test_a_head_that_moves_with_the_embeddings_although_it_is_switched_off_is_said_with_the_way_out",
        "model/test_checkpoint.py::test_c15_tied_weights_stay_one_tensor_through_training_checkpoint_and_export",
    ),
    "T17": (
        "test_traps.py::test_t17_what_was_computed_once_is_what_frozen_layers_compute_at_every_update",
        "test_traps.py::test_t17_nor_do_families_drop_out_or_leave_out_blocks_below_the_cut_that_do_so_by_hand",
        "command/test_finetune.py::test_at_every_step_frozen_modules_are_in_eval_and_only_what_is_trained_is_in_the_optimizer",
    ),
    "T18": (
        "test_traps.py::test_t18_d11_a_large_decay_moves_nothing_that_is_frozen",
        "test_optimizer.py::test_a_frozen_parameter_neither_moves_nor_decays_even_with_a_gradient_left_over",
    ),
    "T19": ("test_optimizer.py::test_norms_and_biases_do_not_decay_whatever_they_are_called",),
    "T20": ("command/test_finetune.py::test_d13_gradient_checkpointing_computes_trainable_blocks_again_and_no_other_and_changes_no_loss",),
    "T21": (
        "test_traps.py::test_t21_parameters_that_stay_trained_keep_their_own_optimizer_state_when_more_are_thawed",
        "test_optimizer.py::test_state_goes_by_name_when_the_trainable_set_changes",
        "command/test_finetune.py::test_a_finetuning_stopped_in_the_middle_and_resumed_repeats_the_unbroken_one",
    ),
}


def test_every_trap_has_a_test_that_exists() -> None:
    assert list(TABLE) == [f"T{number}" for number in range(11, 22)]
    assert missing(TABLE) == []


def test_the_guard_notices_a_test_that_is_gone() -> None:
    assert missing({"T00": ("test_traps.py::test_nothing_of_the_kind", "test_nowhere.py::test_x")}) != []


# --- tokenizers of others -----------------------------------------------------------------------------------------


def with_tokenizer(run: Path, folder: Path, **changes: Any) -> Path:
    """The weights of a run with a changed tokenizer, as another project might have saved them; None takes a key away."""
    shutil.copytree(run / "final", folder)
    (folder / "manifest.json").unlink()
    path = folder / "tokenizer_config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def batches_of(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that will have been trained on."""
    seen: list[Batch] = []
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        seen.extend(batches)
        return real(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    return seen


Texts = Callable[..., tuple[str, ...]]


@pytest.fixture
def texts(pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Texts:
    """texts(padding_side="left") → a finetuning of a GPT-2 with this in its tokenizer, on texts of two lengths, or pairs of them."""

    def asked(pairs: bool = False, **changes: Any) -> tuple[str, ...]:
        base = with_tokenizer(pretrained("gpt"), tmp_path / "base", **changes)
        for name in ("train", "validation"):
            rows = [
                ("the old dog sleeps under my tree" if i % 3 == 0 else "the dog", i, f"{name}{',a fox' if pairs else ''}", "no" if i % 3 else "yes")
                for i in range(40)
            ]
            lines = [f"{text} {i} {rest},{label}" for text, i, rest, label in rows]
            (tmp_path / f"{name}.csv").write_text("\n".join(["text,second,label" if pairs else "text,label", *lines]))
        data = ("data=text", "data.train=train.csv", "data.validation=validation.csv", "data.max_length=32")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
        own = tuple(o for o in TINY_FINETUNE if not o.startswith("data"))
        return (*tiny(*data, "trainer.max_steps=4", "optimizer.lr=0.02", base=own), f"model.checkpoint={base}")

    return asked


@pytest.fixture
def on_the_left(texts: Texts) -> tuple[str, ...]:
    """With padding on the left and no position ids a GPT-2 reads positions that it should not."""
    return texts(padding_side="left")


def test_t12_a_tokenizer_that_pads_on_the_left_does_not_make_training_do_so(on_the_left: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = batches_of(monkeypatch)
    assert main(["finetune", *on_the_left, "finetune=full", "output_dir=run"]) == 0
    masks = [batch.inputs["attention_mask"] for batch in seen if "attention_mask" in batch.inputs]  # without padding there is none
    assert any((mask == 0).any() for mask in masks)
    for mask in masks:
        assert (mask[:, :-1] >= mask[:, 1:]).all()


def test_t12_nor_predict_and_evaluate_where_a_text_has_the_same_answer_alone_and_beside_longer_ones(on_the_left: tuple[str, ...], tmp_path: Path) -> None:
    assert main(["finetune", *on_the_left, "finetune=full", "output_dir=run"]) == 0
    assert json.loads((tmp_path / "run" / "final" / "tokenizer_config.json").read_text())["padding_side"] == "left"
    found: dict[str, list[dict[str, float]]] = {}
    for size in (1, 64):
        machine = ("model.checkpoint=run", f"batch_size={size}", "device=cpu", "threads=1")
        assert main(["predict", *machine, "file=validation.csv", f"output=answers{size}.jsonl"]) == 0
        assert main(["evaluate", *machine, "split=validation", f"output=numbers{size}.json"]) == 0
        lines = Path(f"answers{size}.jsonl").read_text().splitlines()
        found.setdefault("answers", []).append({str(i): json.loads(line)["probability_yes"] for i, line in enumerate(lines)})
        found.setdefault("numbers", []).append({name: value for name, value in json.loads(Path(f"numbers{size}.json").read_text()).items() if name == "loss"})
    assert len({round(answer, 4) for answer in found["answers"][0].values()}) > 10  # the guard: texts are told apart
    for alone, together in found.values():
        assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("mode", [("finetune=features",), ("finetune=last_layers", "finetune.blocks=1")])
def test_t12_nor_the_pass_that_stores_states(on_the_left: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: tuple[str, ...]) -> None:
    real, made = frozen.Question.make, []
    monkeypatch.setattr(frozen.Question, "make", lambda *given: (made.append(real(*given)), made[-1])[1])
    for name, tokens in {"together": cache.BATCH_TOKENS, "alone": 1}.items():
        monkeypatch.setattr(cache, "BATCH_TOKENS", tokens)
        assert main(["finetune", *on_the_left, *mode, "cache.use=always", f"output_dir={name}"]) == 0
    together, alone = (one.stages[0].computed.stored for one in made)
    assert together.path != alone.path
    samples = list(range(together.samples))
    assert together.lengths(samples) == alone.lengths(samples)
    assert torch.allclose(together.read(samples), alone.read(samples), atol=1e-5)


def test_t14_the_end_of_a_text_is_asked_for_though_it_is_the_padding_token_too(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    end = AutoTokenizer.from_pretrained(pretrained("gpt") / "final").eos_token
    base = with_tokenizer(pretrained("gpt"), tmp_path / "base", pad_token=end)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    seen = batches_of(monkeypatch)
    short = ("objective=next_token", "objective.packing=false", "data.words=6", "data.max_length=32")
    finetune(tmp_path / "run", "finetune=full", *short, f"model.checkpoint={base}", "trainer.max_steps=2")
    labels = [row[row != IGNORED] for batch in seen for row in batch.labels["next_token"]]
    padded = [row for batch in seen for row in batch.labels["next_token"] if (row == IGNORED).any()]
    assert padded
    assert [int(row[-1]) for row in labels] == [tokenizer.eos_token_id] * len(labels)
    assert all(int((row == tokenizer.eos_token_id).sum()) == 1 for row in labels)


@pytest.mark.parametrize("pairs", [False, True])
def test_t14_gpt_1s_auxiliary_loss_asks_for_the_end_of_a_text_too(pretrained: Pretrained, texts: Texts, monkeypatch: pytest.MonkeyPatch, pairs: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pretrained("gpt") / "final")
    seen = batches_of(monkeypatch)
    assert main(["finetune", *texts(pairs, pad_token=tokenizer.eos_token), "finetune=full", "objective.weights.lm=0.5", "output_dir=run"]) == 0
    padded = [batch for batch in seen if "attention_mask" in batch.inputs]
    rows = [(mask, labels) for batch in padded for mask, labels in zip(batch.inputs["attention_mask"], batch.labels["lm"], strict=True)]
    assert any((mask == 0).any() for mask, _ in rows)
    for mask, labels in rows:
        asked = labels[labels != IGNORED]
        assert len(asked) == int(mask.sum()) - 1  # each token but the first, the last one among them
        assert int(asked[-1]) == tokenizer.eos_token_id


# --- tied, frozen, decayed ----------------------------------------------------------------------------------------


def test_t16_c15_tied_weights_are_one_tensor_at_every_update_before_and_after_a_resume(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tied = trainer.Trainer._update, []

    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        done = real(self, batches)
        tied.append(self.saved.get_output_embeddings().weight is self.saved.get_input_embeddings().weight)
        return done

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    asked = ("objective=next_token", "data.max_length=16", "finetune=full", "trainer.max_steps=4")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            finetune(tmp_path / "run", *asked, of="gpt")
    run = finetune(tmp_path / "run", *asked, of="gpt")
    assert tied == [True] * 4
    for path in (run / "final", max((run / "checkpoints").glob("step-*"))):
        names = safetensors.torch.load((path / "model.safetensors").read_bytes()).keys()
        assert {"transformer.wte.weight", "lm_head.weight"} & set(names) == {"transformer.wte.weight"}


def losses(run: Path) -> list[float]:
    return [line["loss_class"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss_class" in line]


@pytest.mark.parametrize("mode", [("finetune=features",), ("finetune=last_layers", "finetune.blocks=1")])
def test_t17_what_was_computed_once_is_what_frozen_layers_compute_at_every_update(finetune: Train, tmp_path: Path, mode: tuple[str, ...]) -> None:
    """The model has dropout: were it on in frozen layers, no two passes would give the same."""
    asked = (*mode, "trainer.log_every_steps=1", "trainer.max_steps=4", "evaluation.every_steps=1")
    stored = losses(finetune(tmp_path / "stored", *asked, "cache.use=always", of="bert_dropout"))
    again = losses(finetune(tmp_path / "again", *asked, "cache.use=never", of="bert_dropout"))
    assert len(stored) == 4
    assert stored == pytest.approx(again, rel=1e-5)


SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BY_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "biogpt": ("BioGptForCausalLM", SHAPE),
    "starcoder2": ("Starcoder2ForCausalLM", {**SHAPE, "num_key_value_heads": 2, "embedding_dropout": 0.1}),
    "xglm": ("XGLMForCausalLM", {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64, "layerdrop": 0.5}),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("mode", [("finetune=features",), ("finetune=last_layers", "finetune.blocks=1")])
def test_t17_nor_do_families_drop_out_or_leave_out_blocks_below_the_cut_that_do_so_by_hand(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, mode: tuple[str, ...], name: str
) -> None:
    """They call dropout in the module around the blocks, which is no dropout module that could be in eval() by itself."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained("gpt") / "final")
    model_class, settings = getattr(transformers, BY_HAND[name][0]), BY_HAND[name][1]
    torch.manual_seed(0)
    config = model_class.config_class(**settings, vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id)
    model_class(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    asked = (*mode, f"model.checkpoint={tmp_path / 'base'}", "trainer.log_every_steps=1", "trainer.max_steps=4", "evaluation.every_steps=1")
    stored = losses(finetune(tmp_path / "stored", *asked, "cache.use=always"))
    again = losses(finetune(tmp_path / "again", *asked, "cache.use=never"))
    assert len(stored) == 4
    assert stored == pytest.approx(again, rel=1e-5)


@pytest.mark.parametrize("mode", [("finetune=features", "cache.use=never"), ("finetune=last_layers", "finetune.blocks=1"), ("finetune=lora",)])
def test_t18_d11_a_large_decay_moves_nothing_that_is_frozen(finetune: Train, tmp_path: Path, mode: tuple[str, ...]) -> None:
    asked = ("optimizer.weight_decay=5", "optimizer.lr=0.1", "schedule=constant", "schedule.warmup_steps=0", "trainer.max_steps=2")
    found = json.loads((finetune(tmp_path / "run", *mode, *asked) / "run.json").read_text())["freezing"]
    assert found["frozen"] > 20
    assert found["frozen_but_moved"] == found["trainable_but_still"] == []


def test_t21_parameters_that_stay_trained_keep_their_own_optimizer_state_when_more_are_thawed(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By position, what a block's first matrix had gathered would go to the embeddings, which are thawed last and stand first."""
    real = trainer.Trainer._prepare
    seen: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def prepare(self: trainer.Trainer, phase: Any) -> Any:
        before = {name: state["exp_avg"].clone() for name, state in self._moments.items()}
        call, optimizer = real(self, phase)
        names = {id(p): n for n, p in self.saved.named_parameters()}
        after = {names[id(p)]: state["exp_avg"].clone() for p, state in self._inner(optimizer).state.items() if "exp_avg" in state}
        seen.append((before, after))
        return call, optimizer

    monkeypatch.setattr(trainer.Trainer, "_prepare", prepare)
    finetune(tmp_path / "run", "finetune=gradual")
    assert [len(before) > 0 for before, _ in seen] == [False, True, True]
    for before, after in seen[1:]:
        assert after.keys() > before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert not any(after[name].any() for name in after.keys() - before.keys())  # those that are thawed now have gathered nothing
        assert any(value.any() for value in before.values())
    assert seen[1][0].keys() < seen[2][0].keys()


# --- padding and ends in a family's own head ----------------------------------------------------------------------


@pytest.mark.parametrize("pad", [None, "the end"])
def test_t13_c02_a_familys_head_that_looks_for_padding_is_refused_where_none_only_pads_and_ours_is_not(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, pad: str | None
) -> None:
    from transformers import AutoTokenizer

    end = AutoTokenizer.from_pretrained(pretrained("gpt") / "final").eos_token
    base = with_tokenizer(pretrained("gpt"), tmp_path / "base", pad_token=end if pad else None)
    asked = ("finetune=full", f"model.checkpoint={base}", "trainer.max_steps=1")
    with pytest.raises(ConfigError, match="no token that only pads") as caught:
        finetune(tmp_path / "family", *asked, "model.head=family")
    assert "model.head=pooled" in str(caught.value.fix)
    finetune(tmp_path / "pooled", *asked, "model.head=pooled")
