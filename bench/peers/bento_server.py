"""The model behind BentoML: ``python -m bentoml serve bento_server:Served`` in this folder."""

from __future__ import annotations

import bentoml
from served_model import load


@bentoml.service(workers=1)
class Served:
    """One worker with the model."""

    def __init__(self) -> None:
        self._answer = load()

    @bentoml.api
    def predict(self, rows: list[list[float]]) -> list[float]:
        """Predict rows."""
        return [float(value) for value in self._answer(rows)]
