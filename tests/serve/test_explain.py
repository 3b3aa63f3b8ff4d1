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


def test_counterexamples_are_predicted_as_told(explaining):
    body = {"dataframe_records": [ROW], "counterexamples": 3, "fixed": ["age"]}
    answer = explaining.post(EXPLAIN, json=body)
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["explanations"]
    told = row["counterexamples"]
    invoked = "/variants/growth.churn/invocations"
    (own,) = explaining.post(invoked, json={"dataframe_records": [ROW]}).json()["predictions"]
    assert told["tried"] > 0
    assert told["found"] or "message" in told
    for example in told["found"]:
        assert "age" not in example["changes"]
        assert all(move["from"] != move["to"] for move in example["changes"].values())
        sent = ROW | {name: move["to"] for name, move in example["changes"].items()}
        (plain,) = explaining.post(invoked, json={"dataframe_records": [sent]}).json()["predictions"]
        assert example["prediction"] == plain, "to the last digit"
        assert plain["prediction"] != own["prediction"]
    assert [
        e["changes"] for e in explaining.post(EXPLAIN, json=body).json()["explanations"][0]["counterexamples"]["found"]
    ] == [e["changes"] for e in told["found"]]
    (there,) = explaining.post(EXPLAIN, json=body | {"to": own["prediction"]}).json()["explanations"]
    assert there["counterexamples"]["message"] == "The row itself is predicted as wanted."


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"counterexamples": 11}, "counterexamples"),
        ({"counterexamples": "many"}, "counterexamples"),
        ({"counterexamples": 1, "to": "maybe"}, "to"),
        ({"counterexamples": 1, "fixed": ["agee"]}, "fixed"),
        ({"counterexamples": 1, "fixed": ["age"] * 10_001}, "fixed"),
        ({"fixed": ["age"]}, "fixed"),
        ({"scale": "logit"}, "scale"),
        ({"counterexample": 1}, "counterexample"),
    ],
)
def test_wishes_beside_the_rows_are_checked(wish, field, explaining):
    error = error_of(explaining.post(EXPLAIN, json={"dataframe_records": [ROW]} | wish), 400)
    assert error["details"][0]["field"] == field


def test_wishes_are_none_of_the_rows_of_a_prediction(explaining):
    body = {"dataframe_records": [ROW], "counterexamples": 1}
    error_of(explaining.post("/variants/growth.churn/invocations", json=body), 400)


def test_the_answer_says_how_contributions_were_found(explaining):
    document = explaining.post(EXPLAIN, json={"dataframe_records": [ROW]}).json()
    assert (document["scale"], document["link"], document["baseline"]) == ("prediction", "identity", "interventional")
    assert set(document["method"]) == {"yes", "no"}
    assert sum(member["weight"] for member in document["members"]) == pytest.approx(1)


def test_a_margin_is_exact_where_there_is_one(make_caller, own_shelf, churn):
    member = replace(churn.members[0], weight=1.0)
    background = Background.of(customers(60, seed=1), churn.columns, seed=0)
    own_shelf.put("growth.churn", replace(churn, members=(member,), background=background))
    caller = make_caller(own_shelf)
    answer = caller.post(EXPLAIN, json={"dataframe_records": [ROW], "scale": "margin"})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    (row,) = document["explanations"]
    (output,) = document["base"]
    assert (document["walks"], document["link"], document["method"]) == (0, "logistic", {output: "linear"})
    margin = document["base"][output] + sum(added[output] for added in row["contributions"].values())
    (plain,) = caller.post("/variants/growth.churn/invocations", json={"dataframe_records": [ROW]}).json()[
        "predictions"
    ]
    assert 1 / (1 + np.exp(-margin)) == pytest.approx(plain[f"probability_{output}"], rel=1e-6)
