"""Entities of a variant whose feature service has on-demand views: values of the row, policy, what was sent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from factory.data.online import OnlineReader
from factory.errors import InvalidData, InvalidRequest, SystemFault
from factory.settings import Settings
from factory.spec import OnlinePolicy
from serve.inputs import EntityRows
from serve.online import FeatureRead, FeatureReaders
from tests.data.on_demand_repository import DEFINITIONS, at, make_repository, write

BUNDLE = SimpleNamespace(columns=[SimpleNamespace(name=n) for n in ("level", "load", "said", "left", "amount", "town")])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_repository(tmp_path_factory.mktemp("served"))


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    read = OnlineReader.read
    monkeypatch.setattr(OnlineReader, "read", lambda self, rows: read(self, rows, now=at("12:00")))


def ask(readers: FeatureReaders, *rows: dict, last: bool = False, **policy: str) -> FeatureRead | None:
    variant = SimpleNamespace(name="t.v", version=1, feature_service="load_v1", online=OnlinePolicy(**policy))
    call = readers.last if last else readers.read
    return call(EntityRows(rows), variant=variant, bundle=BUNDLE)


def columns(read: FeatureRead | None) -> dict[str, list]:
    assert read is not None
    return {name: list(values) for name, values in read.columns.columns.items()}


def test_values_of_the_row_are_columns_and_inputs(settings: Settings) -> None:
    read = ask(FeatureReaders(settings), {"site": "a", "amount": 3.5, "town": "x"})
    got = columns(read)
    assert set(got) == {"level", "load", "said", "left", "amount", "town"}
    assert (got["said"], got["left"], got["amount"], got["town"]) == (["y4"], [1.0], [3.5], ["x"])
    with pytest.raises(InvalidRequest) as caught:
        ask(FeatureReaders(settings), {"site": "a", "town": "x"})
    assert [d.field for d in caught.value.details] == ["entities[0].amount"]


def test_a_stored_feature_that_was_sent_counts_for_what_is_computed(settings: Settings) -> None:
    readers, row = FeatureReaders(settings), {"site": "a", "amount": 4.5}
    got = columns(ask(readers, row | {"level": 2.0}, row))
    assert got["level"][0] == 2.0
    assert got["load"][0] == pytest.approx(2.0)
    assert got["load"][1] == pytest.approx(2.7, rel=1e-6)
    assert columns(ask(readers, row | {"load": 9.0}))["load"] == [9.0]
    with pytest.raises(InvalidData) as caught:
        ask(readers, row | {"level": "high"})
    assert [d.field for d in caught.value.details] == ["level"]


def test_what_the_recipe_refuses_is_refused_before_the_function_is_called(settings: Settings) -> None:
    readers, row = FeatureReaders(settings), {"site": "nowhere", "amount": 1.0}
    assert columns(ask(readers, row))["said"] == [None]
    with pytest.raises(InvalidData, match="missing: "):
        ask(readers, row, missing="refuse")


def test_the_last_features_are_computed_with_the_values_of_this_row(settings: Settings) -> None:
    readers = FeatureReaders(settings)
    ask(readers, {"site": "a", "amount": 4.5}, store_down="last")
    got = columns(ask(readers, {"site": "a", "amount": 9.0}, last=True, store_down="last"))
    assert got["load"] == [pytest.approx(2.7 * 2, rel=1e-6)]
    assert ask(readers, {"site": "c", "amount": 9.0}, last=True, store_down="last") is None


def test_a_function_that_fails_is_a_fault_that_names_its_view(tmp_path) -> None:
    settings = make_repository(tmp_path)
    readers = FeatureReaders(settings)
    write(settings, DEFINITIONS.replace("    said = [", '    assert "z" not in inputs["mode"], "no z"\n    said = ['))
    with pytest.raises(SystemFault) as caught:
        ask(readers, {"site": "c", "amount": 1.0})
    assert type(caught.value) is SystemFault
    assert "'told'" in caught.value.message
    write(settings, DEFINITIONS)
    readers.refresh()
    assert columns(ask(readers, {"site": "c", "amount": 1.0}))["said"] == ["z1"]
