"""Which column of a file is the text, which the second text, the choices, the answer: named by the user, or inferred.

Names are compared without case and punctuation: `sentence_A` is sentencea. What is inferred is a name that the field
uses; where two of them could be meant, nobody guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmtrain.data import readers
from llmtrain.data.base import Target
from llmtrain.errors import DataError, require, shown

PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentencea", "sentenceb"), ("text1", "text2"), ("texta", "textb"), ("text", "second")),
    *(("first", "second"), ("question1", "question2"), ("question", "sentence"), ("question", "passage"), ("question", "context"), ("question", "answer")),
    *(("query", "document"), ("query", "passage"), ("claim", "evidence"), ("s1", "s2"), ("string1", "string2"), ("str1", "str2")),
)
TEXTS = (
    *("text", "sentence", "review", "content", "document", "body", "message", "comment", "tweet", "utterance", "question", "query", "prompt"),
    *("premise", "passage", "context", "article", "post", "abstract", "description", "sms", "email", "input", "reviewtext", "phrase"),
)
SHORT_TEXTS = ("title", "headline", "summary", "subject")  # the text only where there is no longer one
LABELS = (
    *("label", "labels", "class", "category", "sentiment", "target", "intent", "goldlabel", "topic", "emotion", "polarity", "tag", "y"),
    *("isduplicate", "entailment", "entailmentlabel", "entailmentjudgment", "coarselabel", "labeltext"),
)
SCORES = ("score", "similarity", "relatedness", "rating", "stars", "relatednessscore", "similarityscore", "value")
RATINGS = ("rating", "stars")  # are classes where there is no other label, and scores where scores are asked for
CHOICES = ("choices", "options", "endings", "alternatives", "answers")
NUMBERED = re.compile(r"(choice|option|ending|alternative|answer|solution|sol)(\d+|[a-e])")
RIGHT = ("label", "answer", "correct", "gold", "target", "correctanswer", "correctchoice", "answerindex", "answerkey", "mostplausiblealternative")
# Of the answers that each target may have, in tiers: a later one counts where the ones before gave none.
ANSWERS: Mapping[Target, tuple[tuple[str, ...], ...]] = {
    Target.label: (LABELS, RATINGS),
    Target.score: (SCORES, ("label", "labels", "target", "y")),
    Target.choice: (RIGHT,),
}
OTHERS = frozenset({"", "id", "idx", "index", "guid", "uid", "qid", "pairid", "pid", "unnamed0", "split", "fold"})  # no text, no answer


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of labelled rows.

    Attributes:
        text: of the text.
        second: of the second text; None: rows are single texts.
        choices: one column of lists, or one for each choice; empty: rows have none.
        answer: of the class, the score, or the number of the right choice.
        inferred: the settings that nobody gave.
    """

    text: str
    second: str | None
    choices: tuple[str, ...]
    answer: str
    inferred: tuple[str, ...] = ()

    @property
    def wanted(self) -> dict[str, str]:
        """Every column, with the setting that names it."""
        named = {self.text: readers.TEXT_COLUMN, self.second: "second_column", self.answer: "label_column"} | dict.fromkeys(self.choices, "choice_columns")
        return {column: setting for column, setting in named.items() if column is not None}

    def said(self) -> str:
        """The columns for a summary, with those that were inferred."""
        parts = [f"text from {shown(self.text)}", *([f"second text from {shown(self.second)}"] if self.second else [])]
        parts += [f"choices from {', '.join(map(shown, self.choices))}"] if self.choices else []
        parts.append(f"answers from {shown(self.answer)}")
        return ", ".join(parts) + (" (inferred; data.text_column and data.label_column name others)" if self.inferred else "")


@dataclass(frozen=True, kw_only=True)
class Named:
    """What the user named; None where it is to be inferred. A text that is named alone has no second."""

    text: str | None = None
    second: str | None = None
    choices: tuple[str, ...] | None = None
    answer: str | None = None


def check_names(text: str | None, second: str | None, answer: str | None, choices: list[str] | None) -> None:
    """Raise SettingError unless these settings can name columns together."""
    named = {"text_column": text, "second_column": second, "label_column": answer}
    for name, value in named.items():
        require(value != "", name, value, "the name of a column, or null")
        require(value is None or list(named.values()).count(value) == 1, name, value, "a column that no other setting names")
    require(second is None or text is not None, "second_column", second, "null where text_column is null")
    require(choices is None or (bool(choices) and all(choices)), "choice_columns", choices, "names of columns, or null")


def find(where: str, found: Sequence[str], target: Target, named: Named) -> Columns:
    """The columns of a file that are meant.

    Args:
        where: the file, for messages.
        found: the names of its columns.

    Raises:
        DataError: listing the columns, where one that is named is not there, or none or several could be meant.
    """
    if named.answer is not None and named.answer not in found:
        raise readers.missing(where, named.answer, found, "label_column")
    taken = {named.text, named.second, *(named.choices or ())}
    answer = named.answer or _answer(where, found, target, taken)
    text, second, choices = unanswered(where, found, target, replace(named, answer=answer))
    unnamed = {"text_column": named.text is None, "label_column": named.answer is None, "choice_columns": bool(choices) and named.choices is None}
    return Columns(text=text, second=second, choices=choices, answer=answer, inferred=tuple(name for name, was in unnamed.items() if was))


def unanswered(where: str, found: Sequence[str], target: Target, named: Named) -> tuple[str, str | None, tuple[str, ...]]:
    """The columns of the text, of the second text and of the choices, in a file that needs no answers.

    Raises:
        DataError: as `find` does.
    """
    choices = () if target is not Target.choice else named.choices or _choices(where, found, named.answer or "")
    text, second = (named.text, named.second) if named.text else _texts(where, found, target, {named.answer, named.second, *choices}, named.second)
    assert text is not None
    for setting, names in (("text_column", (text,)), ("second_column", (second,)), ("choice_columns", choices)):
        for name in names:
            if name is not None and name not in found:
                raise readers.missing(where, name, found, setting)
    return text, second, tuple(choices)


def plain(name: str) -> str:
    """A name without case and punctuation."""
    return re.sub(r"[\W_]", "", name.lower())


def _answer(where: str, found: Sequence[str], target: Target, taken: set[str | None]) -> str:
    free = [name for name in found if name not in taken]
    for tier in ANSWERS[target]:
        known = [name for name in free if plain(name) in tier]
        if own := [name for name in known if plain(name) == target.value or (target is Target.choice and plain(name) == "label")]:
            known = own  # `label` and `score` are the words of this project
        if len(known) == 1:
            return known[0]
        if known:
            raise _several(where, f"the {target.value} of a row", known, found, "label_column")
    raise _none(where, f"the {target.value} of a row", found, "label_column")


def _texts(where: str, found: Sequence[str], target: Target, taken: set[str | None], second: str | None) -> tuple[str, str | None]:
    """The column of the text, and of the second one where rows are pairs."""
    answers = {name for tier in ANSWERS[target] for name in tier} | set(LABELS) | set(SCORES)
    free = {name: plain(name) for name in found if name not in taken}
    words = set(free.values())
    pairs = [pair for pair in PAIRS if second is None and target is not Target.choice and words.issuperset(pair)]
    known = [name for name, word in free.items() if word in TEXTS or any(word in pair for pair in pairs)]
    if len(pairs) == 1 and {free[name] for name in known} == set(pairs[0]) and len(known) == 2:
        first, other = sorted(known, key=lambda name: pairs[0].index(free[name]))
        return first, other
    if not pairs and (own := [name for name in known if free[name] == "text"]):
        known = own
    known = known or [name for name, word in free.items() if word in SHORT_TEXTS]
    known = known or [name for name, word in free.items() if word not in OTHERS and word not in answers]
    if len(known) == 1:
        return known[0], second
    raise (_several(where, "the text", known, found, "text_column") if known else _none(where, "the text", found, "text_column"))


def _choices(where: str, found: Sequence[str], answer: str) -> tuple[str, ...]:
    """One column of lists, or the columns that are numbered alike."""
    free = [name for name in found if name != answer]
    lists = [name for name in free if plain(name) in CHOICES]
    numbered: dict[str, list[str]] = {}
    for name in free:
        if match := NUMBERED.fullmatch(plain(name)):
            numbered.setdefault(match[1], []).append(name)
    several = [tuple(sorted(names, key=_number)) for names in numbered.values() if len(names) > 1]
    ways = [*((name,) for name in lists), *several]
    if len(ways) == 1:
        return ways[0]
    if ways:
        raise _several(where, "the choices", [name for way in ways for name in way], found, "choice_columns")
    raise _none(where, "the choices", found, "choice_columns")


def _number(name: str) -> tuple[int, str]:
    match = NUMBERED.fullmatch(plain(name))
    assert match is not None
    return (int(match[2]) if match[2].isdecimal() else 0, match[2])


def _several(where: str, what: str, known: Iterable[str], found: Iterable[str], setting: str) -> DataError:
    names = " or ".join(shown(name, 40) for name in known)
    return DataError(f"{where}: which column is {what}: {names}?", allowed=f"one of the columns there: {readers.listed(found)}", fix=readers.naming(setting))


def _none(where: str, what: str, found: Iterable[str], setting: str) -> DataError:
    what = f"{where}: no column has a name known for {what}"
    return DataError(what, allowed=f"one of the columns there: {readers.listed(found)}", fix=readers.naming(setting))
