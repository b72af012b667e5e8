"""evaluate: the same number every time, weighted by tokens, on the run's own data unless other data is given."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from llmtrain.cli import main
from llmtrain.data import tokenizer as tokens
from tests.conftest import ANSWERS, TINY, TINY_FINETUNE, Pretrained, Train, realdata, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained run."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert main(["pretrain", *TINY, f"output_dir={folder}"]) == 0
    return folder


class Evaluate:
    """`llmtrain evaluate` on the run: numbers(*overrides) → its JSON; what it printed stays in `said`."""

    def __init__(self, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run, self.output, self.capsys = run, folder / "numbers.json", capsys
        self.said = ""

    def __call__(self, *overrides: str) -> dict[str, Any]:
        self.capsys.readouterr()
        code = main(["evaluate", f"model.checkpoint={self.run}", f"output={self.output}", "threads=1", "device=cpu", *overrides])
        said = self.capsys.readouterr()
        assert code == 0, said.err
        self.said = said.out
        return json.loads(self.output.read_text())  # type: ignore[no-any-return]


@pytest.fixture
def evaluate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    return Evaluate(run, tmp_path, capsys)


def test_it_gives_the_same_number_every_time_and_that_of_the_end_of_training(evaluate: Evaluate, run: Path) -> None:
    first, second = evaluate(), evaluate()
    assert first == second
    trained = json.loads((run / "run.json").read_text())
    assert {name: first[name] for name in trained["validation"]} == pytest.approx(trained["validation"], rel=1e-6)
    assert first["unigram_entropy"] == trained["references"]["unigram_entropy"]


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_batch_size_changes_no_number(evaluate: Evaluate, packing: str) -> None:
    # Ragged rows: the mean of batch means would be another number.
    one, many = (evaluate(f"objective.packing={packing}", f"batch_size={size}") for size in (1, 1000))
    names = ("loss", "perplexity", "bits_per_byte", "next_token_targets")
    assert [one[name] for name in names] == pytest.approx([many[name] for name in names], rel=1e-5)


def test_another_split_has_another_number(evaluate: Evaluate) -> None:
    numbers = {split: evaluate(f"split={split}") for split in ("validation", "test", "train")}
    assert len({n["loss"] for n in numbers.values()}) == 3
    assert [n["split"] for n in numbers.values()] == list(numbers)


def test_perplexity_and_bits_per_byte_are_those_of_a_tiny_text_by_hand(evaluate: Evaluate, run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    texts = ["the quick fox jumps", "naïve 🙂"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    numbers = evaluate(
        "data=text",
        f"data.train={tmp_path / 'text.jsonl'}",
        f"data.test={tmp_path / 'text.jsonl'}",
        "data.max_length=32",
        "split=test",
        "objective.packing=false",
    )
    tokenizer, model = tokens.load(str(run / "final")), AutoModelForCausalLM.from_pretrained(run / "final").eval()
    total, targets = 0.0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(F.cross_entropy(model(ids[:, :-1]).logits[0], ids[0, 1:], reduction="sum"))
        targets += ids.shape[1] - 1
    size = sum(len(text.encode()) for text in texts)
    assert numbers["next_token_targets"] == targets
    assert numbers["loss"] == pytest.approx(total / targets, rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(math.exp(total / targets), rel=1e-5)
    assert numbers["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_max_samples_takes_so_many_sequences_always_the_same(evaluate: Evaluate) -> None:
    numbers = evaluate("max_samples=3")
    assert numbers["next_token_targets"] == 3 * 16
    assert numbers == evaluate("max_samples=3")


def test_a_run_is_evaluated_on_its_own_data_and_that_is_said(evaluate: Evaluate) -> None:
    evaluate()
    assert "data as in the run: synthetic" in evaluate.said
    assert "objective as in the run: next_token" in evaluate.said


def test_the_final_folder_of_a_run_stands_for_it(evaluate: Evaluate, run: Path) -> None:
    own = evaluate()["loss"]
    evaluate.run = run / "final"
    assert evaluate()["loss"] == own
    assert "data as in the run: synthetic" in evaluate.said


def test_a_run_whose_data_a_resume_changed_is_evaluated_on_those_that_it_has_since(evaluate: Evaluate, run: Path, tmp_path: Path) -> None:
    other, resolved = Path(shutil.copytree(run, tmp_path / "run", symlinks=True)), tmp_path / "run" / "resolved.yaml"
    content = yaml.safe_load(resolved.read_text())
    content["data"]["seed"] = 5
    resolved.write_text(yaml.safe_dump({**content, "changes": [{"step": 4, "key": "data.seed", "before": 0, "after": 5}]}))
    asked, own = evaluate("data.seed=5")["loss"], evaluate()["loss"]
    evaluate.run = other
    assert evaluate()["loss"] == asked != own


def test_a_run_that_is_older_than_a_setting_is_evaluated_as_it_was(train: Train, evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate.run = run = train(tmp_path / "run", *ANSWERS["bert"])
    own = evaluate()
    content = yaml.safe_load((run / "config.yaml").read_text())
    del content["data"]["on_overlap"], content["objective"]["sentence_order"]["both_answers"]
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    assert evaluate() == own
    content["objective"]["masked_lm"]["probability"] = 0.5  # what the run has stays the run's
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    assert evaluate()["masked_lm_targets"] > 2 * own["masked_lm_targets"]


def test_a_key_on_the_command_line_wins_over_the_runs(evaluate: Evaluate) -> None:
    own, other = evaluate(), evaluate("data.seed=5")
    assert "data as in the run: synthetic" in evaluate.said
    assert own["loss"] != other["loss"]
    assert evaluate("data.max_length=8")["loss"] != own["loss"]


def test_the_runs_sections_stand_in_the_config_that_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"model.checkpoint={run}", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["kind"] == "synthetic"


def test_another_kind_of_data_replaces_the_runs(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n\n".join(f"my old dog sleeps {i} times" for i in range(60)))
    evaluate("data=text", f"data.train={tmp_path / 'mine.txt'}", "data.max_length=16", "split=train")
    assert "data as in the run" not in evaluate.said
    assert "mine.txt" in "".join(evaluate.said.split())  # a long path is broken into lines


def test_a_nested_key_of_the_runs_objective_can_be_given(evaluate: Evaluate) -> None:
    assert evaluate("objective.weights.next_token=2") == evaluate()


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["objective.weights.next_token=2"], "objective.weights.next_token has no effect"),
        (["data.num_workers=2"], "data.num_workers has no effect"),
        (["objective.packing=false", "objective.document_attention=true"], "objective.document_attention has no effect"),
    ],
)
def test_a_key_without_effect_is_a_note(evaluate: Evaluate, overrides: list[str], note: str) -> None:
    evaluate(*overrides)
    assert f"note: {note}" in evaluate.said


def test_what_is_printed_is_what_is_written(evaluate: Evaluate) -> None:
    numbers = evaluate()
    assert set(numbers) == {"model", "split", "loss", "perplexity", "bits_per_byte", "unigram_entropy", "next_token_targets"}
    printed = re.search(r"loss\s+│ ([\d.]+)", evaluate.said)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(numbers["loss"], rel=1e-4)


def test_without_an_output_nothing_is_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["evaluate", f"model.checkpoint={run}", "threads=1", "device=cpu", "max_samples=2"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("overrides", "code", "answer"),
    [
        (["split=dev"], 2, "allowed: train, validation, test"),
        (["batch_size=0"], 2, "allowed: 1 or more"),
        (["max_samples=0"], 2, "allowed: 1 or more, or null"),
        (["device=gpu"], 2, "allowed: auto, cpu, cuda, mps"),
        (["precision=fp64"], 2, "allowed: auto, fp32, bf16, fp16"),
        (["precision=fp16", "device=cpu"], 2, "no fp16 training"),
        (["model=gpt_tiny"], 2, "model=checkpoint has it"),
        (["data.max_length=64"], 2, "the model reads at most 32 positions"),
        (["data=text"], 2, "data.train"),
        (["data=text", "data.train=nowhere.txt", "data.max_length=16"], 3, "nowhere.txt: no such file"),
        (["data.packages=[torch]"], 2, "data=pydocs has it"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(run: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], code: int, answer: str) -> None:
    assert main(["evaluate", f"model.checkpoint={run}", *overrides]) == code
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "code", "answer"),
    [("a: [", 2, "not YAML"), ("seed: 1", 4, "not the config of a run"), ("data: {_target_: os.system}\nobjective: {}", 2, "_target_")],
)
def test_a_runs_config_is_not_trusted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, code: int, answer: str) -> None:
    (tmp_path / "final").symlink_to(run / "final")
    (tmp_path / "config.yaml").write_text(content)
    assert main(["evaluate", f"model.checkpoint={tmp_path}"]) == code
    assert answer in capsys.readouterr().err


def test_a_text_too_short_for_a_split_is_a_data_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("one document only")
    assert main(["evaluate", f"model.checkpoint={run}", "data=text", f"data.train={tmp_path / 'one.txt'}", "data.max_length=16"]) == 3
    assert "split is empty" in capsys.readouterr().err


def test_the_runs_config_is_left_as_it_is(evaluate: Evaluate, run: Path) -> None:
    before = yaml.safe_load((run / "config.yaml").read_text())
    evaluate("data.seed=5")
    assert yaml.safe_load((run / "config.yaml").read_text()) == before


# --- masked language models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny masked LM, trained a little."""
    folder = tmp_path_factory.mktemp("evaluate") / "masked"
    assert main(["pretrain", *tiny(*ANSWERS["masked_lm"]), f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def evaluate_masked(masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    return Evaluate(masked, tmp_path, capsys)


# Several lengths, so that batches are ragged; ☃ is unknown to the tokenizer, and what is unknown is not asked.
LINES = ["the quick fox jumps over a lazy dog .", "my old bell", "that small bird sings ☃ near the warm coat . a green tree grows behind my star ."]


def on_lines(folder: Path) -> list[str]:
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in LINES))
    return ["data=text", *(f"data.{split}={folder / 'lines.jsonl'}" for split in ("train", "test")), "data.max_length=48", "split=test"]


def test_a_masked_lm_gets_the_same_numbers_every_time_and_those_of_the_end_of_training(evaluate_masked: Evaluate, masked: Path) -> None:
    first = evaluate_masked("pseudo_tokens=50")
    written = evaluate_masked.output.read_bytes()
    assert evaluate_masked("pseudo_tokens=50") == first
    assert evaluate_masked.output.read_bytes() == written
    trained = json.loads((masked / "run.json").read_text())
    assert {name: first[name] for name in trained["validation"]} == pytest.approx(trained["validation"], rel=1e-6)
    assert first["unigram_entropy"] == trained["references"]["unigram_entropy"]
    assert set(first) == {"model", "split", "loss", "accuracy", "unigram_entropy", "pseudo_perplexity", "pseudo_perplexity_tokens", "masked_lm_targets"}


def test_the_batch_size_changes_no_number_of_a_masked_lm(evaluate_masked: Evaluate) -> None:
    one, many = (evaluate_masked("pseudo_tokens=40", "max_samples=6", f"batch_size={size}") for size in (1, 1000))
    names = ("loss", "accuracy", "pseudo_perplexity", "pseudo_perplexity_tokens", "unigram_entropy", "masked_lm_targets")
    assert [one[name] for name in names] == pytest.approx([many[name] for name in names], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_pseudo_perplexity_is_that_of_hiding_each_token_alone(evaluate_masked: Evaluate, masked: Path, tmp_path: Path, batch_size: int) -> None:
    from transformers import AutoModelForMaskedLM

    numbers = evaluate_masked(*on_lines(tmp_path), "pseudo_tokens=null", f"batch_size={batch_size}")
    tokenizer, model = tokens.load(str(masked / "final")), AutoModelForMaskedLM.from_pretrained(masked / "final").eval()
    losses: list[float] = []
    for line in LINES:
        ids = torch.tensor([tokenizer(line)["input_ids"]])
        for place in (i for i in range(ids.shape[1]) if int(ids[0, i]) not in tokenizer.all_special_ids):
            hidden = ids.clone()
            hidden[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                losses.append(float(F.cross_entropy(model(hidden).logits[0, place], ids[0, place])))
    assert numbers["pseudo_perplexity_tokens"] == len(losses) > 25
    assert numbers["pseudo_perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_pseudo_tokens_asks_so_many_and_never_more_than_there_are(evaluate_masked: Evaluate, tmp_path: Path) -> None:
    asked = {n: evaluate_masked(*on_lines(tmp_path), f"pseudo_tokens={n}") for n in ("5", "9999", "null")}
    assert asked["5"]["pseudo_perplexity_tokens"] == 5
    assert asked["9999"] == asked["null"]
    assert asked["5"]["pseudo_perplexity"] != asked["null"]["pseudo_perplexity"]


def test_with_no_pseudo_tokens_it_is_left_out_and_nothing_else_changes(evaluate_masked: Evaluate) -> None:
    without, some = evaluate_masked("pseudo_tokens=0"), evaluate_masked("pseudo_tokens=3")
    assert {name for name in some if name not in without} == {"pseudo_perplexity", "pseudo_perplexity_tokens"}
    assert {name: some[name] for name in without} == without


def test_a_causal_model_has_no_pseudo_perplexity(evaluate: Evaluate) -> None:
    assert not [name for name in evaluate("pseudo_tokens=null") if "pseudo" in name]


def test_pseudo_tokens_below_0_are_refused(masked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"model.checkpoint={masked}", "pseudo_tokens=-1"]) == 2
    assert "allowed: 0 or more, or null" in capsys.readouterr().err


def test_a_model_with_both_heads_has_the_numbers_of_both_and_a_pseudo_perplexity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *tiny(*ANSWERS["bert"], "trainer.max_steps=1"), f"output_dir={tmp_path / 'run'}"]) == 0
    numbers = Evaluate(tmp_path / "run", tmp_path, capsys)("pseudo_tokens=20", "max_samples=5")
    assert numbers["loss"] == pytest.approx(numbers["masked_lm_loss"] + numbers["sentence_order_loss"], rel=1e-6)
    assert numbers["sentence_order_targets"] == 5
    assert numbers["pseudo_perplexity_tokens"] == 20


# --- a finetuned model ----------------------------------------------------------------------------------------------

FINETUNED: dict[str, tuple[str, tuple[str, ...]]] = {
    "classes": ("bert", ("objective=classification", "finetune=features")),
    "the familys head": ("gpt", ("objective=classification", "finetune=full", "model.head=family")),
    "scores": ("bert", ("objective=regression", "data.pairs=true", "finetune=full")),
    "choices": ("gpt", ("objective=multiple_choice", "finetune=full")),
    "words": ("gpt", ("objective=next_token", "finetune=full", "objective.packing=false")),
}


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, pretrained: Pretrained) -> Callable[[str], Path]:
    """Tiny finetuned runs, made when they are first asked for: finetuned("classes") → its folder."""
    folder = tmp_path_factory.mktemp("finetuned")

    def run(name: str) -> Path:
        of, overrides = FINETUNED[name]
        if not (folder / name).exists():
            given = tiny(*overrides, "trainer.max_steps=3", "checkpoint.every_steps=null", "optimizer.lr=0.02", "checkpoint.export=last", base=TINY_FINETUNE)
            assert main(["finetune", *given, f"model.checkpoint={pretrained(of)}", f"output_dir={folder / name}"]) == 0
        return folder / name

    return run


@pytest.mark.parametrize("name", FINETUNED)
def test_a_finetuned_run_has_the_same_numbers_every_time_and_those_of_its_end(
    finetuned: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    # With the settings of `evaluate` alone: whose head it is, the folder says.
    evaluate = Evaluate(finetuned(name), tmp_path, capsys)
    first, second = evaluate(), evaluate()
    assert first == second
    trained = json.loads((finetuned(name) / "run.json").read_text())
    assert {metric: first[metric] for metric in trained["validation"]} == pytest.approx(trained["validation"], rel=1e-5)
    references = {metric: value for metric, value in trained["references"].items() if isinstance(value, float)}
    assert {metric: first[metric] for metric in references} == pytest.approx(references)


@pytest.mark.parametrize("name", FINETUNED)
def test_the_batch_size_changes_no_number_of_a_finetuned_run(
    finetuned: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    evaluate = Evaluate(finetuned(name), tmp_path, capsys)
    one, many = evaluate("batch_size=1"), evaluate("batch_size=64")
    assert {metric: value for metric, value in many.items() if metric not in ("model", "split")} == pytest.approx(
        {metric: value for metric, value in one.items() if metric not in ("model", "split")}, rel=1e-5, abs=1e-6
    )


def test_the_splits_of_a_finetuned_run_are_told_apart(finetuned: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = Evaluate(finetuned("classes"), tmp_path, capsys)
    numbers = {split: evaluate(f"split={split}") for split in ("train", "validation", "test")}
    assert len({n["loss"] for n in numbers.values()}) == 3
    assert len({n["class_targets"] for n in numbers.values()}) > 1
    assert all("majority_accuracy" in n for n in numbers.values())
    assert "test split" in evaluate.said


def rows_of(folder: Path, *labels: str) -> list[str]:
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(f"the {name} fox {i},{labels[i % len(labels)]}\n" for i in range(8)))
    return ["data=text", f"data.train={folder / 'train.csv'}", f"data.test={folder / 'test.csv'}", "split=test", "data.max_length=24"]


@pytest.mark.parametrize("name", ["classes", "the familys head"])
def test_a_head_of_other_classes_than_the_data_exits_4_with_both(
    finetuned: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = finetuned(name)
    capsys.readouterr()
    assert main(["evaluate", f"model.checkpoint={run}", *rows_of(tmp_path, "no", "yes"), "device=cpu", "threads=1"]) == 4
    assert "classes of the head: animal, outdoors, thing; of the data: no, yes" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["classes", "the familys head"])
def test_other_data_with_the_same_classes_is_evaluated(finetuned: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    numbers = Evaluate(finetuned(name), tmp_path, capsys)(*rows_of(tmp_path, "animal", "thing", "outdoors"))
    assert numbers["class_targets"] == 8


@pytest.mark.parametrize(("name", "pairs"), [("classes", "true"), ("scores", "false")])
def test_rows_of_another_number_of_texts_than_in_training_exit_3(
    finetuned: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, pairs: str
) -> None:
    run = finetuned(name)
    capsys.readouterr()
    assert main(["evaluate", f"model.checkpoint={run}", "data=synthetic", f"data.pairs={pairs}", "split=test", "device=cpu", "threads=1"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "the model was trained on" in said
    assert "fix: rows with" in said


def test_a_term_without_weight_is_not_counted_among_the_targets(finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finetune(tmp_path / "run", "trainer.max_steps=2")
    assert main(["evaluate", f"model.checkpoint={run}", "threads=1", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "class targets" in said
    assert "lm targets" not in said


def test_a_model_without_a_head_of_a_task_is_sent_to_finetune(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"model.checkpoint={run}", "objective=classification", *rows_of(tmp_path, "no", "yes"), "device=cpu", "threads=1"]) == 4
    assert "fix: train one first: llmtrain finetune" in capsys.readouterr().err


def test_a_class_that_the_test_split_lacks_changes_no_other(finetuned: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = rows_of(tmp_path, "animal", "thing", "outdoors")
    (tmp_path / "test.csv").write_text("text,label\nmy quick fox jumps,outdoors\n")
    numbers = Evaluate(finetuned("classes"), tmp_path, capsys)(*given)
    probability = answer_of(finetuned("classes"), "my quick fox jumps", "outdoors", capsys)
    assert numbers["loss"] == pytest.approx(-math.log(probability), rel=1e-4)


def answer_of(run: Path, text: str, label: str, capsys: pytest.CaptureFixture[str]) -> float:
    """The probability of a label, as `predict` gives it."""
    capsys.readouterr()
    assert main(["predict", f"model.checkpoint={run}", f"text='{text}'", "device=cpu", "threads=1"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    return float(json.loads(line)[f"probability_{label}"])


@pytest.mark.realdata
def test_a_real_model_on_stories_has_about_its_published_loss(tmp_path: Path) -> None:
    # 1.2968 nats a token were measured on TinyStories, which is not in the folder: the model's own kind of story comes near.
    folder = realdata("stories260k")
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
        "She wanted to play with it, but it was too high. Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
        'She said, "I want to play with your ball, but I can\'t find it."'
    )
    (tmp_path / "story.txt").write_text(story)
    given = ["data=text", f"data.train={tmp_path / 'story.txt'}", f"data.test={tmp_path / 'story.txt'}", "data.documents=file", "split=test"]
    output = tmp_path / "numbers.json"
    assert main(["evaluate", f"model.checkpoint={folder}", *given, f"output={output}", "threads=1", "device=cpu"]) == 0
    assert 0.7 < json.loads(output.read_text())["loss"] < 1.6
