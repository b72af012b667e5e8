"""Values: what a swept override stands for, in Hydra's own grammar."""

from __future__ import annotations

import time

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from llmtrain.config import multirun, parse
from llmtrain.errors import ConfigError
from llmtrain.sweep.values import refuse_too_many, size, values


def texts(typed: str) -> list[str]:
    (override,) = multirun([typed]).swept
    return [value.text for value in values(override)]


def labels(typed: str) -> list[str]:
    (override,) = multirun([typed]).swept
    return [value.shown for value in values(override)]


@pytest.mark.parametrize(
    "typed",
    [
        "seed=0,1,2",
        "seed=choice(3,1)",
        "seed=choice(7)",
        "seed=range(4)",
        "seed=range(1,7)",
        "seed=range(9,1,-3)",
        "optimizer.lr=range(0,1,0.25)",
        "optimizer.lr=1e-3,1e-05",
        "finetune.address='0,11','last:2'",
        "data.train='a b.txt',c.txt",
        "data.train=[a.txt,b.txt],[c.txt]",
        "objective.weights={class:1,lm:0},{class:1,lm:0.5}",
        "trainer.compile=true,false",
        "trainer.max_steps=null,5",
        "seed=sort(3,1,2)",
        "seed=sort(range(3),reverse=true)",
        "seed=int(1.0,2.0)",
    ],
)
def test_the_values_are_those_that_hydra_makes_of_it(typed: str) -> None:
    assert texts(typed) == list(OverridesParser.create().parse_override(typed).sweep_string_iterator())


@pytest.mark.parametrize(
    "typed", ["finetune.address='0,11','last:2'", "data.train='a \\' b.txt',c.txt", "data.train=[a.txt,b.txt],[c.txt]", "name_=a,true,null,1e-3", "a='1','x y'"]
)
def test_a_value_written_as_an_override_is_read_as_the_same_value(typed: str) -> None:
    (override,) = multirun([typed]).swept
    meant = [Override._convert_value(item) for item in override.value().list]  # type: ignore[union-attr]
    assert [parse([value.override])[0].value() for value in values(override)] == meant


def test_people_see_the_value_without_its_quotes() -> None:
    assert labels("finetune.address='0,11',last:2") == ["0,11", "last:2"]
    assert labels("a=true,null,1e-3,5") == ["true", "null", "0.001", "5"]


def test_a_range_of_fractions_has_the_numbers_that_were_typed() -> None:
    assert texts("optimizer.lr=range(0.1,0.5,0.1)") == ["0.1", "0.2", "0.3", "0.4"]


def test_a_shuffled_list_has_the_same_order_at_each_start_and_another_than_it_was_typed_in() -> None:
    first, again = texts("seed=shuffle(range(20))"), texts("seed=shuffle(range(20))")
    assert first == again != texts("seed=range(20)")
    assert sorted(first) == sorted(texts("seed=range(20)"))
    assert texts("seed=shuffle(3,1,2)") == texts("seed=shuffle(choice(3,1,2))")


@pytest.mark.parametrize("typed", ["seed=tag(log,choice(1,2))", "seed=tag(a,range(3))"])
def test_a_tag_is_refused_where_nothing_is_drawn(typed: str) -> None:
    with pytest.raises(ConfigError, match="a tag says how sweep=optuna draws"):
        texts(typed)


@pytest.mark.parametrize("typed", ["seed=range(3,3)", "seed=range(3,0)", "optimizer.lr=range(0,-1,0.5)"])
def test_a31_an_empty_list_is_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match="an empty list of values") as caught:
        texts(typed)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("typed", ["seed=range(1,5,0)", "optimizer.lr=range(0,1,0.0)", "optimizer.lr=range(0,inf)", "optimizer.lr=range(nan,1)"])
def test_a_range_without_an_end_is_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match="range"):
        texts(typed)


def test_a_range_is_counted_and_not_listed() -> None:
    started = time.monotonic()
    counts = [size(multirun([typed]).swept[0]) for typed in ("seed=range(1000000000000)", "a=range(0,1,1e-12)", f"a=range({10**30},{10**30 + 3})")]
    assert counts == [10**12, 10**12, 3]
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(("number", "words"), [(201, "201 members"), (10**6, "1,000,000 members"), (10**400, "more than 1,000,000,000,000,000 members")])
def test_a31_too_many_are_refused_with_the_count_and_the_limit(number: int, words: str) -> None:
    refuse_too_many(200, 200)
    with pytest.raises(ConfigError, match=words) as caught:
        refuse_too_many(number, 200)
    assert caught.value.allowed == "at most max_members=200"
