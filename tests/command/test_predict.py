"""predict: the model's own probabilities at each [MASK], and whether a second segment follows; harmless to the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM, BertForNextSentencePrediction, RobertaConfig, RobertaForMaskedLM

from llmtrain.cli import main
from llmtrain.data import tokenizer as tokens
from tests.conftest import ANSWERS, TINY, tiny

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
