"""What the factory says, told in the reader's language: known sentences are translated, all others stay."""

from __future__ import annotations

import ast
import time
from functools import cache
from pathlib import Path

import pytest

import factory
import serve
from serve.portal.pages.sentences import PHRASES, SENTENCES
from serve.portal.pages.telling import LONGEST, Template, told
from serve.portal.pages.words import Words

DE = Words.of("de")
OURS = [Path(package.__file__).parent for package in (factory, serve) if package.__file__]
COMPOSED = {
    "of all rows, and",
    *("makes room as running trials end", "make room as running trials end", "holds", "hold"),
    *("waiting for one to end: team", "is challenger now", "Searching the family", "Searching", "families on", "on"),
    *("Mend the named field and try again", "held-out rows were judged; at least", "resamples, by a normal tail"),
}
"""Parts that the code puts together of smaller ones."""


@cache
def written() -> str:
    """Every text that stands in the code, but in the list of sentences itself."""
    found = []
    for file in sorted(file for folder in OURS for file in folder.rglob("*.py") if file.name != "sentences.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\0".join(found)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_factory_still_says_it_so(sentence: str) -> None:
    """A sentence that is worded anew in the code has to be here too, or pages would fall back to English."""
    for literal in Template.of(sentence).literals:
        part = literal.strip(" '.,;:()[]")
        assert part in written() or part in COMPOSED, part


@pytest.mark.parametrize(
    ("english", "german"),
    [
        (
            "waiting for 2 CPUs and 1.5 GB of memory: teams growth and risk hold 4 of 4 CPUs; no estimate yet",
            "wartet auf 2 CPUs und 1,5 GB Speicher: die Teams growth und risk haben 4 von 4 CPUs; noch keine Schätzung",
        ),
        (
            "waiting for 1 May: team a has used its 1,000 trial-seconds of this month; about 3 days",
            "wartet auf den 1. Mai: Team a hat seine 1.000 Versuchssekunden dieses Monats genutzt; etwa 3 Tage",
        ),
        (
            "It searches until its time is over. Corrected by 3 earlier requests of recipe 'tabular-auto'.",
            "Er sucht, bis seine Zeit um ist. Berichtigt durch 3 frühere Aufträge mit dem Rezept „tabular-auto“.",
        ),
        ("There is no column 'a'. Did you mean 'b'?", "Es gibt keine Spalte „a“. Meinten Sie „b“?"),
        (
            "growth.churn/3: Passed. One row takes 1.9 ms; at most 20 ms are allowed. It is new. Passed.",
            "growth.churn/3: Bestanden. Eine Zeile braucht 1,9 ms; höchstens 20 ms sind erlaubt. It is new. Bestanden.",
        ),
        (
            "'dose' alone gives the target away (cross-validated ROC AUC 0.9991; the best other column reaches 0.7), "
            "as columns do that are known only after the outcome; it is left out. Name it in 'keep' if it is known "
            "when predicting.",
            "„dose“ allein verrät das Ziel (kreuzvalidiert ROC AUC 0.9991; die beste andere Spalte erreicht 0,7), "
            "wie Spalten es tun, die erst nach dem Ausgang bekannt sind; sie bleibt weg. Nennen Sie sie unter „keep“, "
            "wenn sie bei der Vorhersage bekannt ist.",
        ),
        (
            "'kind' is the target under another name (one value for each class of 'bought', in every row), which "
            "nobody knows when predicting; it is left out.",
            "„kind“ ist das Ziel unter anderem Namen (ein Wert für jede Klasse von „bought“, in jeder Zeile), das bei "
            "der Vorhersage niemand kennt; sie bleibt weg.",
        ),
        ("Nobody has listed this. Nor that.", "Nobody has listed this. Nor that."),
        ("", ""),
    ],
)
def test_sentences_are_told_in_german_with_their_values(english: str, german: str) -> None:
    assert told(DE, english) == german
    assert told(Words.of("en"), english) == english


@pytest.mark.parametrize("text", ["{0}", "{variant} is champion now.", "%s", "<b>x</b> is champion now."])
def test_names_are_put_in_as_they_are(text: str) -> None:
    assert text.removesuffix(" is champion now.") in told(DE, text)


def test_no_text_takes_long() -> None:
    began = time.perf_counter()
    for part in ("waiting for : holds of ; ", "was changed. ", ". ", "has made version champion of meanwhile: "):
        told(DE, (part * LONGEST)[:LONGEST])
        told(DE, (part * LONGEST)[: LONGEST + 1])
    assert time.perf_counter() - began < 2


def test_every_phrase_is_met_by_itself() -> None:
    for phrase in PHRASES:
        text = Template.of(phrase).text.replace("{", "").replace("}", "")
        assert told(DE, f"waiting for {text}: team a holds 1 of 2 CPUs; about a day").startswith("wartet auf ")
