"""Quotes: what a request would take, cost and come to, told before anything is started.

:func:`quote_document` is for the doors, which have a document that may be
wrong; :func:`quote` for whoever has checked it.
"""

from factory.operate.quotes.documents import (
    COVERAGE,
    ExpectedScore,
    Holding,
    Interval,
    Place,
    Problem,
    Quote,
    Rates,
    Usual,
)
from factory.operate.quotes.quoting import PlaceOf, quote, quote_document, usual

__all__ = [
    "COVERAGE",
    "ExpectedScore",
    "Holding",
    "Interval",
    "Place",
    "PlaceOf",
    "Problem",
    "Quote",
    "Rates",
    "Usual",
    "quote",
    "quote_document",
    "usual",
]
