"""Words: every message of the pages has a German one, and numbers and languages are told as readers expect."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.pofile import read_po
from jinja2 import nodes

from factory.spec import Recipe, VariantRequest
from serve.portal.pages import charts
from serve.portal.pages.forms import request_fields
from serve.portal.pages.kit import environment
from serve.portal.pages.words import UNKNOWN, Words, best_language, zone_of
from serve.portal.routes.recipes import request_schema

Message = tuple[str, ...]
"""A text, or the texts for one thing and for several."""


def strings(values: Iterable[object]) -> Message:
    return tuple(value for value in values if isinstance(value, str))


def messages_of_templates() -> Iterator[Message]:
    templates = environment("en")
    assert templates.loader is not None
    for name in templates.list_templates(["html"]):
        source, _, _ = templates.loader.get_source(templates, name)
        for _, _, message in templates.extract_translations(source):  # type: ignore[attr-defined]
            yield strings([message] if isinstance(message, str) else message or ())
        for call in templates.parse(source).find_all(nodes.Call):
            if isinstance(call.node, nodes.Getattr) and call.node.attr == "many":
                yield strings(argument.value for argument in call.args if isinstance(argument, nodes.Const))


def messages_of_code() -> Iterator[Message]:
    for file in sorted(Path(charts.__file__).parent.glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call):
                continue
            called = getattr(call.func, "attr", getattr(call.func, "id", ""))
            given = strings(argument.value for argument in call.args if isinstance(argument, ast.Constant))
            if called in ("_", "words"):
                yield given[:1]
            elif called == "many":
                yield given
    yield from ((part,) for part in charts._PARTS.values())


def messages_of_the_form() -> Iterator[Message]:
    recipe = Recipe(name="any", title="Any", families=("linear",))
    # A recipe names its own metrics in the help of that field; the text that it replaces stands for all of them.
    fields = request_fields(request_schema(recipe)) | request_fields(VariantRequest.model_json_schema())
    for field in fields.values():
        yield from ((text,) for text in (field.title, field.help) if text)


@cache
def said() -> frozenset[Message]:
    """Every message that the pages say."""
    found = {*messages_of_templates(), *messages_of_code(), *messages_of_the_form()}
    return frozenset(message for message in found if message)


@cache
def german() -> dict[Message, Message]:
    """The catalogue's messages with their translations."""
    place = resources.files("serve.portal") / "locale" / "de" / "LC_MESSAGES" / "portal.po"
    with place.open("rb") as source:
        catalogue = read_po(source, locale="de", abort_invalid=True)
    assert not catalogue.obsolete
    assert not [message.id for message in catalogue if message.id and message.fuzzy]
    parts = ((message.id, message.string) for message in catalogue if message.id)
    return {_several(english): _several(translated) for english, translated in parts}


def _several(text: str | Iterable[str]) -> Message:
    return (text,) if isinstance(text, str) else tuple(text)


def placeholders(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)


def test_messages_are_found_wherever_pages_say_some() -> None:
    expected = {("Your models",), ("{n} row", "{n} rows"), ("Random forest",), ("It is champion.",), ("Best so far",)}
    assert (
        expected | {("as {n} earlier request", "as {n} earlier requests"), ("Wall time",), ("Model families",)}
        <= said()
    )


def test_every_message_has_a_german_one() -> None:
    assert [message for message in sorted(said()) if not all(german().get(message, ("",)))] == []


def test_no_german_message_is_left_over() -> None:
    assert sorted(german().keys() - said()) == []


def test_translations_keep_the_placeholders_of_their_messages() -> None:
    for message, translated in german().items():
        assert [placeholders(text) for text in translated] == [placeholders(text) for text in message], message


def test_messages_come_in_the_readers_language_with_their_values() -> None:
    assert Words.of("de")("Version {n} is champion again.", n=3) == "Version 3 ist wieder Champion."
    assert Words.of("en")("Version {n} is champion again.", n=3) == "Version 3 is champion again."
    assert [Words.of("de").many("{n} row", "{n} rows", n) for n in (0, 1, 12345)] == [
        "0 Zeilen",
        "1 Zeile",
        "12.345 Zeilen",
    ]


def test_what_has_no_translation_stays_as_it_is() -> None:
    assert Words.of("de")("LightGBM") == "LightGBM"


@pytest.mark.parametrize(
    ("value", "digits", "english", "expected"),
    [
        (1234567.891, 2, "1,234,567.89", "1.234.567,89"),
        (0.12345, None, "0.123", "0,123"),
        (12.0, 3, "12", "12"),
        (1.7, 0, "2", "2"),
        (-1234, None, "-1,234", "-1.234"),
        (math.inf, 2, UNKNOWN, UNKNOWN),
        (math.nan, None, UNKNOWN, UNKNOWN),
    ],
)
def test_numbers_have_the_separators_of_the_language(
    value: float, digits: int | None, english: str, expected: str
) -> None:
    assert [Words.of(language).number(value, digits) for language in ("en", "de")] == [english, expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, UNKNOWN),
        (math.nan, UNKNOWN),
        (0.0, "0.0000"),
        (-0.0, "0.0000"),
        (0.87654321, "0.8765"),
        (0.99999, "1.0000"),
        (-0.034567, "-0.03457"),
        (12.3456, "12.35"),
        (-43123.456, "-43,123"),
    ],
)
def test_scores_have_the_digits_that_mean_something(value: float | None, expected: str) -> None:
    assert Words.of("en").score(value) == expected


def test_shares_are_told_in_percent() -> None:
    assert [Words.of("en").percent(share, 1) for share in (0.0, 0.123456, 1.0)] == ["0%", "12.3%", "100%"]
    assert Words.of("en").percent(0.126) == "13%"
    assert Words.of("de").percent(0.123456, 1).startswith("12,3")


@pytest.mark.parametrize(
    ("seconds", "english", "expected"),
    [
        (0, "0 sec", "0 Sek."),
        (0.52, "0.5 sec", "0,5 Sek."),
        (42, "42 sec", "42 Sek."),
        (59.7, "1 min", "1 Min."),
        (75, "1 min, 15 sec", "1 Min., 15 Sek."),
        (3601, "1 hr", "1 Std."),
        (3660, "1 hr, 1 min", "1 Std., 1 Min."),
        (90061, "1 day, 1 hr", "1 Tg., 1 Std."),
        (None, UNKNOWN, UNKNOWN),
        (math.nan, UNKNOWN, UNKNOWN),
        (math.inf, UNKNOWN, UNKNOWN),
    ],
)
def test_durations_are_told_in_their_largest_units(seconds: float | None, english: str, expected: str) -> None:
    assert [Words.of(language).seconds(seconds) for language in ("en", "de")] == [english, expected]


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1,2 MB"), (2.5e9, "2,5 GB"), (1.5e12, "1.500 GB")],
)
def test_sizes_are_told_in_the_largest_unit(n_bytes: float, expected: str) -> None:
    assert Words.of("de").size(n_bytes) == expected


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de", "de"),
        ("DE-at", "de"),
        ("fr-CH, de;q=0.9, en;q=0.8", "de"),
        ("en;q=0.5, de;q=0.4", "en"),
        ("de;q=0.5, en;q=0.5", "de"),
        ("de; q=0.1", "de"),
        ("", "en"),
        ("*", "en"),
        ("xx", "en"),
        ("xx, *;q=0.1", "en"),
        ("de;q=0", "en"),
        ("de;q=-1", "en"),
        ("de;q=", "en"),
        ("de;q=much", "en"),
        ("de;q=nan", "en"),
        ("en;q=0, de;q=0", "en"),
        (",;,=,;q=1,", "en"),
        pytest.param("\x00\ud800", "en", id="no text"),
        pytest.param("de," * 100_000, "de", id="very many"),
        pytest.param("xx," * 100_000 + "de", "en", id="very many others"),
        pytest.param("d" * 100_000, "en", id="a very long one"),
    ],
)
def test_any_header_leads_to_one_of_the_languages(accepted: str, language: str) -> None:
    assert best_language(accepted) == language
    assert Words.of(accepted).language == language


@pytest.mark.parametrize(
    ("name", "known"),
    [("Europe/Berlin", True), ("UTC", True), ("", False), ("Europe/Nowhere", False), ("../../etc/passwd", False)],
)
def test_a_zone_is_one_that_there_is(name: str, known: bool) -> None:
    zone = zone_of(name)
    assert (zone is not None and zone.key == name) == known


@pytest.mark.parametrize(("zone", "told"), [("Europe/Berlin", "05.07.2021, 01:30"), ("", "04.07.2021, 23:30 UTC")])
def test_a_moment_is_told_in_the_readers_zone(zone: str, told: str) -> None:
    assert Words.of("de").moment(datetime(2021, 7, 4, 23, 30, tzinfo=UTC), zone_of(zone)) == told
