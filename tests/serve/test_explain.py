"""Explanations over HTTP: they add up to what the same rows are predicted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from factory.variants.background import Background
from factory.variants.explain import MOST_ROWS
from tests.answers import error_of

from .calls import ROW
from .conftest import customers

EXPLAIN = "/variants/growth.churn/explain"


@pytest.fixture
def explaining(make_caller, own_shelf, churn):
    """A caller of a variant that keeps background rows."""
    frame = customers(60, seed=1)
    background = Background.of(frame, churn.columns, seed=0)
    own_shelf.put("growth.churn", replace(churn, background=background))
    return make_caller(own_shelf, rows=MOST_ROWS + 1, body_mb=1)


def test_base_and_contributions_add_up_to_the_prediction(explaining):
    rows = [ROW, ROW | {"city": None, "age": 70}]
    answer = explaining.post(EXPLAIN, json={"dataframe_records": rows})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    predicted = explaining.post("/variants/growth.churn/invocations", json={"dataframe_records": rows}).json()
    for row, plain in zip(document["explanations"], predicted["predictions"], strict=True):
        for output in ("yes", "no"):
            added = sum(column[output] for column in row["contributions"].values())
            assert document["base"][output] + added == pytest.approx(row["prediction"][output])
            assert row["prediction"][output] == pytest.approx(plain[f"probability_{output}"])
    assert set(document["explanations"][0]["contributions"]) == set(ROW)
    assert np.isfinite(document["explanations"][0]["errors"]["age"]["yes"])
    assert document["walks"] >= 2
    assert answer.headers["x-variant"] == "growth.churn/1"
    assert "explain;dur=" in answer.headers["server-timing"]


def test_a_version_can_be_named_and_any_payload_be_explained(explaining):
    csv = ",".join(ROW) + "\n" + ",".join(map(str, ROW.values())) + "\n"
    answer = explaining.post(
        "/variants/growth.churn/versions/1/explain", content=csv, headers={"content-type": "text/csv"}
    )
    assert len(answer.json()["explanations"]) == 1


def test_kserves_first_protocol_explains_the_same(explaining):
    answer = explaining.post("/v1/models/growth.churn:explain", content=json.dumps({"instances": [ROW]}))
    assert set(answer.json()["explanations"][0]["contributions"]) == set(ROW)


@pytest.mark.parametrize(("rows", "status"), [([], 400), ([ROW] * (MOST_ROWS + 1), 400), ([{"agee": 3}], 422)])
def test_rows_that_cannot_be_explained_are_refused(rows, status, explaining):
    error_of(
        explaining.post(
            EXPLAIN,
            json={"dataframe_split": {"columns": list(ROW), "data": [list(r.values()) for r in rows]}}
            if all(len(r) == len(ROW) for r in rows)
            else {"dataframe_records": rows},
        ),
        status,
    )


def test_a_variant_without_background_rows_says_so(caller):
    error = error_of(caller.post(EXPLAIN, json={"dataframe_records": [ROW]}), 409)
    assert "background" in error["message"]
