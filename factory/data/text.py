"""Free text as a few numbers: TF-IDF of words and character n-grams, reduced by a truncated SVD.

Latent semantic analysis (Deerwester et al. 1990) with the randomized range
finder of Halko, Martinsson and Tropp (2011).  The vocabulary, its weights and
the projection are plain data; scikit-learn's vectorizers are rebuilt from
them and are never stored themselves.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.data.columns import as_text, factorize

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_COMPONENTS = 32
_VOCABULARY = 4000
"""Terms kept for words and for character n-grams, each; bounds the projection to 1 MB."""
_FIT_ROWS = 10_000
"""Rows that vocabulary and projection are learned from; more change them little and cost seconds."""
_LONGEST = 2000
"""Characters of a text that are read."""
_MOST_READ = {"word": 24_000_000, "char_wb": 6_000_000}
"""Characters of all texts that are read, for words and for n-grams: 6 s each on one core (3.8 and 0.9 million a second,
measured). Where there are more, the beginnings are read."""
_LEAST_READ = 40
"""Characters of a text below which its beginning says too little: n-grams are then left out."""
_BATCH = 10_000
"""Texts that are counted at a time: their n-grams take 30 MB where a text has 15 words (measured), and more of long
ones."""
_STATISTICS = ("length", "words", "digits", "capitals")


class TextEncoder:
    """Turns texts into float32 columns; fitted on training rows.

    Attributes:
        names: Names of the columns it makes, (n_columns,).
    """

    def __init__(self, vocabularies: Mapping[str, list[str]], arrays: Mapping[str, np.ndarray]) -> None:
        self._vocabularies = {kind: list(terms) for kind, terms in vocabularies.items()}
        self._arrays = dict(arrays)
        self._read = {kind: int(self._arrays.get(f"read_{kind}", _LONGEST)) for kind in self._vocabularies}
        self._vectorizers = [_vectorizer(kind, terms) for kind, terms in self._vocabularies.items()]
        self._idf = np.concatenate([self._arrays[f"idf_{kind}"] for kind in self._vocabularies])
        n = self._arrays["projection"].shape[1]
        self.names: tuple[str, ...] = (*(f"topic{i + 1}" for i in range(n)), *_STATISTICS)

    @classmethod
    def fit(cls, values: np.ndarray, *, seed: int) -> TextEncoder | None:
        """Learn from texts (n_rows,), or return None where they hold not a single repeated term."""
        texts = [(t or "")[:_LONGEST] for t in as_text(values).tolist()]
        read = {kind: _read_of(texts, most) for kind, most in _MOST_READ.items()}
        rng = np.random.default_rng(seed)
        if len(texts) > _FIT_ROWS:
            texts = [texts[i] for i in np.sort(rng.choice(len(texts), _FIT_ROWS, replace=False))]
        vocabularies: dict[str, list[str]] = {}
        arrays: dict[str, np.ndarray] = {}
        counts: list[csr_matrix] = []
        for kind in ("word", "char_wb"):
            if kind == "char_wb" and read[kind] < _LEAST_READ:
                continue
            vectorizer = _vectorizer(kind, None)
            try:
                counted = vectorizer.fit_transform([t[: read[kind]] for t in texts])
            except ValueError:  # scikit-learn's way to say that no term is left
                continue
            frequency = np.bincount(counted.indices, minlength=counted.shape[1])
            counts.append(counted)
            vocabularies[kind] = vectorizer.get_feature_names_out().tolist()
            arrays[f"read_{kind}"] = np.array(float(read[kind]))
            arrays[f"idf_{kind}"] = (np.log((1 + len(texts)) / (1 + frequency)) + 1).astype(np.float32)
        if not vocabularies:
            return None
        idf = np.concatenate([arrays[f"idf_{kind}"] for kind in vocabularies])
        arrays["projection"] = _components(_weigh(counts, idf), rng)
        return cls(vocabularies, arrays)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Return float32 (n_rows, n_columns); a missing text has NaN statistics and sits at the origin."""
        codes, distinct = factorize(values)
        texts = [*(t[:_LONGEST] for t in distinct), ""]
        topics = np.concatenate([self._topics(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)])
        statistics = np.array([*map(_statistics, texts[:-1]), (np.nan,) * len(_STATISTICS)])
        block = np.hstack([topics, statistics])
        return np.asarray(block[codes], dtype=np.float32)

    def _topics(self, texts: list[str]) -> np.ndarray:
        parts = [[t[:read] for t in texts] for read in self._read.values()]
        counts = [vectorizer.transform(part) for vectorizer, part in zip(self._vectorizers, parts, strict=True)]
        return np.asarray(_weigh(counts, self._idf) @ self._arrays["projection"])

    def document(self) -> dict[str, list[str]]:
        """Return the part that is stored as JSON."""
        return dict(self._vocabularies)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the part that is stored as arrays."""
        return dict(self._arrays)

    @classmethod
    def restore(cls, document: Mapping[str, list[str]], arrays: Mapping[str, np.ndarray]) -> TextEncoder:
        """Rebuild from what :meth:`document` and :meth:`arrays` returned."""
        return cls(document, arrays)


def _read_of(texts: list[str], most: int) -> int:
    """Return how many characters of each text are read, so that all together are no more than ``most``."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return max(bisect(range(_LONGEST + 1), most, key=lambda n: int(np.minimum(lengths, n).sum())) - 1, 1)


def _vectorizer(kind: str, vocabulary: list[str] | None) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    ranges = {"word": (1, 2), "char_wb": (3, 4)}
    fit_only = {} if vocabulary is not None else {"min_df": 2, "max_features": _VOCABULARY}
    return CountVectorizer(
        analyzer=kind, ngram_range=ranges[kind], vocabulary=vocabulary, lowercase=True, dtype=np.float32, **fit_only
    )


def _weigh(counts: list[csr_matrix], idf: np.ndarray) -> csr_matrix:
    """TF-IDF with sublinear term frequency, rows of length 1, (n_rows, n_terms)."""
    from scipy.sparse import csr_matrix, hstack

    stacked = csr_matrix(hstack(counts, format="csr", dtype=np.float32))
    stacked.data = (np.log(stacked.data) + 1) * idf[stacked.indices]
    n_terms = np.diff(stacked.indptr)
    rows = np.repeat(np.arange(len(n_terms)), n_terms)
    lengths = np.sqrt(np.bincount(rows, weights=stacked.data**2, minlength=len(n_terms)))
    stacked.data /= np.maximum(lengths, 1e-12)[rows].astype(np.float32)
    return stacked


def _components(weights: csr_matrix, rng: np.random.Generator) -> np.ndarray:
    """Return the leading right singular vectors as columns, float32 (n_terms, n_components), signs fixed."""
    n_components = min(_COMPONENTS, min(weights.shape) - 1)
    width = min(n_components + 10, min(weights.shape))
    basis = np.linalg.qr(weights @ rng.standard_normal((weights.shape[1], width), dtype=np.float32))[0]
    for _ in range(4):
        basis = np.linalg.qr(weights @ np.linalg.qr(weights.T @ basis)[0])[0]
    right = np.linalg.svd((weights.T @ basis).T, full_matrices=False)[2][: max(n_components, 1)]
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    return np.ascontiguousarray((right * signs[:, None]).T, dtype=np.float32)


def _statistics(text: str) -> tuple[float, float, float, float]:
    n = max(len(text), 1)
    digits = sum(c.isdigit() for c in text)
    capitals = sum(c.isupper() for c in text)
    return float(len(text)), float(len(text.split())), digits / n, capitals / n
