"""Settings: where they come from, where the state lies, and what a wrong one is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from factory.errors import InvalidRequest, StorageFault
from factory.settings import Settings, load_settings, shipped


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*Settings.model_fields, "feature_store"]:
        monkeypatch.delenv(f"FACTORY_{name.upper()}", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_all_state_lies_in_one_folder(tmp_path: Path) -> None:
    settings = load_settings()
    root = tmp_path / ".factory"
    assert settings.root == root
    assert settings.ledger == f"sqlite:///{root}/ledger.db"
    assert settings.tracking_uri == f"sqlite:///{root}/mlflow.db"
    below = [settings.artifacts, settings.uploads, settings.feature_store, settings.workspace("r-1")]
    assert all(path.is_relative_to(root) for path in below)
    assert len(set(below)) == len(below)
    assert not root.exists()


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("FACTORY_CPUS=3\nFACTORY_SERVE_PORT=8100\nOTHER=1\n")
    monkeypatch.setenv("FACTORY_CPUS", "5")
    settings = load_settings()
    assert (settings.cpus, settings.serve_port, settings.serve_replicas) == (5, 8100, 1)


def test_other_places_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_LEDGER_URL", "postgresql://db/ledger")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("FACTORY_HOME", "~/state")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FACTORY_RECIPES", str(tmp_path / "mine"))
    settings = load_settings()
    assert settings.ledger == "postgresql://db/ledger"
    assert settings.tracking_uri == "http://mlflow:5000"
    assert settings.root == tmp_path / "state"
    assert settings.recipes_folder == tmp_path / "mine"


def test_all_wrong_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_CPUS", "0")
    monkeypatch.setenv("FACTORY_SERVE_PORT", "http")
    monkeypatch.setenv("FACTORY_SERVE_DEADLINE_S", "-1")
    with pytest.raises(InvalidRequest) as refused:
        load_settings()
    fields = {detail.field: detail.message for detail in refused.value.details}
    assert set(fields) == {"FACTORY_CPUS", "FACTORY_SERVE_PORT", "FACTORY_SERVE_DEADLINE_S"}
    assert "greater than or equal to 1" in fields["FACTORY_CPUS"]
    assert "received '0'" in fields["FACTORY_CPUS"]
    assert all(f"{field}: {message}" in refused.value.message for field, message in fields.items())
    assert ".env" in refused.value.hint


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().cpus = 3  # type: ignore[misc]


def test_the_home_is_made_for_its_owner_only_and_left_without_a_trace(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "a" / "home")
    assert settings.prepare_home() == settings.prepare_home() == tmp_path / "a" / "home"
    assert stat.S_IMODE(settings.root.stat().st_mode) == 0o700
    assert list(settings.root.iterdir()) == []


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(StorageFault, match="home' cannot be written: File exists") as refused:
        Settings(home=tmp_path / "home").prepare_home()
    assert [detail.field for detail in refused.value.details] == ["FACTORY_HOME"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; tests/cli mounts a read-only home")
def test_a_home_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o500)
    with pytest.raises(StorageFault, match="Permission denied"):
        Settings(home=tmp_path / "home").prepare_home()


def test_what_is_shipped_is_found() -> None:
    assert (shipped("recipes") / "tabular-auto.yaml").is_file()
    assert (shipped("feature_repo") / "feature_store.yaml").is_file()
    assert Settings().recipes_folder == shipped("recipes").resolve()
