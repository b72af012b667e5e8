"""predict: the model's own probabilities at each [MASK], and whether a second segment follows; harmless to the terminal."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    RobertaConfig,
    RobertaForMaskedLM,
)

from llmtrain.cli import main
from llmtrain.data import tokenizer as tokens
from llmtrain.model import head as heads
from llmtrain.model.base import Pooling
from llmtrain.objective import tasks
from tests.conftest import ANSWERS, TINY, TINY_FINETUNE, Pretrained, Train, tiny

ON = ("threads=1", "device=cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with both heads, trained a little, below a folder runs/ of its own."""
    folder = tmp_path_factory.mktemp("predict") / "runs" / "pretrain" / "one"
    assert main(["pretrain", *tiny(*ANSWERS["bert"], "model.initializer_range=0.3"), f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def literal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random masked LM whose tokenizer writes any text as it is, and calls its mask <mask>."""
    folder = tmp_path_factory.mktemp("predict") / "literal"
    tokenizer = tokens.train("bpe", Dataset.from_dict({"text": ["the [red]quick[/red] fox jumps, 'over' a \"lazy\" dog"] * 5}), 280, lambda text: None)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 128}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Predict:
    """`llmtrain predict`: numbers(folder, *overrides) → its JSON; what it printed stays in `said`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.output, self.capsys = folder / "numbers.json", capsys
        self.said = ""

    def __call__(self, model: Path, *overrides: str) -> dict[str, Any]:
        self.capsys.readouterr()
        code = main(["predict", f"model.checkpoint={model}", f"output={self.output}", *ON, *overrides])
        said = self.capsys.readouterr()
        assert code == 0, said.err
        self.said = said.out
        return json.loads(self.output.read_text())  # type: ignore[no-any-return]


@pytest.fixture
def predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Predict:
    return Predict(tmp_path, capsys)


# --- places ---------------------------------------------------------------------------------------------------------

TEXT = "the quick [MASK] jumps over a [MASK] dog ."


def expected(run: Path, place: int, *texts: str) -> dict[str, float]:
    """Token → the probability that the model itself gives it at the place-th mask."""
    tokenizer = tokens.load(str(run / "final"))
    inputs = tokenizer(*texts, return_tensors="pt")
    at = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()[place]
    with torch.no_grad():
        found = BertForMaskedLM.from_pretrained(run / "final").eval()(**inputs).logits[0, at].softmax(-1)
    return dict(zip(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))), found.tolist(), strict=True))


@pytest.mark.parametrize("place", [0, 1])
def test_each_mask_is_a_place_with_the_probabilities_of_the_model(predict: Predict, run: Path, place: int) -> None:
    found = predict(run, f"text={TEXT}")
    assert (found["text"], found["second"], len(found["places"])) == (TEXT, None, 2)
    theirs = expected(run, place, TEXT)
    assert found["places"][place] == pytest.approx({word: theirs[word] for word in found["places"][place]}, rel=1e-4)
    assert list(found["places"][place]) == sorted(theirs, key=lambda word: -theirs[word])[:5]


def test_two_places_are_two_answers(predict: Predict, run: Path) -> None:
    first, second = predict(run, f"text={TEXT}")["places"]
    assert first != second
    assert re.findall(r"place (\d): (.*)", predict.said) == [("1", "the quick ▁▁▁ jumps over a dog."), ("2", "the quick jumps over a ▁▁▁ dog.")]


def test_what_is_printed_is_what_is_written(predict: Predict, run: Path) -> None:
    places = predict(run, f"text={TEXT}")["places"]
    printed = re.findall(r"^  (\S+) +([\d.]+)%$", predict.said, re.MULTILINE)
    assert [word for word, _ in printed] == [word for place in places for word in place]
    assert [float(share) for _, share in printed] == pytest.approx([100 * p for place in places for p in place.values()], abs=0.006)


@pytest.mark.parametrize("top_k", [1, 3, 10_000])
def test_top_k_is_the_number_of_candidates(predict: Predict, run: Path, top_k: int) -> None:
    size = len(tokens.load(str(run / "final")))
    [place] = predict(run, "text=the [MASK] fox .", f"top_k={top_k}")["places"]
    assert len(place) == min(top_k, size)
    assert list(place) == list(predict(run, "text=the [MASK] fox .", "top_k=10000")["places"][0])[:top_k]


def test_it_gives_the_same_every_time(predict: Predict, run: Path) -> None:
    assert predict(run, f"text={TEXT}") == predict(run, f"text={TEXT}")


def test_without_an_output_nothing_is_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["predict", f"model.checkpoint={run}", *ON, "text=a [MASK]"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_without_a_checkpoint_it_takes_the_newest_run(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(run.parents[2])
    assert main(["predict", *ON, "text=a [MASK]"]) == 0
    assert "model.checkpoint=newest is runs/pretrain/one" in capsys.readouterr().out


def test_a_mask_in_the_second_segment_is_a_place_too(predict: Predict, run: Path) -> None:
    first, second = "the quick fox jumps .", "a lazy [MASK] sleeps ."
    found = predict(run, f"text={first}", f"second={second}")
    theirs = expected(run, 0, first, second)
    assert [place == pytest.approx({word: theirs[word] for word in place}, rel=1e-4) for place in found["places"]] == [True]


# --- a second segment -----------------------------------------------------------------------------------------------

PAIRS = [("the quick fox jumps .", "a lazy dog sleeps ."), ("a lazy dog sleeps .", "the quick fox jumps ."), ("the [MASK] fox .", "my old bell [MASK] .")]


@pytest.mark.parametrize(("text", "second"), PAIRS)
def test_the_probability_of_the_order_is_that_of_the_models_own_head(predict: Predict, run: Path, text: str, second: str) -> None:
    found = predict(run, f"text={text}", f"second={second}")
    with torch.no_grad():
        inputs = tokens.load(str(run / "final"))(text, second, return_tensors="pt")
        logits = BertForNextSentencePrediction.from_pretrained(run / "final").eval()(**inputs).logits
    assert found["in_order"] == pytest.approx(float(logits.softmax(-1)[0, 0]), rel=1e-5)
    assert 0 < found["in_order"] < 1
    assert f"follows the first: {found['in_order']:.2%}" in predict.said
    assert ("places" in found) is ("[MASK]" in text)


def test_the_order_is_not_the_same_for_every_pair(predict: Predict, run: Path) -> None:
    assert len({predict(run, f"text={text}", f"second={second}")["in_order"] for text, second in PAIRS}) == len(PAIRS)


def test_without_a_second_segment_nothing_is_said_of_an_order(predict: Predict, run: Path) -> None:
    assert "in_order" not in predict(run, f"text={TEXT}")
    assert "follows" not in predict.said


# --- text as typed --------------------------------------------------------------------------------------------------

TYPED = [
    "the <b>[red]quick[/red]</b> [MASK], [link=x]fox[/link]",
    "a, b, 'c' and \"d\" [MASK]",
    "[bold]x[/bold] [MASK]",
    "{a: b} = (c) [MASK] \\ ${oc.env:HOME} $HOME ~ # : = ==",
    "naïve 中文 🙂 [MASK]",
    "one ' quote [MASK] and one \" more",
    # Remove both marks when config._parse is mended.
    "'quoted' in the [MASK] 'middle'",
    "'a', [MASK], 'b'",
]


@pytest.mark.parametrize("text", TYPED)
def test_a_text_is_taken_and_printed_as_typed(predict: Predict, literal: Path, text: str) -> None:
    assert predict(literal, f"text={text}", "top_k=1")["text"] == text
    before, behind = text.split("[MASK]")
    shown = re.search(r"place 1: (.*)▁▁▁ (.*)", predict.said)
    assert shown is not None
    # Of a long text only the nearest tokens are shown.
    assert before.endswith(shown[1].removesuffix(" "))
    assert behind.startswith(shown[2])
    assert shown[1].strip()


def test_brackets_are_printed_literally(predict: Predict, literal: Path) -> None:
    predict(literal, "text=a [red]b[/red] [MASK] [bold]c", "top_k=1")
    assert "a [red]b[/red]  ▁▁▁  [bold]c" in predict.said


def test_the_second_segment_is_taken_as_typed(predict: Predict, run: Path) -> None:
    second = "[red], 'old' \"man\" ."
    assert predict(run, "text=the fox .", f"second={second}")["second"] == second


@pytest.mark.parametrize("nasty", ["\x1b[2J", "\x1b]0;title\x07", "\u202e", "\x9b31m", "\r"])
def test_what_could_drive_the_terminal_is_printed_as_an_escape(predict: Predict, literal: Path, nasty: str) -> None:
    assert predict(literal, f"text=x{nasty} [MASK]", "top_k=1000")["text"] == f"x{nasty} [MASK]"
    assert nasty not in predict.said
    assert not [c for c in predict.said if not c.isprintable() and c != "\n"]


def test_people_type_mask_whatever_the_tokenizer_calls_it(predict: Predict, literal: Path) -> None:
    one, other = (predict(literal, f"text=the {mask} fox")["places"] for mask in ("[MASK]", "<mask>"))
    assert one == other
    assert len(one) == 1


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "code", "answer"),
    [
        ([], 2, "allowed: a sentence, such as 'The [MASK] of a list.'"),
        (["text="], 2, "allowed: a sentence, such as"),
        (["text=  "], 2, "allowed: a sentence, such as"),
        (["text=the fox"], 2, "text='the fox' has no [MASK] to fill in"),
        (["text=the [mask] MASK fox"], 2, "has no [MASK] to fill in"),
        (["text=a [MASK]", "top_k=0"], 2, "allowed: 1 or more"),
        (["text=a [MASK]", "device=gpu"], 2, "allowed: auto, cpu, cuda, mps"),
        (["text=a [MASK]", "threads=0"], 2, "allowed: auto, or a whole number from 1"),
        (["text=a [MASK]", "model=bert"], 2, "fix: model=checkpoint model.checkpoint=FOLDER"),
        (["text=[MASK]" + " fox" * 62], 2, "the text has 65 tokens, the model reads at most 64"),
        (["text=the fox", "second=" + "fox " * 61], 2, "the text has 66 tokens, the model reads at most 64"),
    ],
)
def test_what_cannot_be_predicted_is_refused(run: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], code: int, answer: str) -> None:
    given = [] if "model=bert" in overrides else [f"model.checkpoint={run}"]
    assert main(["predict", *given, *overrides]) == code
    said = capsys.readouterr()
    assert answer in said.err
    assert said.out == ""


def test_a_text_as_long_as_the_model_reads_is_taken(predict: Predict, run: Path) -> None:
    assert len(predict(run, "text=[MASK]" + " fox" * 61)["places"]) == 1


def test_a_causal_model_is_sent_to_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *TINY, "trainer.max_steps=1", f"output_dir={tmp_path / 'gpt'}"]) == 0
    capsys.readouterr()
    assert main(["predict", f"model.checkpoint={tmp_path / 'gpt'}", "text=the [MASK]"]) == 2
    said = capsys.readouterr().err
    assert "this model is causal" in said
    assert "fix: llmtrain generate" in said


@pytest.mark.parametrize(("kind", "given", "what"), [("masked_lm", "second=a dog", "sentence-order"), ("sentence_order", "text=the [MASK]", "masked-LM")])
def test_a_head_that_was_not_trained_answers_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, given: str, what: str) -> None:
    assert main(["pretrain", *tiny(*ANSWERS[kind], "trainer.max_steps=1"), f"output_dir={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    assert main(["predict", f"model.checkpoint={tmp_path / 'run'}", *ON, "text=the fox", given]) == 4
    assert f"has no {what} head" in capsys.readouterr().err


def test_a_family_without_a_head_for_pairs_is_told_so(literal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roberta(literal, tmp_path)
    assert main(["predict", f"model.checkpoint={tmp_path}", *ON, "text=the fox", "second=a dog"]) == 2
    assert "has no head for pairs of segments" in capsys.readouterr().err


def roberta(literal: Path, folder: Path) -> None:
    """A random RoBERTa with 32 rows of positions; its padding id is 1, so 30 of them are for tokens."""
    from tokenizers import processors

    tokenizer = tokens.load(str(literal))
    end, frame = tokenizer.eos_token, f"{tokenizer.eos_token} $A {tokenizer.eos_token}"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, pair=f"{frame} $B {end}", special_tokens=[(end, 0)])
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}
    RobertaForMaskedLM(RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(("length", "code"), [(30, 0), (31, 2), (32, 2), (33, 2)])
def test_two_of_the_rows_of_a_robertas_positions_are_not_for_tokens(literal: Path, tmp_path: Path, length: int, code: int) -> None:
    roberta(literal, tmp_path)
    text = "z" * (length - 3)  # and a mask between two ends
    assert len(tokens.load(str(tmp_path))(f"<mask>{text}")["input_ids"]) == length
    assert main(["predict", f"model.checkpoint={tmp_path}", *ON, f"text=[MASK]{text}"]) == code


def test_candidates_that_read_alike_are_all_kept(predict: Predict, literal: Path) -> None:
    size = len(tokens.load(str(literal)))
    [place] = predict(literal, "text=the [MASK]", "top_k=10000")["places"]
    assert len(place) == size


def test_a_pair_stands_in_the_frame_that_the_model_was_trained_on(predict: Predict, tmp_path: Path) -> None:
    given = tiny(*ANSWERS["sentence_order"], "tokenizer.algorithm=bpe", "model.initializer_range=0.3", "trainer.max_steps=1")
    assert main(["pretrain", *given, f"output_dir={tmp_path / 'run'}"]) == 0
    first, second = "the quick fox jumps .", "a lazy dog sleeps ."
    tokenizer = tokens.load(str(tmp_path / "run" / "final"))
    end, (one, other) = tokenizer.eos_token_id, tokens.encode(tokenizer, [first, second])
    types = [0] * (len(one) + 2) + [1] * (len(other) + 1)
    with torch.no_grad():
        judge = BertForNextSentencePrediction.from_pretrained(tmp_path / "run" / "final").eval()
        logits = judge(input_ids=torch.tensor([[end, *one, end, *other, end]]), token_type_ids=torch.tensor([types])).logits
    assert predict(tmp_path / "run", f"text={first}", f"second={second}")["in_order"] == pytest.approx(float(logits.softmax(-1)[0, 0]), rel=1e-5)


def test_a_text_that_spells_a_special_token_is_only_text(predict: Predict, run: Path) -> None:
    # The toy tokenizer has no brackets: each is unknown.
    assert predict(run, "text=the [SEP] [MASK]")["places"] == predict(run, "text=the {SEP} [MASK]")["places"]


# --- a finetuned model ----------------------------------------------------------------------------------------------

TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "classes": ("bert", ("objective=classification", "finetune=features", "finetune.states=all")),
    "classes of a gpt": ("gpt", ("objective=classification", "finetune=last_layers", "finetune.blocks=1")),
    "the familys head": ("bert", ("objective=classification", "finetune=full", "model.head=family")),
    "the familys head of a gpt": ("gpt", ("objective=classification", "finetune=full", "model.head=family")),
    "pairs": ("bert", ("objective=classification", "data.pairs=true", "objective.symmetric=true", "finetune=full")),
    "scores": ("bert", ("objective=regression", "finetune=full")),
    "choices": ("gpt", ("objective=multiple_choice", "finetune=full")),
}
SENTENCES = ["the quick fox jumps over a lazy dog .", "my green tree", 'a "loud" bell, it rings', "naïve 🙂", "the", " ".join(["that old man talks ."] * 9)]


class Finetuned:
    """Tiny finetuned runs, made when they are first asked for: finetuned("pairs") → its folder."""

    def __init__(self, folder: Path, pretrained: Pretrained) -> None:
        self.folder, self.pretrained = folder, pretrained

    def __call__(self, name: str) -> Path:
        run = self.folder / name
        if not run.exists():
            of, overrides = TASKS[name]
            given = tiny(*overrides, "trainer.max_steps=3", "checkpoint.every_steps=null", "optimizer.lr=0.02", base=TINY_FINETUNE)
            assert main(["finetune", *given, f"model.checkpoint={self.pretrained(of)}", f"output_dir={run}"]) == 0
        return run


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, pretrained: Pretrained) -> Finetuned:
    return Finetuned(tmp_path_factory.mktemp("finetuned"), pretrained)


def asked(name: str) -> list[dict[str, Any]]:
    """Rows that a run of this name answers."""
    rows: list[dict[str, Any]] = [{"id": i, "text": text} for i, text in enumerate(SENTENCES)]
    if name == "pairs":
        rows = [{**row, "second": SENTENCES[-1 - i]} for i, row in enumerate(rows)]
    return [{**row, "choices": SENTENCES[: 2 + i % 3]} for i, row in enumerate(rows)] if name == "choices" else rows


class Answers:
    """`llmtrain predict` on a file of rows: answers(name, *overrides) → the records that it wrote."""

    def __init__(self, finetuned: Finetuned, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.finetuned, self.folder, self.capsys = finetuned, folder, capsys

    def __call__(self, name: str, *overrides: str, kind: str = "jsonl") -> list[dict[str, Any]]:
        file, output = self.folder / "rows.jsonl", self.folder / f"out.{kind}"
        file.write_text("".join(json.dumps(row) + "\n" for row in asked(name)))
        assert main(["predict", f"model.checkpoint={self.finetuned(name)}", f"file={file}", f"output={output}", *ON, *overrides]) == 0
        assert f"{len(asked(name))} answers: {output}" in " ".join(self.capsys.readouterr().out.split())
        if kind == "csv":
            with output.open(newline="", encoding="utf-8") as opened:
                return list(csv.DictReader(opened))
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def answers(finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Answers:
    return Answers(finetuned, tmp_path, capsys)


def framed(run: Path, row: dict[str, Any], order: int = 1) -> list[dict[str, torch.Tensor]]:
    """The sequences of a row as the model reads them, each a batch of its own: [CLS] A [SEP] B [SEP]."""
    tokenizer = tokens.load(str(run / "final"))
    words = tokens.vocabulary(tokenizer)
    segments = [[row["text"], choice] for choice in row["choices"]] if "choices" in row else [[row["text"], *([row["second"]] if "second" in row else [])]]
    found = []
    for texts in segments:
        parts = tasks.fitted(tokens.encode(tokenizer, texts)[::order], 24)  # the longest sequence of these runs
        ids, types = [words.start], [0]
        for number, part in enumerate(parts):
            ids += [*part, words.separator]
            types += [number] * (len(part) + 1)
        found.append({"input_ids": torch.tensor([ids]), **({"token_type_ids": torch.tensor([types])} if len(parts) > 1 else {})})
    return found


def by_hand(name: str, run: Path, row: dict[str, Any]) -> torch.Tensor:
    """The logits of a row: transformers' own model, and our head where it is ours."""
    if "familys" in name:
        with torch.no_grad():
            return AutoModelForSequenceClassification.from_pretrained(run / "final").eval()(**framed(run, row)[0]).logits[0]  # type: ignore[no-any-return]
    body, head = AutoModel.from_pretrained(run / "final").eval(), heads.read(run / "final")
    assert head is not None

    def vector(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        plain = inputs if "gpt" not in type(body).__name__.lower() else {"input_ids": inputs["input_ids"]}
        with torch.no_grad():
            states = body(**plain, output_hidden_states=True).hidden_states
        assert head.pooling in (Pooling.mean, Pooling.last)
        return torch.stack([states[n][:, -1] if head.pooling is Pooling.last else states[n].mean(1) for n in head.states], 1)

    orders = (1, -1) if name == "pairs" else (1,)
    with torch.no_grad():
        return torch.cat([head(sum(map(vector, both)))[0] for both in zip(*(framed(run, row, order) for order in orders), strict=True)])


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_those_of_the_model_opened_with_transformers_in_the_order_of_the_rows(answers: Answers, finetuned: Finetuned, name: str) -> None:
    found = answers(name)
    run = finetuned(name)
    assert len(found) == len(SENTENCES)
    for row, record in zip(asked(name), found, strict=True):
        assert {key: record[key] for key in row} == row
        logits = by_hand(name, run, row)
        if name == "scores":
            assert record["predicted_score"] == pytest.approx(float(logits[0]), rel=1e-4)
            continue
        shares = {key.removeprefix("probability_"): value for key, value in record.items() if key.startswith("probability_")}
        assert list(shares) == (["animal", "outdoors", "thing"] if name != "choices" else [str(i) for i in range(len(row["choices"]))])
        assert list(shares.values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
        best = list(shares)[int(logits.argmax())]
        assert str(record["predicted_choice" if name == "choices" else "predicted_label"]) == best
        assert name == "choices" or record["probability"] == shares[best]
    assert len({json.dumps(record) for record in found}) == len(found)


def counted_from(folder: Path, first: int) -> Path:
    """Rows with two or three choices whose right one is counted from `first`."""
    path = folder / f"choices{first}.jsonl"
    rows = [{"text": SENTENCES[i % 5], "choices": SENTENCES[: 2 + i % 2], "label": i % (2 + i % 2) + first, "id": i} for i in range(60)]
    path.write_text("".join(json.dumps({**row, "text": f"{row['text']} {row['id']}"}) + "\n" for row in rows))
    return path


def test_choices_are_counted_as_the_data_of_the_run_count_them(finetune: Train, tmp_path: Path) -> None:
    found, kept = {}, {}
    for first in (0, 1):
        data = ("data=text", f"data.train={counted_from(tmp_path, first)}", "data.documents=line", "data.validation_fraction=0.3")
        run = finetune(tmp_path / f"run{first}", "objective=multiple_choice", "finetune=full", *data)
        output = tmp_path / f"out{first}.jsonl"
        assert main(["predict", f"model.checkpoint={run}", f"file={counted_from(tmp_path, 0)}", f"output={output}", *ON]) == 0
        found[first] = [json.loads(line) for line in output.read_text().splitlines()]
        kept[first] = (run / "predictions.jsonl").read_text()
    for one, other in zip(found[0], found[1], strict=True):
        assert {"probability_0", "probability_1"} <= one.keys()
        assert other["predicted_choice"] == one["predicted_choice"] + 1
        renamed = {f"probability_{int(key.rpartition('_')[2]) + 1}": value for key, value in one.items() if key.startswith("probability_")}
        assert {key: value for key, value in other.items() if key.startswith("probability_")} == pytest.approx(renamed, abs=1e-6)
    assert {record["predicted_choice"] for record in found[1]} <= {1, 2, 3}
    assert kept[0] == kept[1]  # of one example with another of llmtrain's: from 0, as classes are


@pytest.mark.parametrize("name", TASKS)
def test_answers_do_not_depend_on_the_batch_size(answers: Answers, name: str) -> None:
    def numbers(size: int) -> list[float]:
        return [value for record in answers(name, f"batch_size={size}") for value in record.values() if isinstance(value, float)]

    one = numbers(1)
    assert one
    assert numbers(4) == pytest.approx(one, abs=1e-5)


def test_csv_holds_what_jsonl_holds(answers: Answers) -> None:
    lines, table = answers("classes"), answers("classes", kind="csv")
    assert [list(row) for row in table] == [list(record) for record in lines]
    assert [[row[name] for name in ("id", "text", "predicted_label")] for row in table] == [
        [str(record["id"]), record["text"], record["predicted_label"]] for record in lines
    ]
    assert [float(row["probability_animal"]) for row in table] == pytest.approx([record["probability_animal"] for record in lines])


def test_h16_a_text_that_a_spreadsheet_would_run_is_harmless_in_csv(finetuned: Finetuned, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,note\n"=1+1","@x"\n')
    given = [f"file={tmp_path / 'rows.csv'}", f"output={tmp_path / 'out.csv'}"]
    assert main(["predict", f"model.checkpoint={finetuned('classes')}", *given, *ON]) == 0
    assert "\n'=1+1,'@x," in (tmp_path / "out.csv").read_text()


def test_the_label_that_a_row_came_with_is_kept_beside_the_answer(finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nthe quick fox,unknown\n")
    assert main(["predict", f"model.checkpoint={finetuned('classes')}", f"file={tmp_path / 'rows.csv'}", *ON]) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert record["label"] == "unknown"
    assert record["predicted_label"] in ("animal", "outdoors", "thing")


def test_a_text_a_file_and_standard_input_have_the_same_answer(
    answers: Answers, finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {key: value for key, value in answers("classes")[0].items() if key != "id"}
    run, text = f"model.checkpoint={finetuned('classes')}", SENTENCES[0]
    (tmp_path / "texts.txt").write_text(f"{text}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n" + json.dumps({"text": text}) + "\n"))
    capsys.readouterr()
    for given in (f"text='{text}'", f"file={tmp_path / 'texts.txt'}", "file=-"):
        assert main(["predict", run, given, *ON]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(found) == 4
    for record in found:
        assert record == {key: value if not isinstance(value, float) else pytest.approx(value, abs=1e-5) for key, value in expected.items()}


def test_the_answer_to_a_text_may_be_written_as_json(finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answer.json"
    assert main(["predict", f"model.checkpoint={finetuned('pairs')}", "text=the fox", "second=a dog", f"output={output}", *ON]) == 0
    written = json.loads(output.read_text())
    assert (written["text"], written["second"]) == ("the fox", "a dog")
    assert json.dumps(written) in capsys.readouterr().out


def test_lines_of_text_are_answered_whatever_the_column_was_called_in_training(
    pretrained: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "".join(f"the {'fox' if i % 2 else 'tree'} number {i},{'animal' if i % 2 else 'plant'}\n" for i in range(40))
    (tmp_path / "train.csv").write_text(f"review,kind\n{table}")
    data = ["data=text", f"data.train={tmp_path / 'train.csv'}", "data.text_column=review", "data.label_column=kind", "data.validation_fraction=0.3"]
    given = [
        o for o in tiny("objective=classification", "trainer.max_steps=1", base=TINY_FINETUNE) if not o.startswith(("data=", "data.documents", "data.val"))
    ]
    assert main(["finetune", *given, *data, f"model.checkpoint={pretrained('bert')}", f"output_dir={tmp_path / 'run'}"]) == 0
    (tmp_path / "texts.txt").write_text("the fox\n")
    (tmp_path / "rows.csv").write_text("review\nthe fox\n")
    capsys.readouterr()
    for name in ("texts.txt", "rows.csv"):
        assert main(["predict", f"model.checkpoint={tmp_path / 'run'}", f"file={tmp_path / name}", *ON]) == 0
    one, other = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert one == other
    assert one["review"] == "the fox"


def test_an_answer_cannot_drive_a_terminal(finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "the fox \x1b[2J \u202e x"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert main(["predict", f"model.checkpoint={finetuned('classes')}", f"file={tmp_path / 'rows.jsonl'}", *ON]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert not {"\x1b", "\u202e"} & set(line)
    assert json.loads(line)["text"] == text


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (("file=ROWS.jsonl", "output=OUT.txt"), 3, "are not written"),
        (("file=ROWS.jsonl", "output=OUT.json"), 3, "are not written"),
        (("text=a", "output=OUT.txt"), 3, "are not written"),
        (("file=NONE.csv",), 3, "no such file"),
        (("file=ROWS.jsonl", "model.pooling=cls"), 2, "was trained on mean"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "ROWS.jsonl").write_text('{"text": "the fox"}\n')
    paths = [o.replace("=ROWS", f"={tmp_path}/ROWS").replace("=OUT", f"={tmp_path}/OUT").replace("=NONE", f"={tmp_path}/NONE") for o in given]
    checkpoint = finetuned("classes")
    capsys.readouterr()  # of the finetuning, which the first to ask has to wait for
    assert main(["predict", f"model.checkpoint={checkpoint}", *paths, *ON]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out
    assert not list(tmp_path.glob("OUT*"))


@pytest.mark.parametrize(
    ("name", "given", "code", "said"),
    [
        ("pairs", "text=the fox", 2, "text: the model was trained on a text and a second one"),
        ("pairs", "file=ONE.jsonl", 3, "there is one text a row, and the model was trained on a text and a second one"),
        ("pairs", "file=ONE.txt", 3, "rows with a second text"),
        ("classes", "text=the fox|second=the tree", 2, "second: the model was trained on one text a row"),
        ("the familys head", "file=TWO.csv", 3, "there is a second text in each row, and the model was trained on one text a row"),
    ],
)
def test_another_number_of_texts_than_in_training_is_refused_with_the_way_out(
    finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, given: str, code: int, said: str
) -> None:
    (tmp_path / "ONE.jsonl").write_text('{"text": "the fox"}\n')
    (tmp_path / "ONE.txt").write_text("the fox\n")
    (tmp_path / "TWO.csv").write_text("premise,hypothesis\nthe fox,the tree\n")
    run = finetuned(name)
    capsys.readouterr()
    assert main(["predict", f"model.checkpoint={run}", *given.replace("file=", f"file={tmp_path}/").split("|"), *ON]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "fix: " in captured.err
    assert not captured.out


def test_a_run_that_does_not_say_what_it_read_answers_as_before(finetuned: Finetuned, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finetuned("classes"), run, ignore=shutil.ignore_patterns("checkpoints"))
    record = json.loads((run / "run.json").read_text())
    assert record.pop("reads") == ["text"]
    (run / "run.json").write_text(json.dumps(record))
    assert main(["predict", f"model.checkpoint={run}", "text=the fox", "second=the tree", *ON]) == 0


@pytest.mark.parametrize("output", [False, True])
def test_the_columns_that_are_read_and_the_rows_that_are_cut_are_said_beside_the_answers(
    finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: bool
) -> None:
    (tmp_path / "rows.csv").write_text(f"premise,hypothesis,id\n{SENTENCES[-1]},the fox,1\nthe tree,the fox,2\n")
    run = finetuned("pairs")
    capsys.readouterr()
    given = [f"output={tmp_path / 'out.jsonl'}"] if output else []
    assert main(["predict", f"model.checkpoint={run}", f"file={tmp_path / 'rows.csv'}", *given, *ON]) == 0
    captured = capsys.readouterr()
    said = captured.out if output else captured.err
    assert "rows.csv: text from 'premise', second text from 'hypothesis'" in said
    assert "1 of 2 rows are longer than 24 tokens and are cut" in said
    if not output:
        assert [json.loads(line)["id"] for line in captured.out.splitlines()] == ["1", "2"]


def test_a_text_alone_is_no_choice(finetuned: Finetuned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", f"model.checkpoint={finetuned('choices')}", "text=a", *ON]) == 2
    assert "chooses between texts" in capsys.readouterr().err


def test_a_head_without_its_run_and_a_file_without_a_head_are_refused_with_the_way_out(
    finetuned: Finetuned, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finetuned("classes") / "final", tmp_path / "final")
    assert main(["predict", f"model.checkpoint={tmp_path / 'final'}", "text=a", *ON]) == 2
    assert "give the run's own folder" in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text("text\na\n")
    assert main(["predict", f"model.checkpoint={run}", f"file={tmp_path / 'rows.csv'}", *ON]) == 2
    assert "llmtrain finetune trains one" in capsys.readouterr().err


def test_final_of_a_run_stands_for_the_run(finetuned: Finetuned, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (finetuned("classes"), finetuned("classes") / "final"):
        assert main(["predict", f"model.checkpoint={folder}", "text=the fox", *ON]) == 0
    one, other = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert one == other


@pytest.mark.parametrize("fault", ["head.safetensors", "head.json", "model.safetensors"])
def test_c07_a_damaged_head_or_body_answers_nothing(finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    shutil.copytree(finetuned("classes"), tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    path = tmp_path / "run" / "final" / fault
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["predict", f"model.checkpoint={tmp_path / 'run'}", "text=a", *ON]) == 4
    assert f"{fault} has" in capsys.readouterr().err
