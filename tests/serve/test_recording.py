"""What is written down of predictions: what, how much, for how long, and what a full disk comes to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any, cast

import httpx
import numpy as np
import pytest

from factory.errors import StorageFault
from factory.ledger import ShadowCounts
from factory.settings import Settings
from factory.spec import DeploymentWish, Variant
from serve import predictions as predictions_module
from serve import recording, replica
from serve import shadows as shadows_module
from serve.loaded import Loaded
from serve.predictions import Prediction
from serve.recording import Answered, Recorder
from serve.shadows import Comparisons, Mirrors, compared
from serve.telemetry import MOST_VARIANTS, Telemetry
from serve.traffic import KEY_HEADER, Beside
from tests.answers import error_of

from .calls import CHURN, ROW
from .conftest import SETUP, Caller, MakePredictor, Shelf
from .recorded import recorder, writing, written


def answered(n_rows: int = 2, **changes: Any) -> Answered:
    made = {
        "call": "c-1", "key": "", "variant": "growth.churn", "version": 1, "as_": "champion", "ms": 0.5,
        "inputs": {"age": np.arange(n_rows, dtype=float), "city": np.array(["Bern", None] * n_rows, object)[:n_rows]},
        "outputs": {"prediction": np.zeros(n_rows)}, "moment": datetime.now(UTC),
    }  # fmt: skip
    return Answered(**(made | changes))


# --- through the predictor ------------------------------------------------------------


def test_rows_and_predictions_are_written_by_variant_and_day(own_shelf: Shelf, churn: Any, tmp_path: Path) -> None:
    own_shelf.put("growth.churn", churn)
    kept = recorder(tmp_path / "served")
    caller = writing(own_shelf, kept)
    rows = [ROW, ROW | {"age": 20, "city": None}]
    headers = {KEY_HEADER: "4711", "x-request-id": "call-7"}
    answer = caller.post(CHURN, json={"dataframe_records": rows}, headers=headers).json()["predictions"]
    caller.post("/variants/growth.churn/versions/1/invocations", json={"dataframe_records": [ROW]})
    kept.close()
    frame = written(tmp_path / "served")
    assert frame["as"].tolist() == ["champion", "champion", "named"]
    first = frame[frame["call"] == "call-7"]
    assert first["key"].tolist() == ["4711", "4711"]
    assert first["row"].tolist() == [0, 1]
    assert first["input.age"].tolist() == [41, 20]
    assert first["input.city"].tolist() == ["Bern", None]
    assert first["output.probability_yes"].tolist() == [one["probability_yes"] for one in answer]
    assert frame["version"].tolist() == [1, 1, 1]
    assert (frame["ms"] > 0).all()
    (day,) = (tmp_path / "served" / "predictions" / "variant=growth.churn").iterdir()
    assert day.name == f"date={datetime.now(UTC):%Y-%m-%d}"
    assert not list(day.glob(".*")), "nothing half-written stays"


def test_a_sample_of_the_calls_is_written(own_shelf: Shelf, churn: Any, tmp_path: Path) -> None:
    own_shelf.put("growth.churn", churn)
    for percent, low, high in ((0.0, 0, 0), (50.0, 20, 80)):
        kept = recorder(tmp_path / f"{percent}", percent=percent)
        caller = writing(own_shelf, kept)
        for age in range(100):
            caller.post(CHURN, json={"dataframe_records": [ROW | {"age": age}]})
        kept.close()
        assert low <= len(written(tmp_path / f"{percent}")) <= high


def test_what_is_refused_is_not_written(own_shelf: Shelf, churn: Any, tmp_path: Path) -> None:
    own_shelf.put("growth.churn", churn)
    kept = recorder(tmp_path)
    error_of(writing(own_shelf, kept).post(CHURN, json={"dataframe_records": [{"age": "old"}]}), 422)
    kept.close()
    assert written(tmp_path).empty


# --- shadow ---------------------------------------------------------------------------


def mirrored(
    shelf: Shelf, folder: Path | None, load: Any = None, *, n: int = 5, row: Mapping[str, object] = ROW
) -> tuple[list[httpx.Response], Caller]:
    """Call a variant that has a shadow, in one loop, and wait for the shadow; without a folder there is no log."""
    kept = None if folder is None else recorder(folder, percent=0)
    caller = writing(shelf, kept, load)

    async def calls() -> list[httpx.Response]:
        async with caller.client() as client:
            answers = []
            for age in range(n):
                answers.append(await client.post(CHURN, json={"dataframe_records": [{**row, "age": age}]}))
                await asyncio.gather(*caller.app.core._mirrored)
            return answers

    answers = asyncio.run(calls())
    if kept is not None:
        kept.close()
    return answers, caller


def with_shadow(shelf: Shelf, bundle: Any) -> None:
    shelf.put("growth.churn", bundle)
    shelf.put("growth.churn", bundle, champion=False)
    shelf.ledger.set_deployment("growth.churn", DeploymentWish.model_validate({"as": "shadow"}), version=2)


def shadows(outcome: str) -> bytes:
    labels = f'outcome="{outcome}",variant="growth.churn",version="2"'
    return f"factory_shadow_calls_total{{{labels}}} 5.0".encode()


def test_a_shadow_predicts_the_same_calls_for_the_log(own_shelf: Shelf, churn: Any, tmp_path: Path) -> None:
    with_shadow(own_shelf, churn)
    answers, caller = mirrored(own_shelf, tmp_path)
    assert {answer.headers["x-variant"] for answer in answers} == {"growth.churn/1"}
    frame = written(tmp_path)
    assert frame["as"].value_counts().to_dict() == {"champion": 5, "shadow": 5}
    assert not [name for name in frame if name.startswith("input.")], "at 0 % no inputs are stored"
    pairs = frame.pivot(index=["call", "row"], columns="as", values="output.probability_yes")
    assert len(pairs) == 5
    assert pairs["champion"].tolist() == pairs["shadow"].tolist(), "both are the same model here"
    assert (
        b'factory_shadow_calls_total{outcome="compared",replica="0",variant="growth.churn",version="2"} 5.0'
        in metrics(own_shelf, caller)
    )


def since(shelf: Shelf) -> datetime:
    (served,) = [one for one in shelf.ledger.deployment("growth.churn") if one.as_ == "shadow"]
    return served.updated


@pytest.mark.parametrize("log", [True, False], ids=["log", "no log"])
def test_a_shadows_answers_are_compared_and_told_to_the_ledger(
    log: bool, own_shelf: Shelf, churn: Any, tmp_path: Path
) -> None:
    with_shadow(own_shelf, churn)
    _, caller = mirrored(own_shelf, tmp_path if log else None)
    for _ in range(2):
        asyncio.run(caller.app.core.tell())
    found = own_shelf.ledger.shadow_counts("growth.churn", 2, since(own_shelf))
    assert found == {1: ShadowCounts(calls=5, labelled=5, agreed=5)}, "both are the same model; nothing is told twice"


def test_a_shadow_of_numbers_is_compared_by_how_far_they_lie_apart(
    own_shelf: Shelf, spend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_shadow(own_shelf, spend)

    def predicted(payload: Any, loaded: Loaded) -> Prediction:
        made = real(payload, loaded)
        return replace(made, raw=made.raw + 2.5) if loaded.variant.version == 2 else made

    real = predictions_module.predicted
    monkeypatch.setattr(predictions_module, "predicted", predicted)
    _, caller = mirrored(own_shelf, tmp_path, row={"age": 30, "income": 1_000.0})
    monkeypatch.setattr(own_shelf.ledger, "add_shadow", away)
    asyncio.run(caller.app.core.tell())
    assert [(pair[0].version, pair[1]) for pair in caller.app.core.comparisons.untold] == [(2, 1)]
    monkeypatch.undo()
    asyncio.run(caller.app.core.tell())
    (counts,) = own_shelf.ledger.shadow_counts("growth.churn", 2, since(own_shelf)).values()
    assert (counts.calls, counts.measured, counts.labelled) == (5, 5, 0)
    assert counts.difference == pytest.approx(5 * 2.5)


def away(*_: object) -> None:
    raise StorageFault("The ledger is away.", hint="Wait.")


def test_what_cannot_be_compared_is_only_counted(churn: Any, spend: Any) -> None:
    odds, numbers = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([1.0, np.nan, 3.0])
    assert compared((churn, odds), (spend, numbers)) == ShadowCounts(calls=1)
    others = np.array([[0.1, 0.9], [0.4, 0.6], [0.3, 0.7]])
    assert compared((churn, odds), (churn, others)) == ShadowCounts(calls=1, labelled=3, agreed=1)
    assert compared((spend, numbers), (spend, numbers + 1)) == ShadowCounts(calls=1, measured=2, difference=2.0)


def test_pairs_that_wait_for_the_ledger_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows_module, "MOST_PAIRS", 2)
    waiting = Comparisons(cast("Any", None), cast("Any", None))
    moment = datetime.now(UTC)
    for version in (2, 3, 2, 4):
        waiting.add(Beside("growth.churn", version, moment), 1, ShadowCounts(calls=1))
    assert [(pair[0].version, counts.calls) for pair, counts in waiting.untold.items()] == [(3, 1), (4, 1)]


def test_a_shadow_that_hangs_holds_up_no_other_one(own_shelf: Shelf, churn: Any) -> None:
    with_shadow(own_shelf, churn)
    own_shelf.put("growth.other", churn)
    own_shelf.put("growth.other", churn, champion=False)
    own_shelf.ledger.set_deployment("growth.other", DeploymentWish.model_validate({"as": "shadow"}), version=2)
    over = Event()

    def load(variant: Variant) -> Loaded:
        if (variant.name, variant.version) == ("growth.churn", 2):
            over.wait()
        return own_shelf.load(variant)

    caller = writing(own_shelf, None, load)

    async def calls() -> None:
        core, body = caller.app.core, {"json": {"dataframe_records": [ROW]}}
        async with caller.client() as client:
            for _ in range(shadows_module.MIRRORED_AT_ONCE + 2):
                await client.post(CHURN, **body)
            hanging = set(core._mirrored)
            assert len(hanging) == shadows_module.MIRRORED_AT_ONCE
            await client.post(CHURN.replace("churn", "other"), **body)
            (other,) = core._mirrored - hanging
            await other
            assert not any(task.done() for task in hanging)
            over.set()
            await asyncio.gather(*hanging)

    try:
        asyncio.run(calls())
    finally:
        over.set()
    told = metrics(own_shelf, caller).decode()
    for outcome, name, n in (("compared", "other", 1), ("dropped", "churn", 2), ("compared", "churn", 8)):
        labels = f'outcome="{outcome}",replica="0",variant="growth.{name}",version="2"'
        assert f"factory_shadow_calls_total{{{labels}}} {n}.0" in told


def test_a_shadow_that_has_not_answered_in_time_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(shadows_module, "clock", lambda: clock[0])
    mirrors = Mirrors(0.01)
    moment = datetime.now(UTC)
    slow, other = Beside("growth.churn", 2, moment), Beside("growth.other", 2, moment)

    async def scenario() -> None:
        place = mirrors.take(slow)
        assert place is not None
        with pytest.raises(TimeoutError):
            await mirrors.answer(place, asyncio.Event().wait())
        assert place.waiting == 0
        assert mirrors.take(slow) is None
        assert mirrors.take(other) is not None
        clock[0] += 0.01
        assert mirrors.take(slow) is place

    asyncio.run(scenario())


def test_a_shadows_fault_is_nobodys(own_shelf: Shelf, churn: Any, tmp_path: Path) -> None:
    with_shadow(own_shelf, churn)

    def load(variant: Variant) -> Loaded:
        if variant.version == 2:
            raise ValueError("broken")
        return own_shelf.load(variant)

    answers, caller = mirrored(own_shelf, tmp_path, load)
    assert {answer.status_code for answer in answers} == {200}
    assert written(tmp_path)["as"].tolist() == ["champion"] * 5
    assert (
        b'factory_shadow_calls_total{outcome="failed",replica="0",variant="growth.churn",version="2"} 5.0'
        in metrics(own_shelf, caller)
    )


# --- the recorder itself ----------------------------------------------------------------


def test_more_than_fits_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_ROWS", 10)
    monkeypatch.setattr(Recorder, "start", lambda _: None)
    kept = recorder(tmp_path)
    for _ in range(7):
        kept.put(answered(2))
    assert kept.n_dropped == 4
    kept.flush()
    assert len(written(tmp_path)) == 10
    kept.put(answered(2))
    kept.flush()
    assert len(written(tmp_path)) == 12, "there is room again"


def test_what_waits_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_BYTES", 25_000)
    monkeypatch.setattr(Recorder, "start", lambda _: None)
    kept = recorder(tmp_path)
    for _ in range(4):
        kept.put(answered(2, inputs={"text": np.array(["x" * 5_000] * 2, object)}))
    assert kept.n_dropped == 4
    kept.flush()
    kept.put(answered(2))
    kept.flush()
    assert len(written(tmp_path)) == 6


def test_a_column_that_comes_as_number_and_as_text_is_written_all_the_same(tmp_path: Path) -> None:
    kept = recorder(tmp_path)
    kept.put(answered(1, inputs={"age": np.array([1.0])}))
    kept.put(answered(1, inputs={"age": np.array(["1"], object)}))
    kept.close()
    assert len(written(tmp_path)) == 2


def test_what_is_old_is_forgotten_also_where_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    for age in (3, 8):
        day = tmp_path / "predictions" / "variant=growth.churn" / f"date={now - timedelta(days=age):%Y-%m-%d}"
        day.mkdir(parents=True)
        (day / "x.parquet").write_bytes(b"x")
    old = tmp_path / "predictions" / "variant=growth.churn" / f"date={now - timedelta(days=8):%Y-%m-%d}"
    looked, real = threading.Event(), Recorder._forget
    monkeypatch.setattr(Recorder, "_forget", lambda kept: (real(kept), looked.set()))
    monkeypatch.setattr(recording, "FLUSH_S", 0.01)
    kept = recorder(tmp_path, percent=0, days=7)
    kept.start()
    assert looked.wait(60)
    assert not old.exists()
    kept.close()
    assert [day.name for day in old.parent.iterdir()] == [f"date={now - timedelta(days=3):%Y-%m-%d}"]


def test_a_replica_removes_what_is_old_though_it_writes_nothing_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Recorder] = []
    monkeypatch.setattr(Recorder, "start", lambda kept: started.append(kept))
    settings = Settings(home=tmp_path, prediction_log_percent=0)
    predictor = replica.build(settings)
    assert started == [predictor.core.recorder]
    predictor.core.close()


# --- metrics ------------------------------------------------------------------------------


def metrics(shelf: Shelf, caller: Caller) -> bytes:
    secret = shelf.ledger.issue_token("operator", team=None, scopes=["read"], by=SETUP).secret
    return Caller(caller.app, secret).get("/metrics").content


def test_metrics_tell_calls_by_version_and_are_operators(
    own_shelf: Shelf, churn: Any, make_caller: MakePredictor
) -> None:
    own_shelf.put("growth.churn", churn)
    own_shelf.ledger.create_team("growth", by=SETUP)
    caller = make_caller(own_shelf)
    caller.post(CHURN, json={"dataframe_records": [ROW]})
    caller.post("/variants/growth.none/invocations", json={"dataframe_records": [ROW]})
    error_of(caller.get("/metrics"), 403)
    error_of(Caller(caller.app, None).get("/metrics"), 401)
    team = own_shelf.ledger.issue_token("t", team="growth", scopes=["read"], by=SETUP).secret
    error_of(Caller(caller.app, team).get("/metrics"), 403)
    operator = own_shelf.ledger.issue_token("o", team=None, scopes=["read"], by=SETUP).secret
    answer = Caller(caller.app, operator).get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    assert (
        'factory_predictor_calls_total{replica="0",route="invoke",status="200",variant="growth.churn",version="1"} 1.0'
        in text
    )
    assert 'factory_predictor_calls_total{replica="0",route="invoke",status="404",variant="",version=""} 1.0' in text
    assert 'factory_predictor_variants{replica="0"} 1.0' in text


def test_labels_are_bounded() -> None:
    telemetry = Telemetry()
    for n in range(MOST_VARIANTS + 50):
        telemetry.call("invoke", f"growth.v{n}/1", 200, 0.01)
    text = telemetry.text(bundles=0, bundles_mb=0, dropped=0, replica="0").decode()
    assert text.count("factory_predictor_calls_total{") == MOST_VARIANTS + 1
    assert 'variant="other",version="other"} 50.0' in text
