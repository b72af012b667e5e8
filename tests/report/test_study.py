"""From runs to rows: what belongs together, what rows are called, which are marked, and what a reader must know."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain.errors import ConfigError
from llmtrain.report.runs import Gathered
from llmtrain.report.study import Row, Run, Study, study

NAN, INF = math.nan, math.inf
RATES = {"features": 5e-3, "last_layers": 5e-5, "layers": 5e-5, "full": 5e-5, "lora": 5e-4, "lp_ft": 5e-5}
OWN: dict[str, dict[str, Any]] = {
    "features": {"finetune.states": "last", "finetune.untie": False},
    "last_layers": {"finetune.blocks": 2, "finetune.lr_decay": 1.0},
    "layers": {"finetune.address": "last:2", "finetune.lr_decay": 1.0},
    "lora": {"finetune.rank": 8, "finetune.blocks": None, "finetune.lr_decay": 1.0},
}
SIZES = {"features": 10, "lora": 20, "last_layers": 100, "layers": 100, "lp_ft": 1000, "full": 1000}


def run(kind: str = "full", seed: int = 0, value: float = 0.8, test: float | None = None, **changed: Any) -> Run:
    """A finished finetuning; further arguments with a dot in their name are settings."""
    settings = {"finetune.kind": kind, "optimizer.lr": RATES[kind], "trainer.max_epochs": 3, "data.kind": "text", "seed": seed, **OWN.get(kind, {})}
    settings |= {key: changed.pop(key) for key in list(changed) if "." in key or key in ("precision", "device")}
    blocks = settings.get("finetune.blocks")
    trainable = SIZES[kind] + 10 * (blocks if isinstance(blocks, int) else 0)
    known: dict[str, Any] = {
        "path": Path(f"runs/{kind}-{'-'.join(str(value) for value in settings.values())}"),
        "name": f"{kind}-{seed}",
        "verb": "finetune",
        "status": "finished",
        "settings": settings,
        "seed": seed,
        "validation": {"accuracy": value, "loss": 1 - value},
        "test": {} if test is None else {"accuracy": test, "loss": 1 - test},
        "metric": "accuracy",
        "higher": True,
        "parameters": 1000,
        "trainable": trainable,
        "wall_seconds": float(trainable),
        "peak_memory_mb": 100.0 + trainable,
        "disk_mb": 1.0,
        "machine": {"device": "cpu", "name": "one", "processes": 1, "threads": 2, "precision": "fp32"},
        "versions": {"torch": "2.13.0"},
    }
    return Run(**(known | changed))


def compared(*runs: Run, **options: Any) -> Study:
    return study(Gathered(runs, "study", "llmtrain finetune -m …", tuple(options.pop("notes", ()))), **options)


def labels(found: Study) -> list[str]:
    return [row.label for row in found.rows]


def row(found: Study, label: str) -> Row:
    return next(row for row in found.rows if row.label == label)


# --- what belongs together ----------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_alone_are_one_row() -> None:
    found = compared(*(run(seed=seed, value=value) for seed, value in ((2, 0.8), (0, 0.9), (1, 0.7))))
    assert [one.seed for one in found.rows[0].runs] == [0, 1, 2]
    assert len(found.rows) == 1
    assert found.rows[0].validation is not None
    assert (found.rows[0].validation.mean, found.rows[0].validation.number) == (pytest.approx(0.8), 3)


def test_the_order_of_runs_does_not_matter() -> None:
    runs = [run(kind, seed, 0.5 + 0.1 * seed, 0.6) for kind in ("full", "features", "last_layers") for seed in (0, 1)]
    assert compared(*runs) == compared(*runs[::-1])


def test_numbers_that_are_equal_are_the_same_setting() -> None:
    assert len(compared(run(**{"optimizer.epsilon": 1}), run(seed=1, **{"optimizer.epsilon": 1.0})).rows) == 1
    assert len(compared(run(**{"finetune.untie": True}), run(seed=1, **{"finetune.untie": 1})).rows) == 2


def test_of_runs_with_equal_settings_and_seed_the_newest_is_kept_and_that_is_said() -> None:
    old, new = (run(value=value, started=started, name=started, path=Path(started)) for value, started in ((0.7, "2026-01-01"), (0.8, "2026-01-02")))
    found = compared(new, old)
    assert found.rows[0].runs == (new,)
    assert any("2026-01-02" in note for note in found.notes)


def test_a_newer_run_that_failed_does_not_hide_one_that_finished() -> None:
    whole = run(started="2026-01-01", path=Path("a"))
    assert compared(whole, run(started="2026-01-02", path=Path("b"), status="failed")).rows[0].runs == (whole,)


def test_a_runs_costs_are_the_medians_of_those_that_finished() -> None:
    runs = [run(seed=seed, wall_seconds=seconds) for seed, seconds in enumerate((10.0, 30.0, 11.0))]
    found = compared(*runs, run(seed=3, wall_seconds=1.0, status="failed"))
    assert found.rows[0].seconds == 11


def test_runs_whose_settings_nobody_knows_are_rows_of_their_own() -> None:
    broken = [run(settings={}, status="failed", name=name, path=Path(name), validation={}) for name in ("x", "y")]
    assert labels(compared(run(), *broken))[1:] == ["x", "y"]


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "label"),
    [
        ("features", {}, "features"),
        ("last_layers", {"finetune.blocks": 1}, "last block"),
        ("last_layers", {"finetune.blocks": 4}, "last 4 blocks"),
        ("layers", {"finetune.address": "3-6"}, "layers 3-6"),
        ("lora", {}, "lora"),
        ("lora", {"finetune.blocks": 2}, "lora in the last 2 blocks"),
        ("lp_ft", {}, "lp ft"),
        ("full", {}, "full"),
    ],
)
def test_a_row_is_called_after_its_mode_and_address(kind: str, settings: dict[str, Any], label: str) -> None:
    others = [run("features", **{"finetune.states": "all"})] if kind != "features" else [run("full")]
    assert label in labels(compared(run(kind, **settings), *others))
    assert labels(compared(run(kind, **settings))) == [label]


def test_settings_that_follow_the_mode_are_not_in_the_name_and_are_among_what_differs() -> None:
    found = compared(run("features"), run("last_layers"), run("full"))
    assert labels(found) == ["features", "last 2 blocks", "full"]
    assert found.differs == ("finetune.kind", "optimizer.lr")
    assert row(found, "features").differs == {"finetune.kind": "features", "optimizer.lr": 5e-3}


def test_rows_of_one_mode_are_told_apart_by_what_differs_in_it() -> None:
    found = compared(run("full"), *(run("last_layers", **{"optimizer.lr": lr}) for lr in (5e-5, 1e-3)))
    assert labels(found) == ["last 2 blocks, lr 5e-05", "last 2 blocks, lr 0.001", "full"]


def test_where_the_mode_is_the_same_it_is_not_in_the_name() -> None:
    assert labels(compared(*(run(**{"optimizer.lr": lr}) for lr in (1e-2, 1e-4, 1e-3)))) == ["lr 0.0001", "lr 0.001", "lr 0.01"]


def test_rows_are_told_apart_by_as_few_settings_as_do_so() -> None:
    found = compared(*(run(**{"optimizer.lr": lr, "trainer.max_epochs": epochs}) for lr, epochs in ((1e-4, 3), (1e-3, 4))))
    assert labels(found) == ["lr 0.0001", "lr 0.001"]
    assert found.differs == ("optimizer.lr", "trainer.max_epochs")


def test_what_was_typed_tells_rows_apart_before_what_was_not() -> None:
    runs = [run(overrides=(f"trainer.max_epochs={n}", "seed=0"), **{"optimizer.lr": n / 10, "trainer.max_epochs": n}) for n in (3, 4)]
    assert labels(compared(*runs)) == ["max_epochs 3", "max_epochs 4"]


def test_a_preset_is_named_and_not_all_that_it_sets() -> None:
    runs = [
        run(overrides=(f"model=bert_{name}",), **{"model.hidden_size": size, "model.num_hidden_layers": size // 64})
        for name, size in (("tiny", 128), ("mini", 256))
    ]
    found = compared(*runs)
    assert sorted(labels(found)) == ["bert_mini", "bert_tiny"]
    assert found.differs == ("model.hidden_size", "model.num_hidden_layers")


def test_keys_that_end_alike_are_named_in_full() -> None:
    runs = [run(**{"data.max_length": a, "tokenizer.max_length": b}) for a, b in ((1, 1), (1, 2), (2, 1))]
    assert labels(compared(*runs))[0] == "data.max_length 1, tokenizer.max_length 1"


def test_of_paths_the_part_that_differs_is_named() -> None:
    found = compared(*(run(**{"model.checkpoint": f"/models/{name}/final"}) for name in ("a", "b")))
    assert labels(found) == ["checkpoint a/final", "checkpoint b/final"]


def test_close_numbers_have_different_names() -> None:
    assert labels(compared(*(run(**{"optimizer.lr": lr}) for lr in (0.12345678, 0.12345679)))) == ["lr 0.12345678", "lr 0.12345679"]


def test_a_setting_that_only_one_mode_has_differs_only_where_its_rows_do() -> None:
    found = compared(run("features"), *(run("last_layers", **{"finetune.blocks": blocks}) for blocks in (1, 2)))
    assert "finetune.blocks" in found.differs
    assert "finetune.states" not in found.differs
    assert found.same["finetune.states"] == "last"


def test_what_is_the_same_in_all_rows_is_told_once() -> None:
    found = compared(run("features"), run("full"))
    assert (found.same["data.kind"], found.same["seed"]) == ("text", 0)
    assert found.same.keys() & set(found.differs) == set()
    assert "seed" not in compared(run(), run(seed=1)).same


# --- order and marks ----------------------------------------------------------------------------------------------


def test_rows_stand_by_trained_parameters_those_that_are_not_finite_after_them_and_those_without_a_result_last() -> None:
    """I07."""
    runs = [
        run("full"),
        run("features", value=NAN),
        run("lora", status="failed", validation={}),
        run("last_layers", **{"finetune.blocks": 10}),
        run("last_layers"),
        run("layers", value=INF),
    ]
    assert labels(compared(*runs)) == ["last 2 blocks", "last 10 blocks", "full", "features", "layers last:2", "lora"]


def test_the_best_on_validation_is_chosen_whatever_the_test_says() -> None:
    found = compared(run("features", value=0.9, test=0.6), run("full", value=0.8, test=0.9))
    assert [one.label for one in found.rows if one.chosen] == ["features"]


def test_the_lowest_is_chosen_where_less_is_better() -> None:
    found = compared(run("features", value=0.9), run("full", value=0.8), metric="loss")
    assert (found.metric, found.higher) == ("loss", False)
    assert [one.label for one in found.rows if one.chosen] == ["features"]


def test_of_equals_the_one_that_trains_less_is_chosen() -> None:
    assert row(compared(run("full"), run("last_layers")), "last 2 blocks").chosen


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_is_never_chosen_and_never_the_reference(value: float) -> None:
    found = compared(run("features", value=0.5), run("last_layers", value=0.6), run("full", value=value))
    assert [(one.chosen, one.reference) for one in found.rows] == [(False, False), (True, True), (False, False)]
    assert any("not a finite number" in note and "full" in note for note in found.notes)


def test_where_no_number_is_finite_nothing_is_chosen_and_nothing_compared() -> None:
    found = compared(run("features", value=NAN), run("full", value=INF))
    assert [(one.chosen, one.reference, one.difference) for one in found.rows] == [(False, False, None)] * 2


def test_rows_are_compared_with_the_one_that_trains_the_most_of_those_that_finished() -> None:
    runs = [run("features", value=0.9), run("last_layers", value=0.8), run("full", value=0.7, status="failed")]
    assert row(compared(*runs), "last 2 blocks").reference
    assert row(compared(*runs[:2], run("full", value=0.7)), "full").reference


def test_of_rows_that_train_equally_much_the_best_on_validation_is_the_reference() -> None:
    found = compared(*(run(value=value, **{"optimizer.lr": lr}) for value, lr in ((0.7, 1e-4), (0.9, 1e-3), (0.8, 1e-2))))
    assert row(found, "lr 0.001").reference


@pytest.mark.parametrize("named", ["features", "Features", "features-0"])
def test_another_reference_can_be_named(named: str) -> None:
    found = compared(run("features"), run("full"), reference=named)
    assert row(found, "features").reference
    assert row(found, "features").difference is None
    assert row(found, "full").difference is not None


@pytest.mark.parametrize(("named", "says"), [("featurs", "features"), ("lora", "no result")])
def test_a_reference_that_is_none_is_an_error_that_names_those_there_are(named: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(run("features"), run("full"), run("lora", status="failed", validation={}), reference=named)
    assert says in caught.value.screen()


def test_a_row_by_itself_is_neither_chosen_nor_compared() -> None:
    (found,) = compared(run(), run(seed=1)).rows
    assert (found.chosen, found.reference, found.front, found.difference) == (False, False, frozenset(), None)


def test_fronts_are_of_the_split_on_which_rows_are_compared() -> None:
    found = compared(run("features", value=0.5, test=0.8), run("last_layers", value=0.7, test=0.75), run("full", value=0.9, test=0.9))
    assert [one.label for one in found.rows if "parameters" in one.front] == ["features", "full"]


def test_each_cost_has_a_front_of_its_own() -> None:
    runs = [run("features", value=0.5, wall_seconds=9.0), run("last_layers", value=0.7, wall_seconds=NAN), run("full", value=0.9, wall_seconds=5.0)]
    found = compared(*runs)
    assert [set(one.front) for one in found.rows] == [{"parameters", "memory"}, {"parameters", "memory"}, {"parameters", "seconds", "memory"}]


def answered(tmp_path: Path, kind: str, seed: int, share: float, **changed: Any) -> Run:
    """A run with predictions of 100 test examples."""
    right = (np.random.default_rng([seed, len(kind)]).random(100) < share).astype(int)
    path = tmp_path / f"{kind}-{seed}-{share}.jsonl"
    path.write_text("".join(json.dumps({"split": "test", "sample": i, "target": 1, "predicted": int(p)}) + "\n" for i, p in enumerate(right)))
    return run(kind, seed, share, float(right.mean()), predictions=path, **changed)


def test_rows_are_compared_example_by_example_on_the_test_split(tmp_path: Path) -> None:
    found = compared(
        *(answered(tmp_path, kind, seed, share) for kind, share in (("features", 0.5), ("last_layers", 0.85), ("full", 0.85)) for seed in (0, 1, 2))
    )
    far, near = row(found, "features").difference, row(found, "last 2 blocks").difference
    assert found.compared_on == "test"
    assert far is not None
    assert near is not None
    assert (far.noise, near.noise) == (False, True)
    assert "bootstrap over 100 examples" in far.how


# --- which metric, which split, what is compared at all -----------------------------------------------------------


def test_where_some_runs_have_no_test_rows_are_compared_on_validation_and_that_is_said() -> None:
    found = compared(run("features", test=0.7), run("full"))
    assert found.compared_on == "validation"
    assert any("1 of 2 runs" in note for note in found.notes)


@pytest.mark.parametrize(
    ("runs", "options", "says"),
    [
        ([run(), run("features", metric="loss", higher=False)], {}, "metric=accuracy"),
        ([run()], {"metric": "acuracy"}, "accuracy"),
        ([run(), run("features", validation={"loss": 1.0})], {"metric": "accuracy"}, "not every run has it"),
        ([run(), run("features", verb="pretrain")], {}, "of finetune and of pretrain"),
    ],
)
def test_runs_that_cannot_be_compared_are_an_error_with_a_way_out(runs: list[Run], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(*runs, **options)
    assert says in caught.value.screen()


def test_which_way_another_metric_gets_better_is_known_from_the_objective() -> None:
    found = compared(run(**{"objective.kind": "classification"}), metric="loss")
    assert found.higher is False
    other = run("features", validation={"accuracy": 0.5, "macro_f1": 0.4}, **{"objective.kind": "classification"})
    assert compared(other, metric="macro_f1").higher is True


def test_of_runs_of_which_none_finished_there_is_a_study_all_the_same() -> None:
    found = compared(run("features", status="failed", validation={}, reason="why"), run("full", status="running", validation={}))
    assert [(one.validation, one.test, one.chosen) for one in found.rows] == [(None, None, False)] * 2
    assert found.metric == "accuracy"
    assert "why" in " ".join(found.notes)


def test_no_run_at_all_is_an_empty_study() -> None:
    assert compared().rows == ()


# --- baselines ----------------------------------------------------------------------------------------------------

KNOWN = {"majority_accuracy": 0.5, "bag_of_words_accuracy": 0.7, "majority_macro_f1": 0.3, "bag_of_words_macro_f1": 0.6}


@pytest.mark.parametrize(
    ("metric", "references", "baselines"),
    [
        ("accuracy", KNOWN, {"majority": 0.5, "bag of words": 0.7}),
        ("macro_f1", KNOWN, {"majority": 0.3, "bag of words": 0.6}),
        ("loss", {"unigram_entropy": 6.0, **KNOWN}, {"unigram entropy": 6.0}),
        ("rmse", {"mean_rmse": 1.0, "bag_of_words_rmse": 0.9, "bag_of_words_pearson": 0.1}, {"mean": 1.0, "bag of words": 0.9}),
        ("sentence_order_accuracy", {"sentence_order_majority_accuracy": 0.5, "masked_lm_unigram_entropy": 6.0}, {"majority": 0.5}),
        ("masked_lm_loss", {"sentence_order_majority_accuracy": 0.5, "masked_lm_unigram_entropy": 6.0}, {"unigram entropy": 6.0}),
        ("perplexity", {"unigram_entropy": 6.0}, {}),
    ],
)
def test_baselines_are_values_of_the_metric_and_of_nothing_else(metric: str, references: Mapping[str, float], baselines: Mapping[str, float]) -> None:
    assert compared(run(references=references, metric=metric, validation={metric: 0.5})).baselines == baselines


def test_baselines_that_differ_between_runs_are_not_shown_and_that_is_said() -> None:
    found = compared(run(references={"majority_accuracy": 0.5}), run("features", references={"majority_accuracy": 0.6}))
    assert found.baselines == {}
    assert any("majority" in note for note in found.notes)


def test_that_baselines_are_of_the_validation_split_is_said_where_rows_are_compared_on_test() -> None:
    assert any("measured on the validation split" in note for note in compared(run(test=0.8, references=KNOWN)).notes)
    assert not any("measured" in note for note in compared(run(references=KNOWN)).notes)


# --- notes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([run("features"), run("full"), run("full", 1, status="failed", reason="loss is nan")], "full: seed 1 failed (loss is nan)"),
        ([run("features"), run("full"), run("full", 1)], "features: no run with seed 1, which other rows have"),
        ([run("features"), run("full", machine={"device": "cuda"})], "different machines"),
        ([run("features"), run("full", versions={"torch": "2.12.0"})], "different versions of torch: 2.12.0, 2.13.0"),
        ([run("full", **{"data.train": "other.txt"}), run("full", **{"data.train": "this.txt"})], "differ in data.train"),
    ],
)
def test_what_a_reader_must_know_is_noted(runs: Sequence[Run], says: str) -> None:
    assert any(says in note for note in compared(*runs).notes), compared(*runs).notes


def test_a_study_in_order_has_no_notes() -> None:
    assert compared(*(run(kind, seed) for kind in ("features", "full") for seed in (0, 1))).notes == ()


def test_that_the_precision_differs_is_no_news_where_it_was_swept() -> None:
    runs = [run(precision=name, machine={"device": "cpu", "precision": name}) for name in ("fp32", "bf16")]
    assert compared(*runs).notes == ()
    assert compared(*(replace(one, settings={**run().settings, "optimizer.lr": n}) for n, one in enumerate(runs, 1))).notes != ()


@pytest.mark.parametrize("key", ["tokenizer.vocab_size", "objective.kind"])
def test_losses_that_are_not_the_same_quantity_are_noted(key: str) -> None:
    runs = [run(metric="loss", higher=False, verb="pretrain", **{key: value}) for value in ("a", "b")]
    assert any("not comparable" in note or "not the same quantity" in note for note in compared(*runs).notes)


def test_notes_of_the_sweep_come_first_and_none_comes_twice() -> None:
    assert compared(run(), notes=("first", "first")).notes == ("first",)


def test_one_machine_and_the_versions_that_all_share_are_named() -> None:
    found = compared(run("features"), run("full", versions={"torch": "2.13.0", "python": "3.11"}))
    assert found.machine == "cpu one, 1 process, 2 threads, fp32"
    assert found.versions["torch"] == "2.13.0"
