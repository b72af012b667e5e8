"""Tokenizers: trained once and always the same, loaded with care, and never fooled by what a text spells out."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from llmtrain.config import build
from llmtrain.data import documents, store, tokenizer as tokens
from llmtrain.data.synthetic import document
from llmtrain.data.tokenizer import Algorithm, TokenizerSettings
from llmtrain.errors import CheckpointError, ConfigError
from llmtrain.seeding import generator

TRAINED = [Algorithm.bpe, Algorithm.wordpiece]
SIZES = {Algorithm.bpe: 300, Algorithm.wordpiece: 150}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))


def corpus(extra: str = "") -> Dataset:
    """Toy sentences with many equally frequent words, where the order of a hash map would show."""
    texts = [document(generator(0, "test", i), 40) + f" word{i} Ünïcode{chr(945 + i % 20)}{i} {extra}" for i in range(60)]
    return store.stored("corpus", {"extra": extra}, lambda: [{"text": text} for text in texts])


def trained(algorithm: Algorithm, extra: str = "", say: Any = lambda line: None) -> Any:
    return tokens.train(algorithm, corpus(extra), SIZES[algorithm], say)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [("algorithm", "unigram"), ("vocab_size", 0), ("vocab_size", "many"), ("path", "")])
def test_a_setting_out_of_range_is_a_config_error(key: str, value: Any) -> None:
    defaults = {"path": None, "algorithm": "auto", "vocab_size": 4096, "resize": False, "task_tokens": False}
    with pytest.raises(ConfigError, match=rf"tokenizer\.{key}="):
        build(defaults | {key: value}, TokenizerSettings, "tokenizer")


def test_with_a_path_nothing_is_trained() -> None:
    settings = {"algorithm": Algorithm.auto, "vocab_size": 4096, "resize": False, "task_tokens": False}
    assert TokenizerSettings(path=None, **settings).without_effect() == {}
    assert set(TokenizerSettings(path="x", **settings).without_effect()) == {"algorithm", "vocab_size"}


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_trained_tokenizer_has_the_size_asked_for(algorithm: Algorithm) -> None:
    assert len(trained(algorithm)) == SIZES[algorithm]


@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_tokenizer_is_trained_once(algorithm: Algorithm) -> None:
    said: list[str] = []
    for _ in range(3):
        trained(algorithm, say=said.append)
    assert len([line for line in said if "training" in line]) == 1


@pytest.mark.parametrize("algorithm", TRAINED)
def test_other_texts_train_another_tokenizer(algorithm: Algorithm) -> None:
    assert tokens.fingerprint(trained(algorithm)) != tokens.fingerprint(trained(algorithm, "other words"))


PROCESS = """
import hashlib, sys
from tests_tokenizer import SIZES, Algorithm, trained
for name in ("bpe", "wordpiece"):
    print(hashlib.sha256(trained(Algorithm(name)).backend_tokenizer.to_str().encode()).hexdigest())
"""


@pytest.mark.parametrize("number", [1, 2])
def test_the_same_texts_give_the_same_bytes_in_every_process(number: int, tmp_path: Path) -> None:
    (tmp_path / "tests_tokenizer.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    path = f"{tmp_path}{os.pathsep}{Path(store.__file__).parents[2]}"
    environment = os.environ | {"LLMTRAIN_CACHE": str(tmp_path / str(number)), "PYTHONPATH": path, "PYTHONHASHSEED": str(number)}
    other = subprocess.run([sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, check=True)
    here = [hashlib.sha256(trained(algorithm).backend_tokenizer.to_str().encode()).hexdigest() for algorithm in TRAINED]
    assert other.stdout.split() == here


def test_characters_beyond_the_limit_are_unknown_and_the_choice_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ALPHABET", 30)
    texts = corpus()
    one, other = (tokens._wordpiece(texts, 150) for _ in range(2))
    assert one.to_str() == other.to_str()
    assert len([token for token in one.get_vocab() if len(token) == 1]) == 30


@pytest.mark.parametrize(("algorithm", "size", "allowed"), [(Algorithm.bpe, 257, "at least 258 for bpe"), (Algorithm.wordpiece, 20, "for wordpiece: the ")])
def test_a_vocabulary_smaller_than_the_alphabet_is_a_config_error(algorithm: Algorithm, size: int, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer.vocab_size={size}") as caught:
        tokens.train(algorithm, corpus(), size, lambda line: None)
    assert allowed in str(caught.value.allowed)


def test_the_smallest_bpe_is_bytes_and_special_tokens() -> None:
    assert len(tokens.train("bpe", corpus(), 258, lambda line: None)) == 258


@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_text_with_too_few_pairs_gives_a_smaller_vocabulary_and_says_so(algorithm: Algorithm) -> None:
    said: list[str] = []
    tokenizer = tokens.train(algorithm, corpus(), 100_000, said.append)
    assert len(tokenizer) < 100_000
    assert f"{len(tokenizer):,} tokens, not 100,000" in said[-1]


def test_no_tokenizer_is_trained_before_auto_is_decided() -> None:
    with pytest.raises(KeyError):
        tokens.train(Algorithm.auto, corpus(), 300, lambda line: None)


# --- what a trained one is ----------------------------------------------------------------------------------------


def test_bpe_writes_any_text_and_reads_it_back() -> None:
    tokenizer = trained(Algorithm.bpe)
    text = "Any text: 中文, emoji 😀, \x00 control,\n\ttabs,  two spaces "
    assert tokenizer.decode(tokens.encode(tokenizer, [text])[0]) == text


def test_bpe_ends_with_one_token_and_pads_with_another() -> None:
    tokenizer = trained(Algorithm.bpe)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert len(set(tokenizer.all_special_ids)) == 2


def test_wordpiece_lower_cases_and_strips_accents() -> None:
    tokenizer = trained(Algorithm.wordpiece)
    assert tokens.encode(tokenizer, ["The QUICK Föx"]) == tokens.encode(tokenizer, ["the quick fox"])


def test_wordpiece_wraps_one_text_and_two() -> None:
    tokenizer = trained(Algorithm.wordpiece)
    pair = tokenizer("a fox", "the dog")
    words = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert [word for word in words if word.startswith("[")] == ["[CLS]", "[SEP]", "[SEP]"]
    middle = words.index("[SEP]")
    assert pair["token_type_ids"] == [0] * (middle + 1) + [1] * (len(words) - middle - 1)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a fox")["input_ids"]) == words[: middle + 1]


def test_wordpiece_has_the_special_tokens_of_bert_first() -> None:
    tokenizer = trained(Algorithm.wordpiece)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id] == list(range(5))


@pytest.mark.parametrize("model_type", [None, "gpt2", "bert"])
@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_saved_tokenizer_comes_back_the_same(algorithm: Algorithm, model_type: str | None, tmp_path: Path) -> None:
    tokenizer = trained(algorithm)
    tokenizer.save_pretrained(tmp_path)
    if model_type:
        ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": len(tokenizer), **ends}))
    loaded = tokens.load(str(tmp_path))
    assert tokens.fingerprint(loaded) == tokens.fingerprint(tokenizer)
    assert loaded("The quick fox", "a Dog") == tokenizer("The quick fox", "a Dog")


# --- loading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./missing", "/missing/tokenizer"])
def test_a_folder_that_is_not_there_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer {name}: no such folder"):
        tokens.load(name)


def test_a_name_that_the_hub_does_not_have_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(ConfigError, match="tokenizer someone/nothing: no such folder, and not found on the hub: OSError: We couldn't connect"):
        tokens.load("someone/nothing")


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_a_checkpoint_error_that_names_the_folder(content: str, tmp_path: Path) -> None:
    trained(Algorithm.bpe).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"tokenizer {tmp_path}"):
        tokens.load(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_c11_code_that_comes_with_a_tokenizer_is_not_run(name: str, tmp_path: Path) -> None:
    auto_map = {"AutoTokenizer": ["code.Bomb", "code.Bomb"], "AutoConfig": "code.Bomb"}
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / name).write_text(json.dumps({"auto_map": auto_map, "model_type": "unheard", "tokenizer_class": "Bomb"}))
    with pytest.raises((ConfigError, CheckpointError)):
        tokens.load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_a_vocabulary_that_was_not_read_is_a_checkpoint_error(model_type: str, tmp_path: Path) -> None:
    # transformers 5 makes a tokenizer of special tokens only of this, and says nothing.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 30522, "bos_token_id": 0, "eos_token_id": 0}))
    with pytest.raises(CheckpointError, match="tokens are all special"):
        tokens.load(str(tmp_path))


@pytest.mark.parametrize(("rows", "fits"), [(300, True), (512, True), (50_257, False)])
def test_a_vocabulary_of_under_half_the_rows_of_the_model_is_a_checkpoint_error(rows: int, fits: bool, tmp_path: Path) -> None:
    trained(Algorithm.bpe).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": rows, "bos_token_id": 0, "eos_token_id": 0}))
    if fits:
        assert len(tokens.load(str(tmp_path))) == 300
    else:
        with pytest.raises(CheckpointError, match="300 tokens, the config beside it has vocab_size 50,257"):
            tokens.load(str(tmp_path))


# --- encoding -----------------------------------------------------------------------------------------------------

SPELT = "a <|endoftext|> b <|pad|> c [CLS] d [SEP] e [MASK] f [PAD]"


@pytest.mark.parametrize("reloaded", [False, True])
@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_text_that_spells_out_special_tokens_gets_no_special_ids(algorithm: Algorithm, reloaded: bool, tmp_path: Path) -> None:
    tokenizer = trained(algorithm)
    assert set(tokenizer(SPELT, add_special_tokens=False)["input_ids"]) & set(tokenizer.all_special_ids)  # the guard: it could happen
    if reloaded:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = tokens.load(str(tmp_path))
    ids = set(tokens.encode(tokenizer, [SPELT])[0])
    assert not ids & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def test_texts_are_encoded_whole_though_the_tokenizer_was_used_to_cut_and_pad() -> None:
    tokenizer = trained(Algorithm.bpe)
    whole = tokens.encode(tokenizer, ["the quick fox jumps over a lazy dog", "a"])
    tokenizer.model_max_length = 4
    tokenizer(["the quick fox jumps", "a"], truncation=True, max_length=3, padding="max_length")
    assert tokens.encode(tokenizer, ["the quick fox jumps over a lazy dog", "a"]) == whole


def test_a_text_longer_than_the_model_warns_nobody(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = trained(Algorithm.bpe)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # else nobody here would hear it
    tokenizer.model_max_length = 4
    assert len(tokens.encode(tokenizer, ["the quick fox " * 100])[0]) > 100
    assert caplog.text == ""


def test_no_texts_give_no_ids() -> None:
    assert tokens.encode(trained(Algorithm.bpe), []) == []
    assert tokens.encode(trained(Algorithm.bpe), [""]) == [[]]


def test_the_share_of_unknown_tokens_is_counted() -> None:
    tokenizer = trained(Algorithm.wordpiece)
    assert tokens.unknown_share(tokenizer, ["a fox ☃ ☃"]) == pytest.approx(2 / len(tokens.encode(tokenizer, ["a fox ☃ ☃"])[0]))
    assert tokens.unknown_share(tokenizer, []) == 0


# --- the vocabulary that batches are made with ----------------------------------------------------------------------


def test_the_roles_of_a_bpe_are_those_of_a_causal_model() -> None:
    words = tokens.vocabulary(trained(Algorithm.bpe))
    assert words == tokens.Vocabulary(size=300, end=0, start=0, separator=0, mask=None, special=(0, 1))


def test_the_roles_of_a_wordpiece_are_those_of_bert() -> None:
    words = tokens.vocabulary(trained(Algorithm.wordpiece))
    assert words == tokens.Vocabulary(size=150, end=None, start=2, separator=3, mask=4, special=(0, 1, 2, 3, 4))


@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_plain_id_is_never_special_and_every_other_is(algorithm: Algorithm) -> None:
    tokenizer = trained(algorithm)
    words = tokens.vocabulary(tokenizer)
    everything = np.arange(len(tokenizer))
    assert sorted([*words.plain, *words.special]) == list(everything)
    assert set(words.special) >= set(tokenizer.all_special_ids)
    assert not words.is_special(words.plain).any()
    assert everything[words.is_special(everything)].tolist() == list(words.special)
    assert words.is_special(everything.reshape(2, -1)).shape == (2, len(tokenizer) // 2)


@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_token_added_as_special_is_special_and_one_added_as_a_word_is_not(algorithm: Algorithm) -> None:
    tokenizer = trained(algorithm)
    before = tokens.vocabulary(tokenizer)
    tokenizer.add_tokens(["zebra"])
    tokenizer.add_tokens(["<unheard>"], special_tokens=True)
    after = tokens.vocabulary(tokenizer)
    assert set(after.special) - set(before.special) == {tokenizer.convert_tokens_to_ids("<unheard>")}
    assert set(after.plain) - set(before.plain) == {tokenizer.convert_tokens_to_ids("zebra")}


@pytest.mark.parametrize("algorithm", TRAINED)
def test_the_vocabulary_is_the_same_after_saving(algorithm: Algorithm, tmp_path: Path) -> None:
    trained(algorithm).save_pretrained(tmp_path)
    assert tokens.vocabulary(tokens.load(str(tmp_path))) == tokens.vocabulary(trained(algorithm))


@pytest.mark.parametrize("algorithm", TRAINED)
def test_what_a_trained_tokenizer_is_said_to_have_it_has_and_no_more(algorithm: Algorithm) -> None:
    words = tokens.vocabulary(trained(algorithm))
    assert {name for name in tokens.TOKENS if getattr(words, name) is not None} == tokens.TRAINED[algorithm.name]


@pytest.mark.parametrize(
    ("algorithm", "names", "lacking"),
    [
        (Algorithm.bpe, ("start", "separator", "mask"), ["mask ([MASK])"]),
        (Algorithm.bpe, ("end", "start"), []),
        (Algorithm.wordpiece, ("start", "separator", "mask"), []),
        (Algorithm.wordpiece, ("end",), ["end-of-text"]),
        (Algorithm.wordpiece, (), []),
    ],
)
def test_what_is_lacking_is_said_in_words(algorithm: Algorithm, names: tuple[str, ...], lacking: list[str]) -> None:
    assert tokens.vocabulary(trained(algorithm)).lacks(names) == lacking


def test_the_id_0_is_there_though_it_counts_as_false() -> None:
    assert tokens.Vocabulary(size=2, end=0, start=0, separator=0, mask=0, special=(0,)).lacks(tokens.TOKENS) == []


# --- words and their pieces -----------------------------------------------------------------------------------------

WRITTEN = ["the unquickest fox123, naïve; word5 — 中文 🙂 ☃", "", "fox", "the fox's [MASK] <|endoftext|>", "  two  spaces \n and a line "]


@pytest.mark.parametrize("algorithm", TRAINED)
def test_with_words_the_ids_are_the_same(algorithm: Algorithm) -> None:
    tokenizer = trained(algorithm)
    assert [ids for ids, _ in tokens.encode_words(tokenizer, WRITTEN)] == tokens.encode(tokenizer, WRITTEN)
    assert tokens.encode_words(tokenizer, []) == []


@pytest.mark.parametrize("algorithm", TRAINED)
def test_word_numbers_rise_from_0_without_gaps(algorithm: Algorithm) -> None:
    found = tokens.encode_words(trained(algorithm), WRITTEN)
    for ids, words in found:
        assert len(words) == len(ids)
        assert words[:1] == [0][: len(ids)]
        assert {b - a for a, b in pairwise(words)} <= {0, 1}
    assert sum(len(words) - len(set(words)) for _, words in found) > 5  # some words have several pieces


def test_the_pieces_of_a_word_share_its_number_and_others_do_not() -> None:
    tokenizer = trained(Algorithm.wordpiece)
    for ids, words in tokens.encode_words(tokenizer, WRITTEN):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        assert [a == b for a, b in pairwise(words)] == [piece.startswith("##") for piece in pieces[1:]]


def test_in_a_bpe_a_word_begins_where_gpt2_splits() -> None:
    tokenizer = trained(Algorithm.bpe)
    [(ids, words)] = tokens.encode_words(tokenizer, ["the unquickest fox123, naïve"])
    texts = [tokenizer.decode([i for i, w in zip(ids, words, strict=True) if w == number]) for number in range(words[-1] + 1)]
    assert texts == ["the", " unquickest", " fox", "123", ",", " naïve"]


def test_a_token_of_no_word_is_one_of_its_own() -> None:
    assert tokens._words([None, None, 0, 0, None, 0, 1, 1, None]) == [0, 1, 2, 2, 3, 4, 5, 5, 6]
    assert tokens._words([]) == []


# --- padding and identity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [None, "<|endoftext|>"])
def test_c02_a_tokenizer_without_a_pad_of_its_own_gets_one(pad: str | None) -> None:
    from transformers import PreTrainedTokenizerFast

    backend = tokens._bpe(corpus(), 300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token=pad)
    tokens.add_pad(tokenizer)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_c02_adding_a_pad_says_whether_the_vocabulary_grew() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def tokenizer(*vocabulary: str) -> Any:
        words = {word: i for i, word in enumerate(vocabulary)}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")), eos_token="</s>")

    without, with_one = tokenizer("a", "</s>"), tokenizer("a", "</s>", "<pad>")
    assert tokens.add_pad(without)
    assert (len(without), without.pad_token) == (3, "<|pad|>")
    assert not tokens.add_pad(with_one)
    assert (len(with_one), with_one.pad_token) == (3, "<pad>")


@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_tokenizer_with_a_pad_keeps_it(algorithm: Algorithm) -> None:
    tokenizer = trained(algorithm)
    before = tokens.fingerprint(tokenizer)
    assert not tokens.add_pad(tokenizer)
    assert tokens.fingerprint(tokenizer) == before


def test_tokens_for_the_parts_of_a_task_are_added_once_and_stay_with_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = trained(Algorithm.bpe)
    size, before = len(tokenizer), tokens.vocabulary(tokenizer)
    assert before.extract is None
    assert tokens.add_task_tokens(tokenizer) == 3
    tokenizer.save_pretrained(tmp_path)
    tokenizer = tokens.load(str(tmp_path))
    found = tokens.vocabulary(tokenizer)
    assert sorted([found.start, found.separator, found.extract]) == [size, size + 1, size + 2]  # type: ignore[type-var]
    assert (found.end, set(found.special)) == (before.end, {*before.special, size, size + 1, size + 2})
    assert tokens.add_task_tokens(tokenizer) == 0


def test_using_a_tokenizer_does_not_change_its_fingerprint() -> None:
    tokenizer = trained(Algorithm.bpe)
    before = tokens.fingerprint(tokenizer)
    tokenizer(["the quick fox", "a"], truncation=True, max_length=3, padding=True)
    assert tokens.fingerprint(tokenizer) == before
    tokens.encode(tokenizer, ["the quick fox"])
    assert tokens.fingerprint(tokenizer) == before


@pytest.mark.parametrize("change", ["token", "role"])
def test_another_token_or_another_role_is_another_fingerprint(change: str) -> None:
    tokenizer = trained(Algorithm.bpe)
    before = tokens.fingerprint(tokenizer)
    if change == "token":
        tokenizer.add_tokens(["zebra"])
    else:
        tokenizer.pad_token = "<|endoftext|>"
    assert tokens.fingerprint(tokenizer) != before


# --- real data ----------------------------------------------------------------------------------------------------

REAL = os.environ.get("LLMTRAIN_REALDATA")


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="LLMTRAIN_REALDATA is not set")
@pytest.mark.parametrize(("name", "size"), [("stories260k", 512), ("tokenizers/bert-base-uncased", 30_522), ("sapiens-vh", 25)])
def test_published_tokenizers_load(name: str, size: int) -> None:
    assert len(tokens.load(f"{REAL}/{name}")) == size


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="LLMTRAIN_REALDATA is not set")
def test_the_vocabulary_of_bert_reads_words() -> None:
    tokenizer = tokens.load(f"{REAL}/tokenizers/bert-base-uncased")
    ids = tokens.encode(tokenizer, ["Elizabeth's unaffable [SEP]"])[0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["elizabeth", "'", "s", "una", "##ffa", "##ble", "[", "sep", "]"]


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="LLMTRAIN_REALDATA is not set")
@pytest.mark.parametrize("algorithm", TRAINED)
def test_a_tokenizer_trained_on_novels_halves_them_at_least(algorithm: Algorithm) -> None:
    text = Path(f"{REAL}/austen/train.txt").read_text(encoding="utf-8")[:400_000]
    rows = store.stored("novel", {}, lambda: [{"text": part} for part in documents.parts([text])])
    tokenizer = tokens.train(algorithm, rows, 2000, lambda line: None)
    assert len(tokens.encode(tokenizer, [text])[0]) < len(text) / 2
