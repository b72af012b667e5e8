"""A model of any family that transformers knows, from its weights: a folder, a run of llmtrain, or a hub name."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain import files
from llmtrain.errors import CheckpointError, ConfigError, require, shown
from llmtrain.model.base import HEAD_FILE, Attention, Head, HeadKind, Model, Outputs, Pooling, SavedHead, auto_class, for_task, leave_pooler_out, say_fresh

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("llmtrain")

# Families whose position ids begin at pad_token_id + 1: transformers' create_position_ids_from_input_ids.
BEHIND_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
FOLDER = "a Hugging Face folder with config.json and model.safetensors, of a family that transformers knows; the folder of a run; or a hub name"


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Model):
    """Weights that exist.

    Attributes:
        checkpoint: a folder with config.json and model.safetensors, the folder of a run, or a hub name.
    """

    checkpoint: str

    def __post_init__(self) -> None:
        require(bool(self.checkpoint), "checkpoint", self.checkpoint, "a folder, a run or a hub name")

    @cached_property
    def folder(self) -> str:
        """Where the weights are: a run stands for its final/."""
        path = files.expanded(self.checkpoint)
        if not path.is_dir() and (path.exists() or self.checkpoint[:1] in "./~" or self.checkpoint.count("/") > 1):
            raise CheckpointError(f"model.checkpoint={path}: {'not a folder' if path.exists() else 'no such folder'}", allowed=FOLDER)
        if (path / "final" / "config.json").is_file():
            return str(path / "final")
        if not path.is_dir() and not files.is_hub_name(self.checkpoint):
            raise CheckpointError(f"model.checkpoint={shown(self.checkpoint)}: no such folder, and no name of the hub", allowed=FOLDER)
        if (path / "resolved.yaml").is_file() and not (path / "config.json").is_file():
            raise CheckpointError(f"model.checkpoint={path}: this run has no final/ yet", fix="let it finish: the same command with output_dir=… goes on")
        return str(path) if path.is_dir() else self.checkpoint

    @cached_property
    def _config(self) -> PretrainedConfig:
        """The family's config, read without running any code of the repository's."""
        self._refuse_code()
        from transformers import AutoConfig

        try:
            with quiet():
                config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        except Exception as error:  # what the file holds decides the kind
            raise CheckpointError(f"model.checkpoint={self.folder}: {in_a_line(error)}", allowed=FOLDER) from error
        if getattr(config, "auto_map", None) or "/" in str(getattr(config, "_attn_implementation", None) or ""):
            raise self._wants_code("code of its own (auto_map)" if getattr(config, "auto_map", None) else "an attention kernel of the hub")
        layers = getattr(config, "num_hidden_layers", None)
        if layers is not None and not (isinstance(layers, int) and layers >= 1):
            raise CheckpointError(f"{self.folder}: config.json has {layers!r} layers", allowed="1 or more")
        return config

    def _refuse_code(self) -> None:
        """`auto_map` in a config.json asks to run the repository's own Python. llmtrain never does."""
        path = Path(self.folder) / "config.json"
        if not Path(self.folder).is_dir():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file", allowed=FOLDER) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} does not hold a config")
        if "auto_map" in content:
            raise self._wants_code("code of its own (auto_map)")
        if any("/" in str(content.get(name) or "") for name in ("attn_implementation", "_attn_implementation")):
            raise self._wants_code("an attention kernel of the hub")  # org/name: transformers would fetch and run it

    def _wants_code(self, what: str) -> ConfigError:
        known = "take a model of a family that transformers itself knows, with attn_implementation eager or sdpa"
        return ConfigError(f"{self.folder}/config.json: the model wants to run {what}; llmtrain never does", fix=known)

    @property
    def attention(self) -> Attention:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

        kind = self._config.model_type
        masked, causal = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES, kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        # Families such as BERT are listed under both: they are causal only where their config says so.
        bidirectional = masked and not getattr(self._config, "is_decoder", False)
        return Attention.bidirectional if bidirectional or not causal else Attention.causal

    @property
    def positions(self) -> int | None:
        found = getattr(self._config, "max_position_embeddings", None)
        if not (isinstance(found, int) and found > 0):
            return None
        # RoBERTa and its kin count positions from behind the row of the padding token (fairseq's numbering).
        return found - (self._config.pad_token_id + 1 if self._config.model_type in BEHIND_PADDING else 0)

    @property
    def width(self) -> int | None:
        found = getattr(self._config, "hidden_size", None)
        return found if isinstance(found, int) else None

    @property
    def blocks(self) -> int | None:
        found = getattr(self._config, "num_hidden_layers", None)
        return None if found is None else int(found)

    @property
    def tokenizer_path(self) -> str | None:
        return self.folder

    def wears(self, head: Head) -> bool:
        from transformers.models.auto import modeling_auto as auto

        kind = self._config.model_type
        sentence = set(auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES)
        known: dict[Head, set[str]] = {
            Head.next_token: set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
            Head.masked_lm: set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
            Head.sentence_order: sentence,
            # ALBERT has its sentence head in this class alone. Others that are listed here (RoBERTa, …) have none.
            Head.pretraining: {*sentence, "albert"} & set(auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES),
            Head.task: set(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if self.head is HeadKind.family else auto.MODEL_MAPPING_NAMES),
        }
        # Two segments need two segment embeddings, where a family has them at all.
        segments = getattr(self._config, "type_vocab_size", 2)
        return kind in known[head] and (segments >= 2 or head in (Head.next_token, Head.masked_lm, Head.task))

    def config(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        return self._config

    def load(
        self, tokenizer: PreTrainedTokenizerBase, head: Head, *, resize: bool, new_head: bool = False, outputs: Outputs | None = None, words: bool = False
    ) -> PreTrainedModel:
        wrong = files.problem(Path(self.folder)) if (Path(self.folder) / files.MANIFEST).is_file() else None
        if wrong is not None:
            raise CheckpointError(f"{self.folder}: {wrong}", fix="the weights are not what was saved: restore them")
        if head is Head.task and not new_head and not self.has_head:
            raise CheckpointError(f"{self.folder} has no head of a task", fix="train one first: llmtrain finetune model.checkpoint=…")
        kind = self._kind(new_head) if head is Head.task else None
        if kind is HeadKind.pooled and self._config.is_encoder_decoder:
            raise ConfigError(f"model.head=pooled reads the states of one stack of blocks, {self.folder} has two", fix="model.head=family")
        model = self._read(head, kind, new_head, outputs, words)
        if kind is HeadKind.pooled:
            self._wear_saved_head(model, outputs, new_head)
        stored = getattr(self._config, "dtype", None)
        if stored is not None and str(stored) != "torch.float32":
            log.info("the weights are stored in %s and loaded as fp32", str(stored).removeprefix("torch."))
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            if not resize:
                raise ConfigError(
                    f"the tokenizer has {len(tokenizer):,} tokens, the model's embedding {rows:,} rows",
                    fix="tokenizer.resize=true adds rows (trained from random numbers), or give the tokenizer of the model",
                )
            model.resize_token_embeddings(len(tokenizer))
            log.info("the embedding grew from %s to %s rows: the new ones start from random numbers", f"{rows:,}", f"{len(tokenizer):,}")
            say_fresh(model, ("embeddings: the new rows",))
        return model

    @property
    def has_head(self) -> bool:
        """Whether the weights come with the head of a task: ours beside them, or the family's own among them."""
        names = getattr(self._config, "architectures", None) or []
        return self._kind(new_head=False) is HeadKind.pooled or any(str(name).endswith("ForSequenceClassification") for name in names)

    @property
    def saved_head(self) -> SavedHead | None:
        if self.head is not HeadKind.pooled:
            return None
        try:
            about = json.loads((Path(self.folder) / HEAD_FILE).read_text(encoding="utf-8"))
            states = tuple(int(number) for number in about["states"])
            return SavedHead(str(about.get("objective", "")), Pooling[about["pooling"]], states, bool(about["classes"]))
        except (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # a damaged one is named where it is read
            return None

    def _kind(self, new_head: bool) -> HeadKind:
        """Whose head is read: the one that was saved, unless a new one may take its place."""
        if new_head:
            return self.head
        return HeadKind.pooled if (Path(self.folder) / HEAD_FILE).is_file() else HeadKind.family

    def _wear_saved_head(self, model: PreTrainedModel, outputs: Outputs | None, new_head: bool) -> None:
        """The pooled head beside the weights, where it gives what is asked for.

        Raises:
            CheckpointError: there is none that does, and none may be new.
        """
        from llmtrain.model import forward, head as heads

        saved, depth = heads.read(Path(self.folder)), int(model.config.num_hidden_layers)
        known = saved is not None and max(saved.states) <= depth
        width = forward.width(model, saved.states) if saved is not None and known else int(model.config.hidden_size)
        if saved is not None and (saved.width != width or not known):
            what = f"{Path(self.folder) / HEAD_FILE}: reads states of {saved.width} numbers, up to number {max(saved.states)}"
            raise CheckpointError(what, allowed=f"{width} numbers, 0 to {depth}: this body's", fix="take the folder anew")
        if saved is not None and outputs in (None, saved.outputs) and self.pooling in (Pooling.auto, saved.pooling):
            heads.attach(model, saved)
        elif not new_head and saved is not None and outputs in (None, saved.outputs):
            raise ConfigError(f"model.pooling={self.pooling.value}: the head of {self.folder} was trained on {saved.pooling.value}", fix="model.pooling=auto")
        elif not new_head:
            raise self._other_answers(outputs, saved.outputs if saved is not None else None)

    def _other_answers(self, wanted: Outputs | None, saved: Outputs | None) -> CheckpointError:
        """The saved head gives something else than is asked for."""

        def listed(outputs: Outputs | None) -> str:
            return "none" if outputs is None else ", ".join(outputs.names) or "a number"

        return CheckpointError(
            f"{self.folder} has no head for these answers",
            allowed=f"classes of the head: {listed(saved)}; of the data: {listed(wanted)}",
            fix="data with the classes that it was trained on, or llmtrain finetune for others",
        )

    def _new_family_head(self, model: PreTrainedModel, missing: list[str], mismatched: list[str], config: PretrainedConfig) -> tuple[list[str], list[str]]:
        """What of a family's head is to start from random numbers: all of it where the saved one answers another question.

        Returns:
            (missing, mismatched), the head's tensors always among the former.
        """
        outer = set(_outer(model))
        same = not outer & {*missing, *mismatched} and getattr(self._config, "id2label", None) == config.id2label
        if same or not outer <= {*model.state_dict()}:
            return missing, mismatched
        drawn = dict(type(model)(config).named_parameters())
        for name in outer - {*missing}:
            model.get_parameter(name).data.copy_(drawn[name].data)
        return sorted({*missing, *outer}), [name for name in mismatched if name not in outer]

    def _read(self, head: Head, kind: HeadKind | None, new_head: bool, outputs: Outputs | None, words: bool) -> PreTrainedModel:
        """All weights of the family with this head, none made up but where a new head may be.

        Raises:
            CheckpointError: weights missing, broken, pickled, or of another architecture.
        """
        import torch

        folder = Path(self.folder)
        if folder.is_dir() and not list(folder.glob("*.safetensors")):
            pickled = ", ".join(p.name for p in sorted(folder.glob("*.bin")))
            raise CheckpointError(
                f"{folder}: no weights in safetensors format{f', only {pickled}, which could run code when opened' if pickled else ''}",
                fix="save the model again with `save_pretrained`",
            )
        config = for_task(self._config, outputs) if kind is HeadKind.family and outputs is not None else self._config
        try:
            with quiet():
                model, info = auto_class(head, kind, words).from_pretrained(
                    self.folder,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except Exception as error:  # what config.json and the weights hold decides the kind
            what = _damaged(folder) or in_a_line(error)
            raise CheckpointError(f"model.checkpoint={self.folder}: {what}", allowed="intact weights in safetensors format that fit the config.json") from error
        missing, mismatched, unused = (sorted(str(name) for name in info[f"{kind}_keys"]) for kind in ("missing", "mismatched", "unexpected"))
        bare = kind is HeadKind.pooled
        if bare and missing and all(".pooler." in f".{name}" for name in missing) and self.pooling is not Pooling.pooler:
            leave_pooler_out(model)
            missing = []
        if kind is HeadKind.family:
            mismatched = [str(name[0] if isinstance(name, tuple) else name) for name in info["mismatched_keys"]]
            missing, mismatched = self._new_family_head(model, missing, mismatched, config)
            if not new_head and self.has_head and outputs not in (None, _outputs(self._config)):
                raise self._other_answers(outputs, _outputs(self._config))
        lacking = missing if _is_head(model, missing) or (bare and all(".pooler." in f".{name}" for name in missing)) else []
        if lacking and not mismatched:
            what = f"{self.folder} has no {_named(head)} head: {len(lacking)} tensors of {type(model).__name__} are not in its weights"
            if not new_head:
                raise CheckpointError(f"{what}: {', '.join(lacking[:3])}", fix="train one first: llmtrain pretrain model=checkpoint model.checkpoint=…")
            said = log.info if head is Head.task else log.warning  # a task's head is new as a rule
            said("%s; they start from random numbers and are trained: %s", what, ", ".join(lacking[:3]))
            say_fresh(model, lacking)
            missing = []
        if missing or mismatched:
            total = len(model.state_dict())
            raise CheckpointError(
                f"{self.folder}: {len(missing) + len(mismatched)} of {total} tensors of {type(model).__name__} "
                f"are missing or of another shape: {', '.join((missing + mismatched)[:3])}",
                fix="are these the weights of another architecture? config.json decides which one is built",
            )
        if unused:
            # A model with two heads is often loaded with one of them: that is not worth a warning.
            log.log(
                logging.INFO if bare or _is_head(model, unused) else logging.WARNING,
                "%s: %d tensors of the file have no place in %s and are left out: %s",
                folder,
                len(unused),
                type(model).__name__,
                ", ".join(unused[:3]),
            )
        return model


def _outputs(config: PretrainedConfig) -> Outputs:
    """What a family's head of this config gives."""
    number = int(config.num_labels)
    return Outputs(number, tuple(map(str, config.id2label.values())) if number > 1 else ())


def _outer(model: PreTrainedModel) -> list[str]:
    """The parameters that stand on the body."""
    return [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]


def _is_head(model: PreTrainedModel, names: list[str]) -> bool:
    """Whether tensors that are missing belong to what stands on the body: heads, and the pooler that only they read."""
    body: str = model.base_model_prefix
    if not any(name.startswith(f"{body}.") for name in model.state_dict()):
        return False
    return all(not name.startswith(f"{body}.") or name.startswith(f"{body}.pooler.") for name in names)


def _named(head: Head) -> str:
    return {Head.masked_lm: "masked-LM", Head.sentence_order: "sentence-order", Head.pretraining: "whole pretraining", Head.task: "task"}.get(
        head, "language-model"
    )


def _damaged(folder: Path) -> str | None:
    """The first weights file whose header or length is wrong, and how."""
    import safetensors

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safetensors.safe_open(path, framework="pt"):
                pass
        except (OSError, safetensors.SafetensorError) as error:
            return f"{path.name} is damaged: {in_a_line(error)}"
    return None


def in_a_line(error: Exception) -> str:
    """The first line of a message of transformers', which often has many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' reports and progress bars: what is wrong becomes an error of ours."""
    from transformers.utils import logging as hf

    before = hf.get_verbosity()
    bars: Any = hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(before)
        if bars:
            hf.enable_progress_bar()
