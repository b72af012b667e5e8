"""Sentences: nothing of a text is lost but white space, and full stops that end nothing end nothing."""

from __future__ import annotations

import pytest

from llmtrain.data.sentences import sentences
from llmtrain.data.synthetic import document
from llmtrain.seeding import generator

TEXTS = {
    "prose": 'One is here. Two is there!  Is three?\nYes. He said "Stop. Now." and went; then (it was late) he slept.',
    "lines": "A heading\n\nSome text. More text\n\n\n\n- a point\n- another\n",
    "windows": "One.\r\n\r\nTwo. Three.\r\n",
    "code": "x = [1, 2]\nif x[0] != 1.5: return '...'\n\nprint(f'{x}')",
    "marks": "[red]a[/red] b... And? So!? \t 中文。再来。 naïve 🙂.",
    "numbers": "It costs 3.14 dollars, v1.2.3 is out. See p. 5 of no. 7.",
    "short": "x\n\ny z\n\n1",
    "no end": "no full stop here",
    "synthetic": document(generator(0, "test sentences"), 60),
}


@pytest.mark.parametrize("language", ["en", "de", "ja", "xx"])
@pytest.mark.parametrize("name", TEXTS)
def test_sentences_are_the_text_but_for_white_space(name: str, language: str) -> None:
    found = sentences(TEXTS[name], language)
    assert "".join("".join(found).split()) == "".join(TEXTS[name].split())
    assert all(sentence and sentence == sentence.strip() for sentence in found)


def test_a_text_is_split_at_the_ends_of_its_sentences() -> None:
    assert sentences("One is here. Two is there! Is three? Yes.", "en") == ["One is here.", "Two is there!", "Is three?", "Yes."]


def test_a_made_up_text_is_split_at_each_full_stop() -> None:
    text = TEXTS["synthetic"]
    assert len(sentences(text, "en")) == text.count(".") > 3


@pytest.mark.parametrize("between", ["\n\n", "\n\n\n", "\r\n\r\n", "\n\n \n\n", "\n \n", "\n\t\n"])
def test_a_blank_line_ends_a_sentence(between: str) -> None:
    assert sentences(f"one line{between}another line", "en") == ["one line", "another line"]


def test_a_line_break_alone_ends_none() -> None:
    assert len(sentences("one line\nanother line", "en")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "We use e.g. this one here.",
        "Then Dr. Smith met Mrs. Jones.",
        "It costs 3.14 dollars.",
    ],
)
def test_an_abbreviation_ends_no_sentence(text: str) -> None:
    assert sentences(text, "en") == [text]
    assert sentences(f"{text} It is so.", "en") == [text, "It is so."]


@pytest.mark.parametrize("text", ["", " ", "\n\n", " \n\n\t\n\n "])
def test_nothing_has_no_sentence(text: str) -> None:
    assert sentences(text, "en") == []


@pytest.mark.parametrize("code", ["xx", "", "klingon", "en_US", "zz-ZZ"])
def test_an_unknown_language_is_split_as_english(code: str) -> None:
    text = "Then Dr. Smith came. We use e.g. this one. It is late."
    assert sentences(text, code) == sentences(text, "en") == ["Then Dr. Smith came.", "We use e.g. this one.", "It is late."]


def test_another_language_has_rules_of_its_own() -> None:
    text = "Herr Prof. Müller kam am 3. Mai. Das kostet ca. 5 Euro."
    assert sentences(text, "de") == ["Herr Prof. Müller kam am 3. Mai.", "Das kostet ca. 5 Euro."]
    assert sentences(text, "en") != sentences(text, "de")


def test_other_scripts_have_their_own_full_stops() -> None:
    assert sentences("これは文です。もう一つ。", "ja") == ["これは文です。", "もう一つ。"]
    assert sentences("यह वाक्य है। दूसरा।", "hi") == ["यह वाक्य है।", "दूसरा।"]
