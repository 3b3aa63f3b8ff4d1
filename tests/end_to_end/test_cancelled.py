"""A request that is cancelled while `factory run` works on it: the search stops at a trial's end, nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.datasets import load_diabetes

from factory.errors import Conflict
from factory.ledger import Ledger
from factory.pipeline import Progress, produce
from factory.settings import Settings
from factory.spec import Actor, RequestState, VariantRequest

pytestmark = pytest.mark.slow


def test_what_nobody_else_can_stop_stops_by_itself(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", cpus=1)
    load_diabetes(as_frame=True).frame.to_parquet(tmp_path / "sugar.parquet")
    order = {
        "team": "clinic",
        "name": "sugar",
        "recipe": "tabular-fast",
        "dataset": {"path": str(tmp_path / "sugar.parquet"), "target": "target"},
        "families": ["linear", "lightgbm"],
        "budget": {"time_s": 120, "trials": 1000},
    }
    with Ledger.open(settings.ledger) as ledger:
        request_id = ledger.create_request(VariantRequest.model_validate(order), queued="It waits.").id

        def cancel_at_the_first_trial(step: Progress) -> None:
            if step.trial is not None and ledger.wish(request_id) is None:
                ledger.request_cancel(request_id, by=Actor(who="ann"), message="The data were wrong.")

        with pytest.raises(Conflict, match=f"{request_id} was cancelled by ann") as caught:
            produce(request_id, ledger=ledger, settings=settings, listen=cancel_at_the_first_trial)
        assert "retry" in caught.value.hint
        record = ledger.request(request_id)
        assert record.state is RequestState.CANCELLED
        assert record.driver is None
        assert 1 <= len(ledger.trials(request_id)) < 100
        assert ledger.variants() == []
        assert ledger.verify_events(request_id) is None
        with pytest.raises(Conflict, match="nothing left to do"):
            produce(request_id, ledger=ledger, settings=settings)
