"""What the factory says, in the reader's language.

The factory's sentences are English, and go with requests and errors as they
are: scripts, logs and other doors read the same.  A sentence that is one of
those listed in ``serve/portal/pages/sentences.py``, or several in a row, is
told in the translation with its values put in; any other stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from string import Formatter

from serve.portal.pages.sentences import PHRASES, SENTENCES
from serve.portal.pages.words import LANGUAGES, Words

LONGEST = 2000
"""Characters of a text that is looked at; a longer one is no sentence of ours."""
MOST, _AT_ONCE = 30, 4
"""Sentences of a text that are looked at, and full stops that one may have within."""


def told(words: Words, text: str) -> str:
    """Return what the factory said, in the reader's language as far as it is known there.

    >>> told(Words.of("de"), "waiting for 2 CPUs: team risk holds 4 of 4 CPUs; about 7 minutes")
    'wartet auf 2 CPUs: Team risk hat 4 von 4 CPUs; etwa 7 Minuten'
    >>> told(Words.of("en"), "Reading."), told(Words.of("de"), "Nobody has written this.")
    ('Reading.', 'Nobody has written this.')
    """
    if words.language == LANGUAGES[0] or not text or len(text) > LONGEST:
        return text
    known = _one(words, text, _split(SENTENCES + PHRASES))
    return _in_a_row(words, text) if known is None else known


def _in_a_row(words: Words, text: str) -> str:
    """Return several sentences, each that is known in translation."""
    said: list[str] = []
    rest = text
    while rest and len(said) < MOST:
        ends = [*(found.end() for found in islice(_ENDS.finditer(rest), _AT_ONCE)), len(rest)]
        for end in ends:
            known = _one(words, rest[:end], _split(SENTENCES))
            if known is not None:
                break
        else:
            end, known = ends[0], rest[: ends[0]]
        said.append(known)
        rest = rest[end:].lstrip()
    return " ".join([*said, rest] if rest else said)


_ENDS = re.compile(r"[.?](?=\s)")


def _one(words: Words, text: str, templates: Sequence[Template]) -> str | None:
    """Return the translation of one sentence or phrase, its values told likewise; None where it is not known."""
    for template in templates:
        if (values := template.values_of(text)) is not None:
            return words(template.text).format(**{name: _value(words, value) for name, value in values.items()})
    return None


def _value(words: Words, text: str) -> str:
    """Return what stands for a placeholder: a number, phrases joined by ``and``, sentences, or a name, which stays."""
    if _NUMBER.fullmatch(text):
        return text.translate(_SEPARATORS)
    parts = [_one(words, part, _split(PHRASES)) for part in text.split(" and ")]
    if None not in parts:
        return f" {words('and')} ".join(part or "" for part in parts)
    whole = _one(words, text, _split(PHRASES))
    if whole is not None:
        return whole
    return told(words, text) if text.endswith(".") else text


_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?( ?(ms|MB|%))?")
_SEPARATORS = str.maketrans(",.", ".,")
"""Of numbers in English to those in German, the one other language so far."""


@dataclass(frozen=True)
class Template:
    """A sentence with placeholders: the texts between them, one more than there are placeholders."""

    text: str
    literals: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Template:
        """Return it of a text as ``str.format`` takes it."""
        parts = [(literal, name) for literal, name, _spec, _conversion in Formatter().parse(text)]
        literals = [literal for literal, _name in parts]
        names = tuple(name for _literal, name in parts if name is not None)
        return cls(text, tuple(literals if len(literals) > len(names) else [*literals, ""]), names)

    def values_of(self, text: str) -> dict[str, str] | None:
        """Return the values by which it says a text; None where it does not.

        Each ends at the first place where what follows it may begin, so that no text takes long.
        """
        first, *following = self.literals
        last = following[-1] if following else ""
        if not (text.startswith(first) and text.endswith(last)) or (not following and text != first):
            return None
        at, values = len(first), {}
        for name, literal in zip(self.names[:-1], following[:-1], strict=True):
            end = text.find(literal, at + 1)
            if end < 0:
                return None
            values[name] = text[at:end]
            at = end + len(literal)
        if self.names:
            end = len(text) - len(last)
            if end <= at:
                return None
            values[self.names[-1]] = text[at:end]
        return values


@cache
def _split(texts: tuple[str, ...]) -> tuple[Template, ...]:
    """Return templates, those that say most first."""
    templates = map(Template.of, texts)
    return tuple(sorted(templates, key=lambda one: (-sum(map(len, one.literals)), one.text)))
