"""The word of a text column whose presence says most about the target's class.

An outcome that somebody wrote into a column of notes ("refunded in March") is
known after the outcome only, like any other leak.  Only single words are
looked at: their counts take tenths of a second, while texts as a whole say
honestly much.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from factory.data.columns import as_text

_ROWS, _LONGEST = 5000, 500
"""Rows of a column that are looked at, evenly spaced, and characters of each."""
_TEXTS, _FEWEST = 20_000, 200
"""Texts of all columns together, so that a wide table takes no longer, and rows of a column that say something."""
_LEAST_ROWS = 20
"""Rows that have a word, and that lack it: a word of fewer separates nothing."""
_WORDS = 5000
"""Words that are looked at, the most frequent ones."""
_WORD = r"(?u)\b\w+\b"


class Telling(NamedTuple):
    """A word, and the correlation of its presence with a class."""

    word: str
    correlation: float


def telling_word(series: pd.Series, y: np.ndarray, *, n_classes: int, n_texts: int = 1) -> Telling | None:
    """Return the word with the largest absolute correlation; None where no word is in enough rows, or of numbers.

    None as well where there are so many columns of text that few rows of each could be looked at.

    Args:
        series: Texts, (n_rows,), None where missing.
        y: Class indices, (n_rows,).
        n_classes: 0 for regression, where a word says next to nothing.
        n_texts: Columns of text in the table.
    """
    most = min(_ROWS, _TEXTS // n_texts)
    if not n_classes or most < _FEWEST:
        return None
    from sklearn.feature_extraction.text import CountVectorizer

    rows = np.linspace(0, len(y) - 1, min(len(y), most)).astype(np.int64)
    texts = [(text or "")[:_LONGEST] for text in as_text(series.to_numpy()[rows]).tolist()]
    counter = CountVectorizer(binary=True, token_pattern=_WORD, max_features=_WORDS, dtype=np.float64)
    try:
        words = counter.fit_transform(texts)
    except ValueError:  # there is no word in any row
        return None
    n, n_with = len(rows), np.asarray(words.sum(axis=0)).ravel()
    enough = np.minimum(n_with, n - n_with) >= _LEAST_ROWS
    if not enough.any():
        return None
    classes = np.eye(n_classes)[y[rows]][:, (1 if n_classes == 2 else 0) :]
    n_class = classes.sum(axis=0)
    spread = np.sqrt(np.outer(n_with * (n - n_with), n_class * (n - n_class)))
    found = np.divide(n * (words.T @ classes) - np.outer(n_with, n_class), spread, where=spread > 0, out=0 * spread)
    found[~enough] = 0
    word, label = np.unravel_index(int(np.abs(found).argmax()), found.shape)
    return Telling(str(counter.get_feature_names_out()[word]), float(found[word, label]))
