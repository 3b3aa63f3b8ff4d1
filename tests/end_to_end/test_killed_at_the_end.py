"""A driver killed between the last record and the request's end: the next one ends it, and makes nothing again."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.datasets import load_diabetes

import factory
from factory.ledger import Ledger
from factory.pipeline import produce
from factory.settings import Settings
from factory.spec import RequestState
from factory.variants.release import Release

pytestmark = pytest.mark.slow


def test_what_is_recorded_is_promoted_and_ends_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home", cpus=2)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Release, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            factory.fit(
                load_diabetes(as_frame=True).frame,
                "target",
                name="clinic.sugar",
                recipe="tabular-fast",
                trials=2,
                settings=settings,
            )
    with Ledger.open(settings.ledger) as ledger:
        (variant,) = ledger.variants("clinic.sugar")
        assert ledger.alias("clinic.sugar", "champion") is None
        outcome = produce(variant.request_id, ledger=ledger, settings=settings)
        assert outcome.state is RequestState.REGISTERED
        assert outcome.variants == (variant,)
        assert outcome.made == ()
        assert ledger.variants("clinic.sugar") == [variant]
        assert ledger.alias("clinic.sugar", "champion") == variant.version
