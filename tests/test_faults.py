"""Faults of config, data, models, numerics (A to D), hostile input and sweeps (H, I): which test covers which, and what no other file holds."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llmtrain import trainer
from llmtrain.errors import CheckpointError, ConfigError, DeviceError, NonFiniteError
from llmtrain.objective.base import IGNORED, Batch
from llmtrain.objective.classification import Classification
from tests.conftest import TINY_FINETUNE, Pretrained, Train, tiny
from tests.table import missing

SETTINGS = ("test_config.py::test_a_wrong_setting_is_named_with_what_is_allowed_and_a_file_gets_the_same_text_and_its_line",)
REFUSED = ("command/test_finetune.py::test_what_cannot_work_is_refused_in_a_few_lines_with_the_way_out",)
MODELS = ("model/test_checkpoint.py::test_a_folder_that_cannot_be_loaded_is_named_with_what_is_wrong",)

TABLE: dict[str, tuple[str, ...]] = {
    "A01": SETTINGS,
    "A02": ("test_config.py::test_a02_an_unknown_key_three_levels_deep_is_named_with_file_and_line",),
    "A03": ("test_config.py::test_an_unknown_option_lists_those_that_there_are",),
    "A04": ("model/test_bert.py::test_a_wrong_pair_is_refused_before_anything_is_loaded", *REFUSED),
    "A05": ("model/test_checkpoint.py::test_a05_a_bert_is_refused_for_next_token", *REFUSED),
    "A06": ("test_pulse.py::test_every_finetuning_runs_or_is_refused_with_a_way_out",),
    "A07": SETTINGS,
    "A09": SETTINGS,
    "A10": SETTINGS,
    "A11": SETTINGS,
    "A12": (*SETTINGS, "test_trainer.py::test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do"),
    "A14": ("objective/test_masking.py::test_probabilities_and_shares_out_of_range_are_refused",),
    "A15": ("objective/test_masking.py::test_probabilities_and_shares_out_of_range_are_refused",),
    "A16": REFUSED,
    "A17": REFUSED,
    "A19": REFUSED,
    "A21": SETTINGS,
    "A22": ("test_runtime.py::test_a22_fp16_on_a_cpu_is_refused_also_where_auto_chose_the_cpu",),
    "A23": ("test_runtime.py::test_a23_bf16_without_hardware_for_it_is_refused",),
    "A24": ("test_runtime.py::test_a24_a_device_that_is_not_there_is_never_silently_the_cpu",),
    "A25": SETTINGS,
    "A26": (*SETTINGS, "test_runtime.py::test_a26_a_seed_beyond_is_refused"),
    "A29": SETTINGS,
    "A30": ("test_config.py::test_a_folder_that_cannot_be_used_is_named",),
    "A31": ("test_cli.py::test_what_is_mistyped_is_answered_with_what_is_allowed",),
    "A32": ("test_cli.py::test_help_and_config_errors_import_nothing_heavy", "command/test_validate.py::test_the_first_fault_ends_it_with_its_own_code"),
    "A34": ("test_cli.py::test_a34_a_run_without_anything_to_evaluate_on_is_a_data_error",),
    "A35": (*SETTINGS, *REFUSED),
    "B01": ("data/test_text.py::test_b01_a_missing_file_or_an_empty_glob_is_named_with_its_whole_path",),
    "B02": ("data/test_text.py::test_b02_a_file_without_documents_is_refused_with_its_count", "data/test_labelled.py::test_b02_a_file_without_rows_is_refused"),
    "B03": ("data/test_text.py::test_b03_a_folder_is_read_as_all_files_below_it", "data/test_text.py::test_b03_a_folder_without_files_to_read_is_refused"),
    "B04": (
        "data/test_text.py::test_b04_a_byte_that_is_no_text_is_named_with_line_and_offset",
        "data/test_labelled.py::test_b04_bytes_that_are_no_text_are_named",
    ),
    "B07": ("data/test_text.py::test_b07_a_line_of_any_length_is_read_in_parts", "data/test_text.py::test_b07_a_line_that_must_be_parsed_whole_has_a_limit"),
    "B08": ("data/test_text.py::test_b08_very_many_very_short_lines_are_read", "data/test_readers.py::test_b08_many_short_lines_are_never_held_together"),
    "B09": (
        "data/test_text.py::test_b09_a_csv_that_is_not_well_formed_is_named_with_its_line",
        "data/test_labelled.py::test_b09_a_csv_that_is_not_well_formed_is_named_with_its_line",
    ),
    "B10": (
        "data/test_text.py::test_b10_without_the_text_column_the_columns_that_are_there_are_listed",
        "data/test_labelled.py::test_b10_columns_that_cannot_be_told_apart_are_listed",
    ),
    "B12": (
        "data/test_text.py::test_b12_blank_texts_are_skipped_and_counted",
        "data/test_labelled.py::test_b12_rows_with_a_blank_text_are_skipped_and_counted",
    ),
    "B13": ("data/test_labelled.py::test_b13_a_label_that_cannot_be_one_is_named_with_its_row_and_what_is_allowed",),
    "B15": ("data/test_labelled.py::test_b15_one_class_in_train_is_refused",),
    "B16": (
        "data/test_text.py::test_b16_a_bad_json_line_is_named_with_its_number",
        "data/test_labelled.py::test_b16_a_row_without_its_label_or_cut_off_is_named",
    ),
    "B18": ("data/test_text.py::test_b18_scripts_are_not_run", "data/test_hub.py::test_b18_scripts_are_not_run"),
    "B19": (
        "test_faults.py::test_b19_fewer_labelled_rows_than_a_batch_are_refused_with_the_numbers",
        "data/test_labelled.py::test_b19_a_share_that_came_out_empty_is_refused_with_the_numbers",
    ),
    "B21": ("data/test_text.py::test_a_setting_out_of_range_is_a_config_error_that_names_the_key",),
    "B22": ("data/test_text.py::test_b22_they_are_an_error_on_request", "data/test_labelled.py::test_b22_texts_in_two_files_are_counted_in_a_warning"),
    "B23": (
        "objective/test_sentence_order.py::test_documents_that_are_too_short_are_skipped_and_counted",
        "objective/test_sentence_order.py::test_data_without_pairs_is_refused_and_says_why",
    ),
    "B24": (
        "command/test_validate.py::test_what_it_refuses_is_what_a_run_refuses",
        "objective/test_tasks.py::test_segments_are_cut_at_their_end_and_rows_that_were_cut_are_counted",
    ),
    "B26": ("data/test_text.py::test_b26_a_file_that_changed_is_noticed_though_size_and_time_are_the_same",),
    "B28": (
        "data/test_store.py::test_b28_damaged_rows_are_made_again_with_one_line_that_says_why",
        "test_cache.py::test_b28_a_damaged_entry_is_made_again_with_one_line_that_says_why",
    ),
    "B30": ("data/test_store.py::test_b30_a_builder_that_was_killed_holds_up_nobody_and_leaves_nothing",),
    "B31": ("data/test_text.py::test_b31_a_file_without_permission_is_named", "data/test_text.py::test_b31_what_cannot_be_read_in_a_folder_is_named"),
    "C01": (
        "command/test_finetune.py::test_c01_new_token_rows_are_added_on_demand_and_never_stay_frozen",
        "model/test_checkpoint.py::test_c01_through_the_command_line",
    ),
    "C02": (
        "test_traps.py::test_t13_c02_a_familys_head_that_looks_for_padding_is_refused_where_none_only_pads_and_ours_is_not",
        "model/test_checkpoint.py::test_c02_a_causal_model_trains_without_a_padding_token_and_that_is_said",
    ),
    "C03": ("test_faults.py::test_c03_c04_a_tokenizer_without_a_token_that_the_objective_needs_is_refused",),
    "C04": ("test_faults.py::test_c03_c04_a_tokenizer_without_a_token_that_the_objective_needs_is_refused",),
    "C06": MODELS,
    "C07": ("model/test_checkpoint.py::test_c07_with_a_manifest_every_changed_byte_is_noticed", *MODELS),
    "C08": ("test_faults.py::test_c08_weights_of_another_architecture_are_refused_with_how_many_tensors_are_missing", *MODELS),
    "C11": ("data/test_tokenizer.py::test_c11_code_that_comes_with_a_tokenizer_is_not_run", *MODELS),
    "C12": ("test_faults.py::test_c12_a_pickle_is_refused_and_never_opened", *MODELS),
    "C13": ("test_faults.py::test_c13_a_base_in_half_precision_is_finetuned_in_fp32_and_that_is_said",),
    "C15": (
        "test_traps.py::test_t16_c15_tied_weights_are_one_tensor_at_every_update_before_and_after_a_resume",
        "model/test_checkpoint.py::test_c15_tied_weights_stay_one_tensor_through_training_checkpoint_and_export",
    ),
    "C16": (
        "test_faults.py::test_c16_a_model_larger_than_memory_is_refused_before_it_is_loaded",
        "model/test_checkpoint.py::test_c16_counts_the_weights_of_a_checkpoint_too",
    ),
    "C18": (
        "model/test_gpt.py::test_c18_a_padded_batch_gives_the_losses_and_logits_of_its_rows_alone",
        "objective/test_masked_lm.py::test_padded_and_unpadded_give_the_same_logits_and_loss",
    ),
    "C19": ("model/test_gpt.py::test_c19_packed_documents_give_the_losses_and_logits_of_documents_alone",),
    "D01": ("test_faults.py::test_d01_a_loss_that_is_not_finite_stops_before_the_update_and_leaves_finite_weights",),
    "D02": ("test_faults.py::test_d02_a_number_that_is_none_on_one_process_stops_all_at_the_same_step",),
    "D04": ("test_faults.py::test_d04_a_batch_without_a_target_adds_nothing_and_moves_nothing",),
    "D05": ("test_faults.py::test_d05_d15_micro_batches_give_the_update_of_the_whole_batch_also_at_the_short_end_of_an_epoch",),
    "D06": ("command/test_finetune.py::test_two_processes_finetune_as_one_does", "test_trainer.py::test_two_processes_give_the_losses_and_gradients_of_one"),
    "D07": ("test_trainer.py::test_every_row_is_evaluated_once_on_any_number_of_processes",),
    "D09": (
        "objective/test_masked_lm.py::test_masks_are_drawn_anew_each_epoch_and_are_fixed_for_evaluation",
        "test_faults.py::test_d09_two_evaluations_of_the_same_weights_give_the_same_number",
    ),
    "D11": (
        "test_traps.py::test_t18_d11_a_large_decay_moves_nothing_that_is_frozen",
        "test_traps.py::test_t17_what_was_computed_once_is_what_frozen_layers_compute_at_every_update",
    ),
    "D13": ("command/test_finetune.py::test_d13_gradient_checkpointing_computes_trainable_blocks_again_and_no_other_and_changes_no_loss",),
    "D14": ("test_faults.py::test_d14_a_lack_of_memory_is_one_screen_with_what_to_change",),
    "D15": ("test_faults.py::test_d05_d15_micro_batches_give_the_update_of_the_whole_batch_also_at_the_short_end_of_an_epoch",),
    "H01": (
        "test_config.py::test_h01_a_target_on_the_command_line_is_refused",
        "test_config.py::test_h01_a_target_in_a_file_is_refused",
        "command/test_sweep.py::test_what_is_wrong_is_said_before_anything_runs",
    ),
    "H03": ("test_config.py::test_h03_settings_of_hydra_in_a_file_are_refused", "test_config.py::test_a_sweep_takes_no_more_than_one_run_does"),
    "H05": ("test_config.py::test_a_file_that_is_built_to_explode_is_refused_before_it_is_composed",),
    "H07": MODELS,
    "H08": MODELS,
    "H09": (
        "test_config.py::test_h09_a_secret_on_the_command_line_is_refused_and_not_repeated",
        "test_config.py::test_h09_a_secret_with_several_values_is_refused_and_not_repeated",
    ),
    "H10": (
        "test_config.py::test_h10_what_variables_of_secrets_hold_is_masked_wherever_it_stands",
        "test_faults.py::test_h10_a_secret_of_the_environment_is_in_no_file_of_a_run",
        "command/test_doctor.py::test_h10_of_a_secret_only_the_name_is_said",
    ),
    "H12": (
        "report/test_browser.py::test_script_in_a_row_is_shown_as_text_and_never_ran",
        "report/test_page.py::test_text_of_data_is_shown_as_text",
        "report/test_page.py::test_a_page_with_hostile_text_has_the_elements_of_one_without",
    ),
    "H14": (
        "command/test_predict.py::test_what_could_drive_the_terminal_is_printed_as_an_escape",
        "report/test_summary.py::test_text_of_data_is_no_markup_and_cannot_drive_the_terminal",
    ),
    "H16": (
        "report/test_sheet.py::test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe",
        "report/test_sheet.py::test_no_cell_of_a_hostile_study_begins_a_formula_and_none_spans_lines",
    ),
    "H18": ("report/test_page.py::test_nothing_is_run_fetched_or_linked_to", "report/test_browser.py::test_nothing_is_asked_of_the_network"),
    "I01": ("command/test_sweep.py::test_a_loss_that_is_no_number_ends_one_member_and_the_exit_code_tells",),
    "I02": (
        "command/test_sweep.py::test_a_sweep_that_was_disturbed_ends_with_the_table_of_one_that_was_not",
        "command/test_sweep.py::test_a_sweep_that_was_killed_leaves_no_member_running",
    ),
    "I05": ("command/test_sweep.py::test_two_precisions_in_one_sweep_work",),
    "I07": (
        "report/test_study.py::test_rows_stand_by_trained_parameters_those_that_are_not_finite_after_them_and_those_without_a_result_last",
        "report/test_page.py::test_metrics_that_are_no_numbers_are_shown_and_stand_where_the_study_puts_them",
    ),
    "I08": ("report/test_files.py::test_written_again_the_bytes_are_the_same", "report/test_page.py::test_made_twice_it_is_the_same_bytes"),
}

# Rows that no test covers yet.
UNCOVERED = {"H17"}  # archives of the hub are unpacked by `datasets` alone, and none could be fetched to try it

ROWS = {
    "A": (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 19, 21, 22, 23, 24, 25, 26, 29, 30, 31, 32, 34, 35),
    "B": (1, 2, 3, 4, 7, 8, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22, 23, 24, 26, 28, 30, 31),
    "C": (1, 2, 3, 4, 6, 7, 8, 11, 12, 13, 15, 16, 18, 19),
    "D": (1, 2, 4, 5, 6, 7, 9, 11, 13, 14, 15),
    "H": (1, 3, 5, 7, 8, 9, 10, 12, 14, 16, 17, 18),
    "I": (1, 2, 5, 7, 8),
}


def test_every_fault_has_a_test_that_exists_or_is_said_to_have_none() -> None:
    rows = {f"{section}{number:02d}" for section, numbers in ROWS.items() for number in numbers}
    assert TABLE.keys() | UNCOVERED == rows
    assert not TABLE.keys() & UNCOVERED
    assert missing(TABLE) == []


# --- C: tokenizer and model ---------------------------------------------------------------------------------------


def base_of(run: Path, folder: Path) -> Path:
    """The weights of a run as another project might have saved them: without a manifest."""
    shutil.copytree(run / "final", folder)
    (folder / "manifest.json").unlink()
    return folder


def without(folder: Path, *tokens: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in tokens}))


@pytest.mark.parametrize(
    ("objective", "lacking", "said"),
    [
        ("masked_lm", ("mask_token",), "[MASK]"),
        ("sentence_order", ("cls_token", "sep_token"), "[CLS]"),
        ("classification", ("cls_token", "sep_token"), "[CLS]"),
    ],
)
def test_c03_c04_a_tokenizer_without_a_token_that_the_objective_needs_is_refused(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, objective: str, lacking: tuple[str, ...], said: str
) -> None:
    base = base_of(pretrained("bert"), tmp_path / "base")
    without(base, *lacking)
    with pytest.raises(ConfigError) as caught:
        finetune(tmp_path / "run", f"objective={objective}", "data.words=200", f"model.checkpoint={base}")
    assert said in caught.value.what or "start" in caught.value.what
    assert "tokenizer.path" in str(caught.value.fix)
    assert len(caught.value.screen().splitlines()) <= 6


def test_c08_weights_of_another_architecture_are_refused_with_how_many_tensors_are_missing(finetune: Train, pretrained: Pretrained, tmp_path: Path) -> None:
    base = base_of(pretrained("bert"), tmp_path / "base")
    shutil.copy(pretrained("gpt") / "final" / "model.safetensors", base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d+ of \d+ tensors of BertModel are missing") as caught:
        finetune(tmp_path / "run", f"model.checkpoint={base}")
    assert caught.value.exit_code == 4


def test_c12_a_pickle_is_refused_and_never_opened(finetune: Train, pretrained: Pretrained, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    base = base_of(pretrained("bert"), tmp_path / "base")
    (base / "model.safetensors").unlink()
    torch.save({"bert": Payload()}, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin, which could run code"):
        finetune(tmp_path / "run", f"model.checkpoint={base}")
    assert not (tmp_path / "ran").exists()


def test_c13_a_base_in_half_precision_is_finetuned_in_fp32_and_that_is_said(finetune: Train, pretrained: Pretrained, tmp_path: Path) -> None:
    base = base_of(pretrained("bert"), tmp_path / "base")
    half = {name: tensor.bfloat16() for name, tensor in safetensors.torch.load((base / "model.safetensors").read_bytes()).items()}
    (base / "model.safetensors").write_bytes(safetensors.torch.save(half, {"format": "pt"}))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    run = finetune(tmp_path / "run", "finetune=last_layers", "finetune.blocks=1", f"model.checkpoint={base}", "trainer.max_steps=2")
    assert "the weights are stored in bfloat16 and loaded as fp32" in (run / "train.log").read_text()
    final = safetensors.torch.load((run / "final" / "model.safetensors").read_bytes())
    assert {tensor.dtype for tensor in final.values()} == {torch.float32}
    assert json.loads((run / "run.json").read_text())["freezing"]["frozen_but_moved"] == []


def test_c16_a_model_larger_than_memory_is_refused_before_it_is_loaded(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.estimate.available_bytes", lambda device: 1000)
    monkeypatch.setattr("llmtrain.model.checkpoint.Checkpoint.load", lambda *_, **__: pytest.fail("the weights were loaded"))
    with pytest.raises(DeviceError, match="GiB are free on cpu"):
        finetune(tmp_path / "run")


# --- B and D: data and numerics -----------------------------------------------------------------------------------


def test_b19_fewer_labelled_rows_than_a_batch_are_refused_with_the_numbers(finetune: Train, tmp_path: Path) -> None:
    from llmtrain.errors import DataError

    with pytest.raises(DataError, match=r"55 sequences of up to 24 tokens, one update takes trainer\.batch_size=64"):
        finetune(tmp_path / "run", "trainer.batch_size=64")


def test_d01_a_loss_that_is_not_finite_stops_before_the_update_and_leaves_finite_weights(finetune: Train, tmp_path: Path) -> None:
    spoilt = ("optimizer.lr=1e20", "trainer.clip_norm=null", "schedule=constant", "schedule.warmup_steps=0", "checkpoint.every_steps=1", "trainer.max_steps=20")
    with pytest.raises(NonFiniteError, match="not finite at step") as caught:
        finetune(tmp_path / "run", "finetune=full", *spoilt)
    assert caught.value.exit_code == 5
    assert "last good checkpoint" in str(caught.value.fix)
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert str(newest) in str(caught.value.fix)
    assert all(t.isfinite().all() for t in safetensors.torch.load((newest / "model.safetensors").read_bytes()).values())
    assert not (tmp_path / "run" / "final").exists()


SPOIL_ONE = """
import os, sys
from llmtrain import trainer
from llmtrain.cli import main

real = trainer.Trainer._update

def update(self, batches):
    if os.environ["RANK"] == "1" and self.state.step == 2:
        for parameter in self._trained:
            parameter.data.fill_(float("nan"))
    return real(self, batches)

trainer.Trainer._update = update
code = main(sys.argv[1:])
print(f"rank {os.environ['RANK']} left with {code}", flush=True)
"""


def test_d02_a_number_that_is_none_on_one_process_stops_all_at_the_same_step(pretrained: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "spoil.py").write_text(SPOIL_ONE)
    typed = [*tiny("finetune=features", "cache.use=never", base=TINY_FINETUNE), f"model.checkpoint={pretrained('bert')}", f"output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone", "spoil.py", "finetune"]
    done = subprocess.run(
        [*command, *typed], capture_output=True, text=True, timeout=300, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False
    )
    assert "rank 0 left with 5" in done.stdout, done.stderr
    assert "rank 1 left with 5" in done.stdout
    assert done.stderr.count("error: the loss is not finite at step 3") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["exit_code"] == 5


@pytest.mark.parametrize("mode", [("finetune=features",), ("finetune=full",)])
def test_d04_a_batch_without_a_target_adds_nothing_and_moves_nothing(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: tuple[str, ...]
) -> None:
    real_collate, real_update = Classification.collate, trainer.Trainer._update
    seen: list[tuple[dict[str, float], bool]] = []

    def collate(self: Classification, examples: Any, draw: Any, vocabulary: Any) -> Batch:
        batch = real_collate(self, examples, draw, vocabulary)
        if draw.epoch != "eval" and len(seen) == 0:
            batch.labels["class"].fill_(IGNORED)
            batch.counts["class"] = 0
        return batch

    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        before = [p.detach().clone() for p in self.saved.parameters()]
        step = real_update(self, batches)
        seen.append((dict(step.losses), all(torch.equal(a, b) for a, b in zip(before, self.saved.parameters(), strict=True))))
        return step

    monkeypatch.setattr(Classification, "collate", collate)
    monkeypatch.setattr(trainer.Trainer, "_update", update)
    finetune(tmp_path / "run", *mode, "trainer.max_steps=3", "schedule.warmup_steps=0")
    (losses, still), *others = seen
    assert (losses["class"], still) == (0.0, True)
    assert all(math.isfinite(found["class"]) and found["class"] > 0 and not unmoved for found, unmoved in others)


def test_d05_d15_micro_batches_give_the_update_of_the_whole_batch_also_at_the_short_end_of_an_epoch(finetune: Train, tmp_path: Path) -> None:
    asked = ("finetune=full", "trainer.max_epochs=1", "trainer.log_every_steps=1", "schedule=constant")
    runs = {micro: finetune(tmp_path / str(micro), *asked, f"trainer.micro_batch_size={micro}") for micro in (8, 2)}
    lines = {micro: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for micro, run in runs.items()}
    whole, cut = ([(line["loss_class"], line["grad_norm"]) for line in found if "grad_norm" in line] for found in lines.values())
    rows = 55
    assert rows % 8
    assert len(whole) == len(cut) == -(-rows // 8)
    for a, b in zip(whole, cut, strict=True):
        assert b == pytest.approx(a, rel=1e-5)


@pytest.mark.parametrize("objective", ["masked_lm", "classification"])
def test_d09_two_evaluations_of_the_same_weights_give_the_same_number(finetune: Train, tmp_path: Path, objective: str) -> None:
    asked = (f"objective={objective}", "optimizer.lr=1e-30", "optimizer.weight_decay=0", "evaluation.every_steps=1", "trainer.max_steps=3")
    run = finetune(tmp_path / "run", "finetune=full", *asked, of="bert_dropout")
    found = [line["validation_loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "validation_loss" in line]
    assert len(found) == 3
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), MemoryError()],
)
def test_d14_a_lack_of_memory_is_one_screen_with_what_to_change(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        raise error

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    with pytest.raises(DeviceError) as caught:
        finetune(tmp_path / "run", "finetune=full")
    assert caught.value.exit_code == 6
    fix = str(caught.value.fix)
    assert all(remedy in fix for remedy in ("trainer.micro_batch_size=4", "trainer.gradient_checkpointing=true", "data.max_length"))
    assert "the updates stay those of 8 sequences" in fix


def test_d14_another_fault_is_not_taken_for_a_lack_of_memory(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        finetune(tmp_path / "run", "finetune=full")


def test_h10_a_secret_of_the_environment_is_in_no_file_of_a_run(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    run = finetune(tmp_path / "run", "callback.tracker.project=${oc.env:WANDB_API_KEY}", "trainer.max_steps=1")
    assert "***" in (run / "resolved.yaml").read_text()
    assert [path for path in run.rglob("*") if path.is_file() and b"a-very-secret-key" in path.read_bytes()] == []
