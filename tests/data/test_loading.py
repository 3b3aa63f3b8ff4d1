from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.dataset import table_digest, write_table
from factory.data.feature_store import apply
from factory.data.loading import least_mb, load, rows_to_predict, store_upload
from factory.errors import InvalidData, InvalidRequest, NotFound, StorageFault
from factory.settings import Settings
from factory.spec import ColumnType, EntityDataset, FileDataset, UploadDataset


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_a_file_is_loaded_with_its_labels_as_written(mixed: pd.DataFrame, tmp_path: Path, settings: Settings) -> None:
    mixed["zip"] = [f"{i % 40:03d}" for i in range(len(mixed))]
    write_table(mixed, tmp_path / "t.parquet")
    mixed.to_csv(tmp_path / "t.csv", index=False)
    loaded = [
        load(FileDataset(path=str(tmp_path / name), target="bought", types={"zip": "categorical"}), settings=settings)
        for name in ("t.parquet", "t.csv")
    ]
    assert loaded[0].digest == loaded[1].digest
    assert loaded[1].frame["zip"].iloc[7] == "007"
    assert loaded[1].features is None


def test_the_row_limit_is_that_of_the_settings(mixed: pd.DataFrame, tmp_path: Path) -> None:
    write_table(mixed, tmp_path / "t.csv")
    reference = FileDataset(path=str(tmp_path / "t.csv"), target="bought")
    with pytest.raises(InvalidData, match="200 rows; at most 199"):
        load(reference, settings=Settings(home=tmp_path / "home", max_rows=199))


def test_what_a_table_takes_at_least_is_told_by_its_file(tmp_path: Path, settings: Settings) -> None:
    table = pd.DataFrame({"a": np.arange(50_000.0), "b": np.arange(50_000.0) / 7, "c": ["text"] * 50_000})
    table["y"] = table["a"] % 2
    for name, share in (("t.parquet", 1.0), ("t.arrow", 1.0), ("t.csv", 0.5), ("t.csv.gz", 0.5)):
        if name.endswith(".gz"):
            table.to_csv(tmp_path / name, index=False)
        else:
            write_table(table, tmp_path / name)
        reference = FileDataset(path=str(tmp_path / name), target="y")
        least = least_mb(reference, settings=settings)
        assert least == pytest.approx(share * 50_000 * (2 * 8 + 1) / 1e6, rel=0.2)
        assert least <= load(reference, settings=settings).memory_mb
    (tmp_path / "t.csv").write_bytes(b"")
    for path in (str(tmp_path / "t.csv"), str(tmp_path / "none.csv"), "memory://t.csv"):
        assert least_mb(FileDataset(path=path, target="y"), settings=settings) == 0


def test_an_upload_is_stored_once_and_loaded_by_its_digest(
    mixed: pd.DataFrame, tmp_path: Path, settings: Settings
) -> None:
    for name in ("t.csv", "t.parquet", "t.feather"):
        write_table(mixed, tmp_path / name)
    digests = {store_upload(tmp_path / name, settings) for name in ("t.csv", "t.parquet", "t.feather")}
    assert digests == {table_digest(mixed)}
    digest = digests.pop()
    assert [p.name for p in settings.uploads.iterdir()] == [f"{digest}.parquet"]
    dataset = load(UploadDataset(upload=digest, target="bought"), settings=settings)
    as_file = load(FileDataset(path=str(tmp_path / "t.csv"), target="bought"), settings=settings)
    assert dataset.digest == as_file.digest
    assert dataset.frame.equals(as_file.frame)


def test_an_upload_that_does_not_exist(settings: Settings) -> None:
    with pytest.raises(NotFound) as caught:
        load(UploadDataset(upload="0" * 64, target="y"), settings=settings)
    assert caught.value.details[0].field == "dataset.upload"


def test_a_bad_upload_leaves_nothing_behind(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(InvalidData, match="no rows"):
        store_upload(tmp_path / "t.csv", settings)
    assert not settings.uploads.exists()


def test_an_upload_folder_that_cannot_be_made(mixed: pd.DataFrame, tmp_path: Path) -> None:
    write_table(mixed, tmp_path / "t.csv")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFault, match="cannot be stored"):
        store_upload(tmp_path / "t.csv", Settings(home=tmp_path / "file"))


@pytest.mark.slow
def test_an_entity_table_is_joined(tmp_path: Path, settings: Settings) -> None:
    apply(settings)
    entities = settings.feature_store / "data" / "entities" / "above_median.parquet"
    raw = pd.read_parquet(entities)
    reference = EntityDataset(entities=str(entities), target="above_median_in_5_years", feature_service="country_v1")
    dataset = load(reference, settings=settings)
    assert len(dataset) == len(raw)
    assert set(dataset.frame) == {
        "continent",
        "gdp_per_capita",
        "population",
        "gdp_growth",
        "population_growth",
        "life_expectancy",
        "life_expectancy_change",
    }
    assert dataset.column("country").tolist() == raw["country"].tolist()
    assert dataset.column("event_timestamp").tolist() == raw["event_timestamp"].dt.tz_localize(None).tolist()
    assert dataset.features is not None
    assert dataset.features.service == "country_v1"
    assert dataset.features.missing["gdp_growth"] == dataset.frame["gdp_growth"].isna().sum() > 0

    typed = reference.model_copy(update={"types": {"country": ColumnType.CATEGORICAL}})
    assert load(typed, settings=settings).types["country"] is ColumnType.CATEGORICAL

    spread = raw["event_timestamp"] + pd.to_timedelta(raw.index % 20, unit="D")
    raw.assign(event_timestamp=spread.dt.strftime("%d/%m/%Y")).to_csv(tmp_path / "e.csv", index=False)
    from_csv = load(reference.model_copy(update={"entities": str(tmp_path / "e.csv")}), settings=settings)
    assert from_csv.column("country").tolist() == raw["country"].tolist()
    assert from_csv.column("event_timestamp").tolist() == spread.dt.tz_localize(None).tolist()

    digest = store_upload(entities, settings)
    sent = {"upload": digest, "target": reference.target, "feature_service": "country_v1"}
    pd.testing.assert_frame_equal(load(UploadDataset(**sent), settings=settings).frame, dataset.frame)
    with pytest.raises(InvalidData, match="moment"):
        load(UploadDataset(**sent, timestamp="moment"), settings=settings)

    with pytest.raises(InvalidRequest, match="country_v2"):
        load(reference.model_copy(update={"feature_service": "country_v2"}), settings=settings)


def test_rows_to_be_predicted_are_read_as_the_features_are(
    mixed: pd.DataFrame, tmp_path: Path, settings: Settings
) -> None:
    mixed["zip"] = [f"{i % 40:03d}" for i in range(len(mixed))]
    write_table(mixed, tmp_path / "train.parquet")
    mixed.drop(columns=["bought", "amount"]).assign(more=1).to_csv(tmp_path / "new.csv", index=False)
    reference = FileDataset(
        path=str(tmp_path / "train.parquet"),
        target="bought",
        types={"zip": "categorical"},
        scoring=str(tmp_path / "new.csv"),
    )
    dataset = load(reference, settings=settings)
    rows = rows_to_predict(reference, dataset, settings=settings)
    assert rows is not None
    assert list(rows.columns) == [c for c in dataset.frame.columns if c != "amount"]
    pd.testing.assert_frame_equal(rows, dataset.frame[rows.columns], check_dtype=True)
    plain = reference.model_copy(update={"scoring": None})
    assert rows_to_predict(plain, dataset, settings=settings) is None
