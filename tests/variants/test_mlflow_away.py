"""A server of MLflow that is away: asked again while it may come back, and no longer; a real one is in tests/faults."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException, RestException
from requests import ConnectionError as NoConnection

from factory.errors import FactoryError, NotFound, ServiceFault, StorageFault
from factory.settings import Settings
from factory.spec import Variant
from factory.variants import mlflow_away
from factory.variants.mlflow_away import insisting, send_once
from factory.variants.registry import Registry

SERVER = "http://127.0.0.1:5000"
REFUSED = MlflowException("API request to http://127.0.0.1:5000 failed with exception connection refused")
BUSY = RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "starting"})
WRONG = RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such name"})


class Asker:
    """Asks a server that fails as often as there are faults, and then answers."""

    def __init__(self, *faults: FactoryError, uri: str = SERVER, patience_s: float = 60.0) -> None:
        self.uri, self.patience_s, self.asked = uri, patience_s, 0
        self._faults = iter(faults)

    @insisting
    def ask(self, what: str, *, loud: bool = False) -> str:
        """Ask."""
        self.asked += 1
        for fault in self._faults:
            raise fault
        return what.upper() if loud else what


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_away, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(mlflow_away, "LONGEST_PAUSE_S", 0.002)


def fault(cause: Exception, kind: type[FactoryError] = ServiceFault) -> FactoryError:
    made = kind("MLflow could not answer.")
    made.__cause__ = cause
    return made


def test_what_may_come_back_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    asker = Asker(fault(REFUSED), fault(BUSY), fault(NoConnection("cut off"), StorageFault))
    assert asker.ask("there?", loud=True) == "THERE?"
    assert asker.asked == 4
    assert "asking again" in caplog.text


@pytest.mark.parametrize(
    "asker",
    [
        Asker(fault(WRONG)),
        Asker(fault(OSError(28, "no space left"), StorageFault)),
        Asker(NotFound("There is no such version.")),
        Asker(fault(REFUSED), uri="sqlite:////tmp/mlflow.db"),
        Asker(fault(REFUSED), patience_s=0.0),
    ],
    ids=["refused", "disk", "missing", "database", "impatient"],
)
def test_what_waiting_does_not_mend_is_told_at_once(asker: Asker) -> None:
    with pytest.raises(FactoryError):
        asker.ask("there?")
    assert asker.asked == 1


def test_patience_ends() -> None:
    def for_ever() -> Iterator[FactoryError]:
        while True:
            yield fault(REFUSED)

    asker = Asker(patience_s=0.05)
    asker._faults = for_ever()
    with pytest.raises(ServiceFault):
        asker.ask("there?")
    assert asker.asked > 1


def test_mlflows_own_client_sends_a_call_once_unless_the_operator_wants_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(mlflow_away.ONCE, raising=False)
    send_once()
    assert os.environ.pop(mlflow_away.ONCE) == "0"
    monkeypatch.setenv(mlflow_away.ONCE, "3")
    send_once()
    assert os.environ[mlflow_away.ONCE] == "3"


def test_what_the_ledger_tells_takes_no_import_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "model" / "data" / "bundle"
    bundle.mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)
    variant = Variant.model_construct(name="growth.churn", version=1, artifacts=str(tmp_path / "model"))
    assert Registry(Settings(home=tmp_path)).bundle_folder(variant) == bundle
