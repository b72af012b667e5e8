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
from llmtrain.errors import CheckpointError, ConfigError, require
from llmtrain.model.base import Attention, Head, Model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("llmtrain")


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
        path = Path(self.checkpoint)
        if (path / "final" / "config.json").is_file():
            return str(path / "final")
        if (path / "resolved.yaml").is_file() and not (path / "config.json").is_file():
            raise CheckpointError(f"model.checkpoint={path}: this run has no final/ yet", fix="let it finish: the same command with output_dir=… goes on")
        return self.checkpoint

    @cached_property
    def _config(self) -> PretrainedConfig:
        """The family's config, read without running any code of the repository's."""
        self._refuse_code()
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"model.checkpoint={self.folder}: {first[:200]}", allowed="a folder with a valid config.json of a family that transformers knows, or a hub name"
            ) from error

    def _refuse_code(self) -> None:
        """`auto_map` in a config.json asks to run the repository's own Python. llmtrain never does."""
        path = Path(self.folder) / "config.json"
        if not Path(self.folder).is_dir():
            return
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file", allowed="a Hugging Face folder with config.json, or the folder of a run") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} does not hold a config")
        if "auto_map" in content:
            raise ConfigError(
                f"{path}: the model wants to run code of its own (auto_map); llmtrain never does", fix="take a model of a family that transformers itself knows"
            )

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
        return found if isinstance(found, int) and found > 0 else None

    @property
    def width(self) -> int | None:
        found = getattr(self._config, "hidden_size", None)
        return found if isinstance(found, int) else None

    @property
    def tokenizer_path(self) -> str | None:
        return self.folder

    def config(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        return self._config

    def load(self, tokenizer: PreTrainedTokenizerBase, head: Head, *, resize: bool) -> PreTrainedModel:
        wrong = files.problem(Path(self.folder)) if (Path(self.folder) / files.MANIFEST).is_file() else None
        if wrong is not None:
            raise CheckpointError(f"{self.folder}: {wrong}", fix="the weights are not what was saved: restore them")
        model = self._read()
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
        return model

    def _read(self) -> PreTrainedModel:
        """All weights of the family's language model, none made up.

        Raises:
            CheckpointError: weights missing, broken, pickled, or of another architecture.
        """
        import safetensors
        import torch
        from transformers import AutoModelForCausalLM

        folder = Path(self.folder)
        if folder.is_dir() and not list(folder.glob("*.safetensors")):
            pickled = ", ".join(p.name for p in sorted(folder.glob("*.bin")))
            raise CheckpointError(
                f"{folder}: no weights in safetensors format{f', only {pickled}, which could run code when opened' if pickled else ''}",
                fix="save the model again with `save_pretrained`",
            )
        try:
            with quiet():
                model, info = AutoModelForCausalLM.from_pretrained(
                    self.folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"model.checkpoint={self.folder}: {first[:300]}", allowed="a folder or hub name with intact weights in safetensors format"
            ) from error
        missing, mismatched = sorted(info["missing_keys"]), sorted(str(m) for m in info["mismatched_keys"])
        if missing or mismatched:
            total = len(model.state_dict())
            raise CheckpointError(
                f"{self.folder}: {len(missing) + len(mismatched)} of {total} tensors of {type(model).__name__} "
                f"are missing or of another shape: {', '.join((missing + mismatched)[:3])}",
                fix="are these the weights of another architecture? config.json decides which one is built",
            )
        return model


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
