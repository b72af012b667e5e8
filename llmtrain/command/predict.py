"""`llmtrain predict`: the answers of a finetuned model to a file of texts; what a masked LM puts where a sentence says [MASK]."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from llmtrain import files, runtime
from llmtrain.command import train
from llmtrain.config import Composed, build, section
from llmtrain.data.base import Data, Target
from llmtrain.data.columns import Named
from llmtrain.errors import ConfigError, plain, printable, require
from llmtrain.model.base import Attention, Head, Model
from llmtrain.model.checkpoint import Checkpoint
from llmtrain.objective.base import Draw, Objective

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASK = "[MASK]"  # what people type, whatever the tokenizer calls it


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to look at.

    Attributes:
        file: texts for a finetuned model, .csv, .jsonl, .parquet or .txt; -: standard input; null: `text` alone.
        text: a text for a finetuned model, or a sentence with [MASK] in one or several places.
        second: a second segment, for a model that was trained on pairs of segments; null: none.
        top_k: candidates for each place.
        batch_size: texts of a forward pass.
        output: a .csv or .jsonl file for the answers to `file`, or a JSON file for the numbers of a text; null: only the terminal.
        device: cpu, cuda, mps or auto.
        threads: CPU threads; auto: all cores.
    """

    file: str | None
    text: str
    second: str | None
    top_k: int
    batch_size: int
    output: str | None
    device: str
    threads: str

    def __post_init__(self) -> None:
        require(bool(self.text.strip()) or self.file is not None, "text", self.text, f"a sentence, such as 'The {MASK} of a list.', or file=TEXTS.csv")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        require(self.second is None or bool(self.second.strip()), "second", self.second, "a segment of text, or null")
        require(self.top_k >= 1, "top_k", self.top_k, "1 or more")
        runtime.single(self.device, self.threads, runtime.Precision.fp32)  # checks device and threads


def command(composed: Composed, overrides: list[str]) -> int:
    config = composed.config
    settings = build(OmegaConf.create({k: v for k, v in config.items_ex(resolve=False) if k not in ("model", "experiment")}), Settings, "")
    for line in composed.notes:
        print(f"note: {plain(line)}")
    train.name_newest(config)
    model = build(section(config, "model"), Model, "model")
    if model.tokenizer_path is None:
        raise ConfigError("predict needs weights that exist", fix="model=checkpoint model.checkpoint=FOLDER")
    if isinstance(model, Checkpoint) and model.has_head:
        _answer(model, settings, train.run_of(model.checkpoint), train.trained_on(model.checkpoint))
        return 0
    if settings.file is not None:
        raise ConfigError(
            f"file={settings.file}: {model.tokenizer_path} has no head of a task", fix="llmtrain finetune trains one; text='…' looks at a language model"
        )
    if model.attention is not Attention.bidirectional:
        raise ConfigError("this model is causal: it has no place to fill in", allowed="bidirectional models (BERT, RoBERTa, …)", fix="llmtrain generate")
    _predict(model, settings)
    return 0


# --- a finetuned model -------------------------------------------------------------------------------------------


def _answer(model: Checkpoint, settings: Settings, run: dict[str, Any], trained: list[str] | None) -> None:
    """Let the head of a task answer, as its run asked it.

    Args:
        trained: which texts a row had in training; None where that is not known.
    """
    from llmtrain.data import questions

    if not run:
        raise ConfigError(
            f"model.checkpoint={model.checkpoint}: not the folder of a run, so how its head was asked is unknown", fix="give the run's own folder"
        )
    output = None if settings.output is None else Path(settings.output)
    if output is not None and not (settings.file is None and output.suffix.lower() == ".json"):
        questions.writable(output)
    objective, data = build(run["objective"], Objective, "objective"), build(run["data"], Data, "data")
    told = sys.stderr if settings.file is None or output is None else sys.stdout  # answers alone stand where they may be read by a program
    rows, records, read = _questions(settings, objective.target or Target.label, data)
    if settings.file is not None:
        questions.refuse_other_texts(read, rows, trained)
        print(printable(read), file=told)
    elif trained is not None and ("second" in trained) != (settings.second is not None):
        one = "second" not in trained
        what = "second: the model was trained on one text a row" if one else "text: the model was trained on a text and a second one"
        raise ConfigError(what, fix="text='…' alone" if one else "text='…' second='…'")
    found, notes = _answers(model, objective, data, settings, rows)
    for line in notes:
        print(line, file=told)
    answered = [{**record, **answer} for record, answer in zip(records, found, strict=True)]
    if settings.file is None or output is None:
        for record in answered:
            print(questions.as_json(record))
    if output is not None and output.suffix.lower() == ".json":
        files.write(output, json.dumps(answered[0], indent=2, ensure_ascii=False).encode())
    elif output is not None:
        questions.write(output, answered)
        print(plain(f"{len(found):,} answers: {output}"))


def _questions(settings: Settings, target: Target, data: Data) -> tuple[Dataset, list[dict[str, Any]], str]:
    """The texts as rows, each as it was read, and which columns were: of a file, by the names of the run's data, or of the command line."""
    from datasets import Dataset

    from llmtrain.data import questions

    if settings.file is not None:
        names = {ours: getattr(data, theirs, None) for ours, theirs in (("text", "text_column"), ("second", "second_column"), ("answer", "label_column"))}
        choices = getattr(data, "choice_columns", None)
        named = Named(**names, choices=None if choices is None else tuple(choices))
        rows, records = questions.read(settings.file, target, named, getattr(data, "encoding", "utf-8"))
        return rows, records, questions.said(settings.file, records, target, named)
    if target is Target.choice:
        raise ConfigError("text: this model chooses between texts", fix="file=QUESTIONS.jsonl with a list of choices in each row")
    record = {"text": settings.text, **({} if settings.second is None else {"second": settings.second})}
    return Dataset.from_list([record]), [record], ""


def _answers(model: Checkpoint, objective: Objective, data: Data, settings: Settings, rows: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """What is written of each row, in their order, and how many rows were not read whole. Long rows go together, so that little is padded."""
    import numpy as np
    import torch

    from llmtrain.data import loader, tokenizer as tokens
    from llmtrain.model.head import pooled_head
    from llmtrain.objective import tasks

    torch.set_num_threads(runtime.decide_threads(settings.threads, 1))
    device = torch.device(runtime.decide_device(settings.device))
    tokenizer = tokens.load(str(model.tokenizer_path))
    vocabulary = tokens.vocabulary(tokenizer)
    loaded = model.load(tokenizer, Head.task, resize=False).to(device).eval()
    head = pooled_head(loaded)
    names = head.outputs.names if head is not None else tuple(loaded.config.id2label[i] for i in range(loaded.config.num_labels))
    examples = objective.examples(rows, tokenizer, data.max_length)
    order = np.argsort(loader.lengths(examples), kind="stable")
    plain = examples.with_format("arrow")
    found: dict[int, dict[str, Any]] = {}
    with torch.no_grad():
        for i in range(0, len(order), settings.batch_size):
            samples = [int(sample) for sample in order[i : i + settings.batch_size]]
            batch = objective.collate(loader.read_rows(plain, samples), Draw(0, "eval"), vocabulary).to(device)
            for sample, logits in zip(samples, objective.logits(loaded, batch), strict=True):
                found[sample] = _columns(objective.answer(logits, names) or {}, head.first_choice if head is not None else 0)
    return [found[i] for i in range(len(rows))], tasks.shortened(examples)


def _columns(answer: dict[str, Any], first_choice: int) -> dict[str, Any]:
    """An answer with a column for each class or choice, these counted as the data of the run do, and none that takes the place of a label that was read."""
    if "choice" in answer:
        answer = {**answer, "choice": answer["choice"] + first_choice}
    flat = {f"predicted_{name}" if name in ("label", "score", "choice") else name: value for name, value in answer.items() if name != "probabilities"}
    shares = answer.get("probabilities")
    named = shares.items() if isinstance(shares, dict) else enumerate(shares or [], first_choice)
    return {**flat, **{f"probability_{name}": value for name, value in named}}


# --- a language model ---------------------------------------------------------------------------------------------


def _predict(model: Model, settings: Settings) -> None:
    import torch

    from llmtrain.data import tokenizer as tokens

    torch.set_num_threads(runtime.decide_threads(settings.threads, 1))
    device = runtime.decide_device(settings.device)
    assert model.tokenizer_path is not None
    if settings.second is not None:
        _pair_head(model)
    tokenizer = tokens.load(model.tokenizer_path)
    inputs = _encoded(tokenizer, settings, model.positions)
    found: dict[str, Any] = {"text": settings.text, "second": settings.second}
    masks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist() if tokenizer.mask_token_id is not None else []
    if not masks and settings.second is None:
        raise ConfigError(f"text={settings.text!r} has no {MASK} to fill in", fix=f"put {MASK} where a token is to be guessed, or give second=…")
    if masks:
        loaded = model.load(tokenizer, Head.masked_lm, resize=False).to(device)
        found["places"] = [_filled(loaded, tokenizer, inputs, place, settings.top_k, i) for i, place in enumerate(masks)]
    if settings.second is not None:
        found["in_order"] = _in_order(model, tokenizer, inputs, device)
    if settings.output is not None:
        files.write(Path(settings.output), json.dumps(found, indent=2, ensure_ascii=False).encode())


def _encoded(tokenizer: PreTrainedTokenizerBase, settings: Settings, positions: int | None) -> dict[str, Any]:
    """Arguments of the body, each (1, T)."""
    import torch

    from llmtrain.data import tokenizer as tokens

    # Framed as in training, whatever the tokenizer's own template is.
    words = tokens.vocabulary(tokenizer)
    if lacking := words.lacks(("start", "separator")):
        raise ConfigError(f"the tokenizer has no {' and no '.join(lacking)} token, which frames a text", fix="a model with the tokenizer it was trained with")
    ids, types = [words.start], [0]
    for segment, text in enumerate(text for text in (settings.text, settings.second) if text is not None):
        part = [*_with_masks(tokenizer, text), words.separator]
        ids += part
        types += [segment] * len(part)
    inputs = {"input_ids": torch.tensor([ids])}
    if settings.second is not None:
        inputs["token_type_ids"] = torch.tensor([types])
    length = len(ids)
    if positions is not None and length > positions:
        raise ConfigError(f"the text has {length} tokens, the model reads at most {positions}", fix="a shorter text")
    return inputs


def _with_masks(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text with the mask where it says so; whatever else it spells out is text."""
    from llmtrain.data import tokenizer as tokens

    if tokenizer.mask_token_id is None:
        return tokens.encode(tokenizer, [text])[0]
    mask = tokenizer.added_tokens_decoder[tokenizer.mask_token_id]
    pieces = text.replace(tokenizer.mask_token, MASK).split(MASK)
    pieces = [piece.rstrip() if mask.lstrip and i < len(pieces) - 1 else piece for i, piece in enumerate(pieces)]
    first, *rest = tokens.encode(tokenizer, pieces)
    return [*first, *(i for ids in rest for i in (tokenizer.mask_token_id, *ids))]


def _filled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Any], place: int, top_k: int, number: int) -> dict[str, float]:
    from llmtrain.model.filling import around, guesses

    found = guesses(model, tokenizer, {name: value.to(model.device) for name, value in inputs.items()}, place, top_k)
    before, behind = around(tokenizer, inputs["input_ids"][0].tolist(), place, 12)
    print(printable(f"place {number + 1}: {before} ▁▁▁ {behind}"))
    width = max(len(g.text) for g in found)
    for g in found:
        print(printable(f"  {g.text:<{width}}  {g.probability:7.2%}"))
    return {g.text: g.probability for g in found}


def _pair_head(model: Model) -> Head:
    """The head that judges pairs; ALBERT has its own beside that of words alone."""
    for head in (Head.sentence_order, Head.pretraining):
        if model.wears(head):
            return head
    raise ConfigError("second: this model's family has no head for pairs of segments", allowed="BERT and its relatives, trained on pairs")


def _in_order(model: Model, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Any], device: str) -> float:
    """The probability that the second segment follows the first."""
    import torch

    from llmtrain.model import forward

    judge = model.load(tokenizer, _pair_head(model), resize=False).to(device).eval()
    with torch.no_grad():
        moved = {name: value.to(device) for name, value in inputs.items()}
        logits = forward.sentence_logits(judge, forward.encode(judge, forward.reach(judge), **moved))
    probability = float(logits[0].float().softmax(-1)[0])
    print(f"the second segment follows the first: {probability:.2%}")
    return probability
