"""Sentences of a text, by sentencex (Wikimedia, rules for many languages, offline)."""

from __future__ import annotations

import re


def sentences(text: str, language: str) -> list[str]:
    """The sentences of a text in its order, without surrounding white space; a blank line always ends one.

    Args:
        language: ISO 639-1 code: en, de, fr, …; one that sentencex does not know is split as English.
    """
    import sentencex

    found = (sentence.strip() for paragraph in re.split(r"\n\s*\n", text) for sentence in sentencex.segment(language, paragraph))
    return [sentence for sentence in found if sentence]
