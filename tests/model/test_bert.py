"""BERT from nothing: published sizes, transformers' own classes, and a final/ that transformers opens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

import llmtrain
from llmtrain.cli import main
from llmtrain.config import build, compose, groups
from llmtrain.data import tokenizer as tokens
from llmtrain.data.synthetic import document
from llmtrain.data.tokenizer import Vocabulary
from llmtrain.errors import CheckpointError, ConfigError
from llmtrain.model import forward
from llmtrain.model.base import Attention, Head, HeadKind, Model, Pooling
from llmtrain.model.bert import BERT
from llmtrain.model.checkpoint import Checkpoint
from llmtrain.objective.base import IGNORED, Objective
from llmtrain.seeding import generator
from tests.conftest import ANSWERS, TINY, Train, realdata, tiny

TRAINED = {"masked_lm": BertForMaskedLM, "sentence_order": BertForNextSentencePrediction, "bert": BertForPreTraining}
PLAIN: dict[str, Any] = {"head": HeadKind.pooled, "pooling": Pooling.auto}  # what the objectives of pretraining do not ask for
HEADS = {"masked_lm": Head.masked_lm, "sentence_order": Head.sentence_order, "bert": Head.pretraining}


class Words:
    """As much of a tokenizer as a model from nothing asks for."""

    pad_token_id, bos_token_id, eos_token_id = 3, 5, 6

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def bert(*overrides: str) -> Any:
    return build(compose("pretrain", ["objective=masked_lm", *overrides]).config.model, Model, "model")


SMALL = ("model.num_hidden_layers=1", "model.hidden_size=16", "model.num_attention_heads=2", "model.max_position_embeddings=16")


# --- sizes ----------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "bert_tiny": 4_385_920,
    "bert_mini": 11_170_560,
    "bert_small": 28_763_648,
    "bert_medium": 41_373_184,
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
}


@pytest.mark.parametrize(("preset", "published"), PUBLISHED.items())
def test_a_preset_has_the_published_number_of_parameters(preset: str, published: int) -> None:
    with torch.device("meta"):
        model = BertModel(bert(f"model={preset}").config(Words(30_522)))
    assert sum(p.numel() for p in model.parameters()) == published


def test_no_preset_was_left_out() -> None:
    assert {*PUBLISHED, "bert"} == {name for name in groups()["model"] if name.startswith("bert")}


# --- config ---------------------------------------------------------------------------------------------------------


def test_the_vocabulary_and_the_special_ids_are_those_of_the_tokenizer() -> None:
    config = bert("model=bert").config(Words(321))
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id, config.eos_token_id) == (321, 3, 5, 6)


def test_there_are_two_kinds_of_segments() -> None:
    assert bert("model=bert").config(Words(9)).type_vocab_size == 2


@pytest.mark.parametrize(("activation", "name"), [("gelu", "gelu"), ("gelu_tanh", "gelu_pytorch_tanh"), ("relu", "relu")])
def test_the_activation_is_the_one_of_the_setting(activation: str, name: str) -> None:
    assert bert("model=bert", f"model.activation={activation}").config(Words(9)).hidden_act == name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_reaches_embeddings_residuals_and_attention(dropout: float) -> None:
    config = bert("model=bert", f"model.dropout={dropout}").config(Words(9))
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (dropout, dropout)


@pytest.mark.parametrize(("given", "width"), [("null", 4 * 256), ("100", 100)])
def test_the_inner_width_is_four_times_the_outer_one_unless_given(given: str, width: int) -> None:
    assert bert("model=bert", f"model.intermediate_size={given}").config(Words(9)).intermediate_size == width


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_matrix_is_the_input_embedding_where_that_is_set(tied: bool) -> None:
    model = bert("model=bert", *SMALL, f"model.tie_word_embeddings={tied}").load(Words(50), Head.masked_lm, resize=False)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


@pytest.mark.parametrize("initial", [0.02, 0.05])
def test_weights_start_with_the_deviation_of_the_setting(initial: float) -> None:
    torch.manual_seed(0)
    model = bert("model=bert", *SMALL, f"model.initializer_range={initial}").load(Words(2000), Head.masked_lm, resize=False)
    assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(initial, rel=0.02)


def test_the_seed_decides_the_first_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in bert("model=bert", *SMALL).load(Words(50), Head.pretraining, resize=False).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("head", "kind"), [(Head.masked_lm, BertForMaskedLM), (Head.sentence_order, BertForNextSentencePrediction), (Head.pretraining, BertForPreTraining)]
)
def test_each_head_is_a_class_of_transformers_in_fp32(head: Head, kind: type) -> None:
    model = bert("model=bert", *SMALL).load(Words(50), head, resize=False)
    assert type(model) is kind
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_bert_wears_every_head_but_that_of_a_causal_model() -> None:
    model = bert("model=bert")
    assert {head for head in Head if model.wears(head)} == set(Head) - {Head.next_token}


def test_a_bert_is_bidirectional_and_knows_its_width_and_positions() -> None:
    model = bert("model=bert_base")
    assert isinstance(model, BERT)
    known = (model.attention, model.width, model.positions, model.tokenizer_path, model.tokenizer_algorithm, model.separates)
    assert known == (Attention.bidirectional, 768, 512, None, "wordpiece", False)


def test_a_token_sees_what_stands_behind_it() -> None:
    torch.manual_seed(0)
    model = bert("model=bert", *SMALL).load(Words(50), Head.masked_lm, resize=False).eval()
    ids = torch.arange(10)[None]
    changed = ids.clone()
    changed[0, 9] = 40
    with torch.no_grad():
        assert not torch.equal(model(ids).logits[:, 0], model(changed).logits[:, 0])


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("model.num_hidden_layers=0", "1 or more"),
        ("model.hidden_size=0", "1 or more"),
        ("model.num_attention_heads=0", "1 or more"),
        ("model.hidden_size=255", "a multiple of num_attention_heads=4"),
        ("model.intermediate_size=0", "1 or more, or null"),
        ("model.max_position_embeddings=3", "4 or more"),
        ("model.dropout=1", "0 or more and below 1"),
        ("model.dropout=-0.1", "0 or more and below 1"),
        ("model.initializer_range=0", "above 0 and below 1"),
        ("model.activation=swish", "gelu, gelu_tanh, relu"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_key(override: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0]) as caught:
        bert("model=bert", override)
    assert allowed in str(caught.value.allowed)


# --- final/ ---------------------------------------------------------------------------------------------------------

Run = Callable[[str], Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Objective → a tiny run, trained when it is first asked for."""
    made: dict[str, Path] = {}

    def run_of(objective: str) -> Path:
        if objective not in made:
            folder = tmp_path_factory.mktemp("bert") / objective
            assert main(["pretrain", *tiny(*ANSWERS[objective]), f"output_dir={folder}"]) == 0
            made[objective] = folder
        return made[objective]

    return run_of


def part(name: str) -> str:
    """Which part of a BERT a tensor belongs to."""
    return next((part for part in ("pooler", "predictions", "seq_relationship") if part in name), "body")


# Parts that transformers' class misses in the weights, and parts of the weights that it has no place for.
OPENED = [
    ("masked_lm", BertForMaskedLM, set(), set()),
    ("masked_lm", BertForPreTraining, {"pooler", "seq_relationship"}, set()),
    ("masked_lm", AutoModel, {"pooler"}, {"predictions"}),
    ("sentence_order", BertForMaskedLM, {"predictions"}, {"pooler", "seq_relationship"}),
    ("sentence_order", BertForPreTraining, {"predictions"}, set()),
    ("sentence_order", AutoModel, set(), {"seq_relationship"}),
    ("bert", BertForMaskedLM, set(), {"pooler", "seq_relationship"}),
    ("bert", BertForPreTraining, set(), set()),
    ("bert", AutoModel, set(), {"predictions", "seq_relationship"}),
]


@pytest.mark.parametrize(("objective", "kind", "missing", "unexpected"), OPENED)
def test_final_opens_in_transformers_and_lacks_no_more_than_a_head(run: Run, objective: str, kind: Any, missing: set[str], unexpected: set[str]) -> None:
    _, info = kind.from_pretrained(run(objective) / "final", output_loading_info=True)
    assert {part(name) for name in info["missing_keys"]} == missing
    assert {part(name) for name in info["unexpected_keys"]} == unexpected
    assert not info["mismatched_keys"]


@pytest.mark.parametrize("objective", TRAINED)
def test_the_class_that_was_trained_is_named_in_final_and_is_whole(run: Run, objective: str) -> None:
    assert json.loads((run(objective) / "final" / "config.json").read_text())["architectures"] == [TRAINED[objective].__name__]
    _, info = TRAINED[objective].from_pretrained(run(objective) / "final", output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))


def test_final_of_a_run_elsewhere_opens_as_well(train: Train, tmp_path: Path) -> None:
    # The way a run takes through `start` alone, without the command line.
    final = train(tmp_path / "run", *ANSWERS["bert"], "trainer.max_steps=1") / "final"
    assert type(BertForPreTraining.from_pretrained(final)) is BertForPreTraining


def both(run: Path, objective: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """(as llmtrain loads it, as transformers does, a pair of segments) of a run."""
    tokenizer = tokens.load(str(run / "final"))
    ours = Checkpoint(checkpoint=str(run), **PLAIN).load(tokenizer, HEADS[objective], resize=False).eval()
    theirs = TRAINED[objective].from_pretrained(run / "final").eval()
    return ours, theirs, dict(tokenizer("the quick fox jumps", "a lazy dog sleeps", return_tensors="pt"))


@pytest.mark.parametrize("objective", TRAINED)
def test_transformers_gives_the_logits_that_llmtrain_gives(run: Run, objective: str) -> None:
    ours, theirs, inputs = both(run(objective), objective)
    assert type(ours) is type(theirs)
    with torch.no_grad():
        one, other = ours(**inputs).to_tuple(), theirs(**inputs).to_tuple()
        encoded = forward.encode(ours, forward.reach(ours), **inputs)
        if objective != "sentence_order":
            assert torch.allclose(forward.vocabulary_logits(ours, encoded), other[0], atol=1e-6)
        if objective != "masked_lm":
            assert torch.allclose(forward.sentence_logits(ours, encoded), other[-1], atol=1e-6)
    assert len(one) == len(other) == (2 if objective == "bert" else 1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_both_heads_of_a_bert_run_give_the_logits_of_transformers(run: Run) -> None:
    ours, theirs, inputs = both(run("bert"), "bert")
    with torch.no_grad():
        output = theirs(**inputs)
        encoded = forward.encode(ours, forward.reach(ours), **inputs)
        assert torch.allclose(forward.vocabulary_logits(ours, encoded), output.prediction_logits, atol=1e-6)
        assert torch.allclose(forward.sentence_logits(ours, encoded), output.seq_relationship_logits, atol=1e-6)
    assert output.prediction_logits.std() > 0.01  # equal because right, not because nothing is there
    assert not torch.equal(output.seq_relationship_logits[0, 0], output.seq_relationship_logits[0, 1])


@pytest.mark.parametrize("objective", TRAINED)
def test_every_tensor_of_a_trained_class_moved(run: Run, objective: str) -> None:
    freezing = json.loads((run(objective) / "run.json").read_text())["freezing"]
    assert freezing["frozen"] == 0
    assert freezing["trainable_moved"] == freezing["trainable"] > 0


# --- pairs of model and objective that do not go together -----------------------------------------------------------

TABLE = "allowed: objective=next_token with causal models (GPT, Llama, …); masked_lm with bidirectional ones; sentence_order and bert with BERT's relatives"
ASK = "import json, sys; from llmtrain.cli import main; code = main({arguments!r}); print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"


@pytest.mark.parametrize(
    ("arguments", "error", "allowed"),
    [
        (["objective=masked_lm"], "asks for a bidirectional model, this one is causal", TABLE),
        (["objective=sentence_order"], "asks for a bidirectional model, this one is causal", TABLE),
        (["objective=bert"], "asks for a bidirectional model, this one is causal", TABLE),
        (["model=bert"], "asks for a causal model, this one is bidirectional", TABLE),
        (["model=bert", "objective=masked_lm", "tokenizer.algorithm=bpe"], "makes no mask ([MASK]) token", "allowed: wordpiece"),
        (["model=bert", "objective=bert", "tokenizer.algorithm=bpe"], "makes no mask ([MASK]) token", "allowed: wordpiece"),
        (["tokenizer.algorithm=wordpiece"], "makes no end-of-text token", "allowed: bpe"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_pair_is_refused_before_anything_is_loaded(tmp_path: Path, arguments: list[str], error: str, allowed: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(llmtrain.__file__).parents[1])}
    program = ASK.format(arguments=["pretrain", *arguments])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path, check=False)
    *said, last = done.stderr.splitlines()
    code, modules = json.loads(last)
    assert code == 2
    assert error in said[0]
    assert said[1] == allowed
    assert {name.split(".")[0] for name in modules} & {"torch", "transformers", "datasets"} == set()
    assert list(tmp_path.iterdir()) == []


TEXTS = [document(generator(0, "test bert", i), 60) for i in range(20)]
WITHOUT_MODEL = [o for o in TINY if not o.startswith("model.")]
# Documents long enough for pairs of segments, and short sequences.
LONGER = [*WITHOUT_MODEL, "data.documents=80", "data.words=60"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokens.train("wordpiece", Dataset.from_dict({"text": TEXTS}), 120, lambda text: None)


def small(tokenizer: Any) -> BertConfig:
    return BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32)


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_without_a_mask_is_refused_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens.train("bpe", Dataset.from_dict({"text": TEXTS}), 300, lambda text: None).save_pretrained(tmp_path / "bpe")
    arguments = [*tiny(*ANSWERS["masked_lm"]), f"tokenizer.path={tmp_path / 'bpe'}", f"output_dir={tmp_path / 'run'}"]
    assert main(["pretrain", *arguments]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "bpe") in said
    assert "has no mask ([MASK]) token" in said


def test_a_tokenizer_without_a_mask_is_enough_for_pairs_of_segments(tmp_path: Path) -> None:
    tokens.train("bpe", Dataset.from_dict({"text": TEXTS}), 300, lambda text: None).save_pretrained(tmp_path / "bpe")
    arguments = [*tiny(*ANSWERS["sentence_order"]), f"tokenizer.path={tmp_path / 'bpe'}", "trainer.max_steps=1", f"output_dir={tmp_path / 'run'}"]
    assert main(["pretrain", *arguments]) == 0


@pytest.mark.parametrize("verb", ["pretrain", "evaluate"])
@pytest.mark.parametrize("objective", ["masked_lm", "sentence_order", "bert"])
def test_a_gpt_that_exists_is_refused_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str, verb: str) -> None:
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=32, vocab_size=50)).save_pretrained(tmp_path / "gpt")
    given = [*WITHOUT_MODEL, "model=checkpoint", f"output_dir={tmp_path / 'run'}"] if verb == "pretrain" else ["data=synthetic", "data.max_length=16"]
    assert main([verb, *given, f"model.checkpoint={tmp_path / 'gpt'}", f"objective={objective}"]) == 2
    said = capsys.readouterr().err
    assert "asks for a bidirectional model, this one is causal" in said
    assert TABLE in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objective", "what"),
    [("bert", "no class with a masked-LM head and a head for pairs of segments"), ("sentence_order", "no head for pairs of segments")],
)
def test_a_roberta_has_no_head_for_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: Any, objective: str, what: str) -> None:
    config = RobertaConfig(**{k: v for k, v in small(tokenizer).to_dict().items() if k not in ("model_type", "architectures")})
    folder = saved(tmp_path / "roberta", RobertaForMaskedLM(config), tokenizer)
    arguments = ["model=checkpoint", f"model.checkpoint={folder}", f"objective={objective}", f"output_dir={tmp_path / 'run'}"]
    assert main(["pretrain", *LONGER, *arguments]) == 2
    said = capsys.readouterr().err
    assert f"transformers has {what} for this model's family" in said
    assert TABLE in said
    assert not (tmp_path / "run").exists()


# --- a head that the weights lack -----------------------------------------------------------------------------------


def test_a_body_without_a_head_trains_one_and_that_is_said_loudly(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    body = BertModel(small(tokenizer), add_pooling_layer=False)
    folder = saved(tmp_path / "body", body, tokenizer)
    arguments = ["model=checkpoint", f"model.checkpoint={folder}", "objective=masked_lm", "trainer.max_steps=1", "optimizer.lr=1e-9"]
    assert main(["pretrain", *LONGER, *arguments, f"output_dir={tmp_path / 'run'}"]) == 0
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    warned = [line for line in found["warnings"] if "has no masked-LM head" in line]
    assert len(warned) == 1
    assert "they start from random numbers and are trained" in warned[0]
    assert "has no masked-LM head" in " ".join(capsys.readouterr().out.split())
    assert found["freezing"]["frozen"] == 0
    # The body is the one of the folder: one step this small moves nothing far.
    after = BertForMaskedLM.from_pretrained(tmp_path / "run" / "final").bert.state_dict()
    assert all(torch.allclose(after[name], value, atol=1e-6) for name, value in body.state_dict().items())
    assert main(["evaluate", f"model.checkpoint={tmp_path / 'run'}", "device=cpu", "threads=1", "max_samples=2", "pseudo_tokens=2"]) == 0


def test_a_head_that_nobody_trained_is_not_evaluated(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "body", BertModel(small(tokenizer)), tokenizer)
    assert main(["evaluate", f"model.checkpoint={folder}", "objective=masked_lm", "data=synthetic", "data.max_length=16", "device=cpu", "threads=1"]) == 4
    said = capsys.readouterr().err
    assert "has no masked-LM head" in said
    assert "train one first" in said


@pytest.mark.parametrize(
    ("kind", "head", "named"),
    [
        (BertForMaskedLM, Head.sentence_order, "sentence-order"),
        (BertForMaskedLM, Head.pretraining, "whole pretraining"),
        (BertForNextSentencePrediction, Head.masked_lm, "masked-LM"),
    ],
)
def test_a_new_head_is_made_only_where_it_may_be(tmp_path: Path, tokenizer: Any, kind: Any, head: Head, named: str) -> None:
    model = Checkpoint(checkpoint=str(saved(tmp_path, kind(small(tokenizer)), tokenizer)), **PLAIN)
    with pytest.raises(CheckpointError, match=f"has no {named} head"):
        model.load(tokenizer, head, resize=False)
    assert model.load(tokenizer, head, resize=False, new_head=True) is not None


def test_a_body_that_misses_a_tensor_is_refused_though_a_new_head_may_be_made(tmp_path: Path, tokenizer: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, BertModel(small(tokenizer)), tokenizer)
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "layer.1.output.dense.weight" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="tensors of BertForMaskedLM are missing or of another shape"):
        Checkpoint(checkpoint=str(folder), **PLAIN).load(tokenizer, Head.masked_lm, resize=False, new_head=True)


@pytest.mark.parametrize(
    ("config", "wears"),
    [
        (BertConfig(), {Head.next_token, Head.masked_lm, Head.sentence_order, Head.pretraining}),
        (RobertaConfig(), {Head.next_token, Head.masked_lm}),
        (transformers.AlbertConfig(), {Head.masked_lm, Head.pretraining}),
        (transformers.DistilBertConfig(), {Head.masked_lm}),
        (transformers.GPT2Config(), {Head.next_token}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, set) else "",
)
def test_which_heads_a_family_wears_is_what_transformers_has(tmp_path: Path, config: Any, wears: set[Head]) -> None:
    config.save_pretrained(tmp_path)
    model = Checkpoint(checkpoint=str(tmp_path), **PLAIN)
    assert {head for head in Head if model.wears(head)} == wears | {Head.task}  # a bare body is enough for our head on it


# --- real data ------------------------------------------------------------------------------------------------------

# The heavy-chain variable domain of trastuzumab (DrugBank DB00072).
HEAVY = "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"


@pytest.mark.realdata
def test_a_real_masked_lm_knows_the_amino_acids_of_an_antibody() -> None:
    folder = realdata("sapiens-vh")
    amino = tokens.load(str(folder))
    model = Checkpoint(checkpoint=str(folder), **PLAIN).load(amino, Head.masked_lm, resize=False).eval()
    asked = build(compose("pretrain", ["model=bert", "objective=masked_lm"]).config.objective, Objective, "objective")
    examples = asked.examples(Dataset.from_dict({"text": [HEAVY]}), amino, 140)
    right = targets = 0
    with torch.no_grad():
        for batch in asked.one_by_one(examples, tokens.vocabulary(amino), None, 40):
            at = batch.labels["masked_lm"] != IGNORED
            right += int((model(**batch.inputs).logits[at].argmax(-1) == batch.labels["masked_lm"][at]).sum())
            targets += int(at.sum())
    assert targets == len(HEAVY)
    assert right / targets > 0.6


@pytest.mark.realdata
def test_the_real_vocabulary_has_what_a_masked_lm_needs() -> None:
    words: Vocabulary = tokens.vocabulary(tokens.load(str(realdata("sapiens-vh"))))
    assert (words.start, words.separator, words.mask, len(words.plain)) == (0, 2, 24, 20)
