# ruff: noqa: F401
"""What every job imports, imported once: the processes of launcher=local are forked from one that has done so.

It imports and never computes. Once torch has used its threads, or a GPU was asked for anything, a fork of the process
hangs or fails; a process that has only imported can be forked as often as one likes. Nothing imports this module but
that process, which is given its name.
"""

from __future__ import annotations

import gc

import accelerate
import datasets
import matplotlib.backends.backend_agg
import matplotlib.figure
import psutil
import torch
import transformers
import transformers.modeling_utils
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.models.bert.modeling_bert
import transformers.models.gpt2.modeling_gpt2

import llmtrain.cache
import llmtrain.checkpoint
import llmtrain.config
import llmtrain.data.loader
import llmtrain.model.anatomy
import llmtrain.model.forward
import llmtrain.optimizer
import llmtrain.runtime

# What is imported stays: the garbage collector of a job need not go through it again, nor write to pages that all jobs share.
gc.collect()
gc.freeze()
