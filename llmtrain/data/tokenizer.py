"""Tokenizers: loaded from a folder or the hub, or trained once on the training texts and kept in the store.

bpe         byte-level, as GPT-2's: any text can be written, nothing is unknown; <|endoftext|> ends a document
wordpiece   lower-cased words and their pieces, as BERT's: [CLS] text [SEP], or [CLS] text [SEP] second [SEP]
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.errors import CheckpointError, ConfigError, is_panic, require, shown
from llmtrain.files import expanded, is_hub_name

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
# Tokens that mark the parts of a causal model's sequence: Radford et al. 2018, section 3.3.
START, DELIMITER, EXTRACT = "<|start|>", "<|delimiter|>", "<|extract|>"
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTES = 256
# Characters that WordPiece keeps as tokens, the most frequent ones; the limit of the `tokenizers` library.
ALPHABET = 1000


class Algorithm(Enum):
    """How a tokenizer is trained; `auto` is what the model's family uses."""

    auto = "auto"
    bpe = "bpe"
    wordpiece = "wordpiece"


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Which tokenizer a run uses.

    Attributes:
        path: a folder or a name of the hub; None trains one, unless the model's checkpoint brings its own.
        algorithm: how to train one.
        vocab_size: tokens of a trained one, special tokens included; fewer where the text has no more pairs to join.
        resize: whether the model's embeddings may change their number of rows to fit the tokenizer.
        task_tokens: for a task answered by a causal model: tokens of their own for start, delimiter and extract (Radford et
            al. 2018, section 3.3), whose rows are learned; else the model's end-of-text token stands there.
    """

    path: str | None
    algorithm: Algorithm
    vocab_size: int
    resize: bool
    task_tokens: bool

    def __post_init__(self) -> None:
        require(self.path is None or bool(self.path), "path", self.path, "a folder or a name of the hub, or null")
        require(self.vocab_size >= 1, "vocab_size", self.vocab_size, "1 or more")

    def trained(self, usual: str) -> str:
        """Which algorithm trains a tokenizer, given the one that the model's family uses."""
        return usual if self.algorithm is Algorithm.auto else self.algorithm.value

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing under the others: name → why."""
        return {} if self.path is None else dict.fromkeys(("algorithm", "vocab_size"), "tokenizer.path is given: nothing is trained")


# --- loading ------------------------------------------------------------------------------------------------------


def load(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or a name of the hub. Code that comes with it is not run.

    Raises:
        ConfigError: where there is none, or it needs code of its own.
        CheckpointError: where its files are damaged, or what they hold does not fit the config beside them.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = expanded(path)
    if not folder.is_dir() and (folder.exists() or path[:1] in "./~"):
        raise ConfigError(f"tokenizer {path}: {'not a folder' if folder.exists() else 'no such folder'}", allowed="a folder with tokenizer.json, or a hub name")
    if not folder.is_dir() and not is_hub_name(path):
        raise ConfigError(f"tokenizer {shown(path)}: no such folder, and no name of the hub", allowed="a folder with tokenizer.json, or NAME, or OWNER/NAME")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else path, trust_remote_code=False)
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            tokenizer.decode(tokenizer("a", verbose=False)["input_ids"])  # a setting of another type is taken as it is, and stumbled over at the first text
    except BaseException as error:  # what the files hold decides the kind, down to the Rust library's bare Exception and its panics
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise _not_loaded(path, folder, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"tokenizer {path}: {type(tokenizer).__name__} has no tokenizer.json", allowed="tokenizers of the `tokenizers` library")
    _check_vocabulary(tokenizer, path, folder)
    return tokenizer


def _not_loaded(path: str, folder: Path, error: BaseException) -> CheckpointError | ConfigError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if "trust_remote_code" in str(error):
        return ConfigError(f"tokenizer {path}: needs code of its own, which is not run", fix="take one that has a tokenizer.json")
    if folder.is_dir():
        return CheckpointError(f"tokenizer {path}: cannot be read: {reason}", fix="take the files anew, or another tokenizer.path")
    return ConfigError(
        f"tokenizer {path}: no such folder, and not found on the hub: {reason}", fix="check the name and the network; HF_TOKEN for what is not public"
    )


def _check_vocabulary(tokenizer: PreTrainedTokenizerFast, path: str, folder: Path) -> None:
    """transformers 5 makes a tokenizer of special tokens only, silently, from files it does not know how to read."""
    specials = len(set(tokenizer.all_special_ids))
    if len(tokenizer) <= specials:
        raise CheckpointError(f"tokenizer {path}: its {len(tokenizer)} tokens are all special, every word would be unknown", fix="it needs a tokenizer.json")
    try:
        wanted = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return  # no model beside it; one that cannot be read is reported by who loads it
    # A model may have more rows than tokens, for speed or for later use, but not twice as many.
    if isinstance(wanted, int) and len(tokenizer) < wanted / 2:
        what = f"tokenizer {path}: {len(tokenizer):,} tokens, the config beside it has vocab_size {wanted:,}"
        raise CheckpointError(what, fix="the vocabulary was not read, or belongs to another model: it needs the right tokenizer.json")


# --- training -----------------------------------------------------------------------------------------------------


def train(algorithm: Algorithm | str, texts: Dataset, vocab_size: int, say: Callable[[str], None]) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a data set's column `text`; from the store, if one was trained on the same before.

    The same texts give the same bytes of tokenizer.json, in every process.

    Args:
        algorithm: bpe or wordpiece; `auto` must have been decided.
        vocab_size: tokens, special ones included; an upper bound.
        say: told what is going on.

    Raises:
        ConfigError: where vocab_size is too small for the alphabet and the special tokens.
    """
    from datasets import Features, Value
    from tokenizers import Tokenizer

    from llmtrain.data import store

    algorithm = Algorithm(algorithm)
    trainer = {Algorithm.bpe: _bpe, Algorithm.wordpiece: _wordpiece}[algorithm]
    if algorithm is Algorithm.bpe:
        _check_size(algorithm, vocab_size, BYTES + 2, f"{BYTES} bytes and 2 special tokens")

    def make() -> Iterator[dict[str, Any]]:
        say(f"tokenizer: training {algorithm.name} of {vocab_size:,} tokens on {len(texts):,} documents, once")
        yield {"tokenizer": trainer(texts, vocab_size).to_str()}

    parts = {"texts": store.fingerprint(texts), "algorithm": algorithm.name, "vocab_size": vocab_size}
    rows = store.stored("tokenizer", parts, make, Features({"tokenizer": Value("string")}), say)
    tokenizer = _wrapped(Tokenizer.from_str(rows[0]["tokenizer"]), algorithm)
    if len(tokenizer) < vocab_size:
        say(f"tokenizer: {len(tokenizer):,} tokens, not {vocab_size:,}: the text has no more pairs to join")
    return tokenizer


def _wrapped(backend: Tokenizer, algorithm: Algorithm) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    gpt = {"bos_token": END, "eos_token": END, "pad_token": PAD}
    bert = {f"{token[1:-1].lower()}_token": token for token in BERT_SPECIALS}
    inputs = ["input_ids", "attention_mask"]
    if algorithm is Algorithm.bpe:
        return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, model_input_names=inputs, **gpt)
    # Which of two texts a token belongs to is an input of BERT.
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, model_input_names=[*inputs, "token_type_ids"], **bert)


def _bpe(texts: Dataset, vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2): words are split as GPT-2 does, then bytes are joined."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _batches(texts), trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def _wordpiece(texts: Dataset, vocab_size: int) -> Tokenizer:
    """WordPiece as BERT's tokenizer applies it, its pieces joined as in BPE.

    The library numbers the characters inside words in the order of a randomly salted hash map, and ties between pairs
    go by these numbers: two runs differ. So a first pass finds the characters, and the second is given them in order.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    def untrained(vocabulary: dict[str, int]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    found = _pieces(untrained({}), texts, 0, [], None)
    alphabet = [token for token in found if len(token) == 1]
    if len(alphabet) > ALPHABET:
        alphabet = _most_frequent(texts, untrained({}).normalizer)
    inside = [f"##{character}" for character in alphabet if f"##{character}" in found]
    first = [*BERT_SPECIALS, *sorted(inside)]
    _check_size(
        Algorithm.wordpiece, vocab_size, len(first) + len(alphabet), f"the {len(alphabet):,} characters of the text and {len(BERT_SPECIALS)} special tokens"
    )
    tokenizer = untrained(_pieces(untrained({}), texts, vocab_size, first, sorted(alphabet)))
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, BERT_SPECIALS.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)
    return tokenizer


def _pieces(tokenizer: Tokenizer, texts: Dataset, vocab_size: int, first: list[str], alphabet: list[str] | None) -> dict[str, int]:
    """The vocabulary that training gives: `first`, then the alphabet (None: every character), then joined pieces."""
    from tokenizers import trainers

    limit = 2**31 if alphabet is None else len(alphabet)
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, initial_alphabet=alphabet or [], limit_alphabet=limit, show_progress=False)
    tokenizer.train_from_iterator(_batches(texts), trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _most_frequent(texts: Dataset, normalizer: Any) -> list[str]:
    """The ALPHABET most frequent characters after normalisation; of equally frequent ones, the lower code points."""
    count: Counter[str] = Counter()
    for batch in _batches(texts):
        for text in batch:
            count.update(normalizer.normalize_str(text))
    visible = [character for character in count if not character.isspace()]
    return sorted(visible, key=lambda character: (-count[character], character))[:ALPHABET]


def _batches(texts: Dataset) -> Iterator[list[str]]:
    for batch in texts.iter(batch_size=100):
        yield batch["text"]


def _check_size(algorithm: Algorithm, vocab_size: int, least: int, why: str) -> None:
    if vocab_size < least:
        raise ConfigError(f"tokenizer.vocab_size={vocab_size}", allowed=f"at least {least:,} for {algorithm.name}: {why}")


# --- using --------------------------------------------------------------------------------------------------------


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """The ids of texts, without special tokens, whole: a text that spells out `<|endoftext|>` gets no special id."""
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


# Tokens that an objective may need, in words; and those that a trained tokenizer has.
TOKENS = {"end": "end-of-text", "start": "start ([CLS])", "separator": "separator ([SEP])", "mask": "mask ([MASK])"}
TRAINED = {"bpe": {"end", "start", "separator"}, "wordpiece": {"start", "separator", "mask"}}


@dataclass(frozen=True)
class Vocabulary:
    """What batches are made with: the ids that stand for something else than text, and those that stand for text.

    Attributes:
        size: ids from 0 to size - 1.
        end: ends a document of a causal model.
        start: begins a sequence ([CLS]; where there is none, the beginning of a text).
        separator: ends a segment ([SEP]; where there is none, the end of a text).
        extract: ends the sequence of a task in place of a separator, where a causal model has a token of its own for that.
        mask: stands for what is asked.
        special: ids of special tokens, sorted.
    """

    size: int
    end: int | None
    start: int | None
    separator: int | None
    mask: int | None
    special: tuple[int, ...]
    extract: int | None = None

    @cached_property
    def plain(self) -> np.ndarray:
        """The ids of tokens that stand for text, sorted."""
        import numpy as np

        return np.setdiff1d(np.arange(self.size), self.special)

    @cached_property
    def _special(self) -> np.ndarray:
        import numpy as np

        return np.isin(np.arange(self.size), self.special)

    def is_special(self, ids: np.ndarray) -> np.ndarray:
        """Where ids stand for something else than text."""
        found: np.ndarray = self._special[ids]
        return found

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of some tokens (by their attribute here) that are not there, in words."""
        return [TOKENS[name] for name in names if getattr(self, name) is None]


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """The vocabulary of a tokenizer. Special are the tokens with a role and those that were added as special."""
    added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    special = tuple(sorted({*tokenizer.all_special_ids, *added.values()}))
    roles = {"end": tokenizer.eos_token_id, "start": start, "separator": separator, "mask": tokenizer.mask_token_id, "extract": added.get(EXTRACT)}
    return Vocabulary(size=len(tokenizer), special=special, **roles)


def encode_words(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """For each text its ids, as `encode` gives them, and the number of the word that each token is a piece of."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    return [(ids, _words(encoded.word_ids(i))) for i, ids in enumerate(encoded["input_ids"])]


def _words(numbers: list[int | None]) -> list[int]:
    """Word numbers without gaps; a token of no word is one of its own."""
    words: list[int] = []
    previous: int | None = None
    for number in numbers:
        following = words[-1] + 1 if words else 0
        words.append(words[-1] if words and number is not None and number == previous else following)
        previous = number
    return words


def add_pad(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Give a tokenizer a token that only pads: the end of a text must stay visible.

    Returns:
        Whether a token was added, so that the model needs one more row.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return False
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"pad_token": next((token for token in ("[PAD]", "<pad>", PAD) if token in vocabulary), PAD)})
    return len(tokenizer) > len(vocabulary)


def add_task_tokens(tokenizer: PreTrainedTokenizerFast) -> int:
    """Give a causal model's tokenizer tokens of their own for the parts of a task's sequence.

    Returns:
        How many rows the model needs more; 0 where it has them already.
    """
    before = len(tokenizer)
    tokenizer.add_special_tokens({"cls_token": START, "sep_token": DELIMITER})
    tokenizer.add_tokens([EXTRACT], special_tokens=True)
    return len(tokenizer) - before


def unknown_share(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """The share, 0 to 1, of a sample's tokens that are the unknown one: a high one says that the tokenizer is not for this text."""
    ids = [token for text in encode(tokenizer, texts) for token in text]
    return ids.count(tokenizer.unk_token_id) / max(len(ids), 1)


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of what a tokenizer does: its pipeline, its vocabulary and the roles of its special tokens."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for last_call in ("truncation", "padding"):
        content.pop(last_call, None)
    roles = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([content, roles], sort_keys=True).encode()).hexdigest()
