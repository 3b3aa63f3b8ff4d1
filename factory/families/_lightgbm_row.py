"""LightGBM's own call for one row, which keeps between calls what ``Booster.predict`` sets up for each.

``Booster.predict`` makes a predictor, parses its parameters and checks shapes
for every call, ten times what a row's way through a few hundred trees takes.
LightGBM's C API has a call for a single row whose setup is made once
(``LGBM_BoosterPredictForMatSingleRowFast``); the Python package does not carry
it, so that it is called in the library that the package has loaded.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

_PREDICT_NORMAL = 0
_FLOAT32 = 0


class SingleRow:
    """Answers single rows of one booster as ``Booster.predict`` does, to the last bit.

    It may be called in several threads: LightGBM holds a lock of its own around each row.

    Args:
        booster: A ``lightgbm.Booster``, which must not change while this is used.
        n_columns: That it was trained on.
        n_outputs: Numbers that it answers a row with.

    Raises:
        lightgbm.basic.LightGBMError: the booster has another number of columns.
    """

    def __init__(self, booster: Any, *, n_columns: int, n_outputs: int) -> None:
        from lightgbm.basic import _LIB, _safe_call

        self._booster = booster  # the C++ object lives as long as it does
        self._n_outputs = n_outputs
        self._answer_type = ctypes.c_double * n_outputs
        # Holding the interpreter's lock: letting it go for these microseconds would wait for it for milliseconds
        # wherever another thread computes.
        self._call = ctypes.PyDLL(_LIB._name)["LGBM_BoosterPredictForMatSingleRowFast"]
        self._call.argtypes = [ctypes.c_void_p] * 4
        self._check = _safe_call
        config = ctypes.c_void_p()
        _safe_call(
            _LIB.LGBM_BoosterPredictForMatSingleRowFastInit(
                booster._handle,
                ctypes.c_int(_PREDICT_NORMAL),
                ctypes.c_int(0),
                ctypes.c_int(booster.best_iteration),
                ctypes.c_int(_FLOAT32),
                ctypes.c_int32(n_columns),
                ctypes.c_char_p(b"num_threads=1"),
                ctypes.byref(config),
            )
        )
        self._config = config
        # How many numbers it wrote is known; every thread lets it be written to the same place.
        self._written = ctypes.c_int64()
        self._written_at = ctypes.addressof(self._written)
        weakref.finalize(self, _LIB.LGBM_FastConfigFree, config).atexit = False

    def answer(self, row: np.ndarray) -> np.ndarray:
        """Return the booster's answer.

        Args:
            row: float32 (1, n_columns), contiguous.

        Returns:
            Float64 (1,), or (1, n_outputs) where there are several.
        """
        out = self._answer_type()
        row_at = row.__array_interface__["data"][0]
        if self._call(self._config, row_at, self._written_at, ctypes.addressof(out)):
            self._check(-1)
        answer = np.array(out)
        return answer if self._n_outputs == 1 else answer[np.newaxis]
