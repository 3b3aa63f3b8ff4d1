"""Predictions of many rows: the same numbers as online, part by part, resumed, and one clear error."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.data.tables import read_table
from factory.errors import Conflict, InvalidData, InvalidRequest
from factory.settings import Settings
from factory.spec import BatchWish
from factory.variants.bundle import Bundle
from factory.variants.registry import Registry
from serve import batch, batch_run, batch_source
from serve.batch import MANIFEST, main, predict
from serve.batch_source import Part, files_of, parts_of

from .conftest import SETUP, Shelf, customers


@pytest.fixture
def shop(own_shelf: Shelf, churn: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A champion in the ledger of the settings; its bundle is where the shelf has it."""
    own_shelf.put("growth.churn", churn)
    monkeypatch.setattr(Registry, "bundle_folder", lambda _, variant: own_shelf.path(variant.name, variant.version))
    monkeypatch.setattr(batch_source, "PART_ROWS", 500)
    monkeypatch.setattr(batch_source, "PART_BYTES", 20_000)
    monkeypatch.setattr(batch_source, "BATCH_ROWS", 300)
    return Settings(home=tmp_path / "home", ledger_url=own_shelf.ledger.url, cpus=2)


def rows(n_rows: int = 2_300, *, seed: int = 1) -> pd.DataFrame:
    frame = customers(n_rows, seed=seed).drop(columns=["churned", "spend"])
    frame["city"] = np.where(np.arange(n_rows) % 7 == 0, 'Bern "am\nFluss"', frame["city"])
    frame.insert(0, "id", np.arange(n_rows) + 1_000)
    return frame


def written(frame: pd.DataFrame, path: Path) -> Path:
    """Write rows in the format that a name says, in several row groups or record batches."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False, row_group_size=200)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pandas(frame, preserve_index=False)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=200)
    else:
        text = frame.to_csv(index=False).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def answers(out: Path) -> pd.DataFrame:
    names = [one["file"] for one in json.loads((out / MANIFEST).read_text())["files"]]
    return pd.concat([pd.read_parquet(out / name) for name in names], ignore_index=True)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.csv", "rows.csv.gz"])
def test_parts_hold_all_rows_once_and_in_their_order(name: str, shop: Settings, tmp_path: Path) -> None:
    path = written(rows(), tmp_path / name)
    parts = parts_of([path], unpacked=tmp_path / "unpacked")
    assert len(parts) > 3
    assert [part.number for part in parts] == list(range(len(parts)))
    tables = [table for part in parts for table in part.tables(None, ["city"])]
    assert max(table.num_rows for table in tables) <= 300
    got = pd.concat([table.to_pandas() for table in tables], ignore_index=True)
    whole = read_table(str(path), max_rows=10_000, text_columns=["city"])
    pd.testing.assert_frame_equal(got[["id", "age", "income", "city"]], whole[["id", "age", "income", "city"]])


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.csv", "rows.csv.gz"])
def test_the_numbers_are_those_of_the_bundle(name: str, shop: Settings, churn: Bundle, tmp_path: Path) -> None:
    path, out = written(rows(), tmp_path / name), tmp_path / "out"
    said = predict("growth.churn", str(path), out, keep=["id"], settings=shop)
    assert said.startswith(f"2,300 predictions of growth.churn/1 are in '{out}'")
    expected = churn.predict(churn.require(read_table(str(path), max_rows=10_000, text_columns=["city"])))
    got = answers(out)
    assert list(got.columns) == ["id", "prediction", "probability_no", "probability_yes", "version"]
    assert got["id"].tolist() == rows()["id"].tolist()
    assert set(got["version"]) == {1}
    pd.testing.assert_frame_equal(got[list(expected.columns)], expected, rtol=1e-12)
    manifest = json.loads((out / MANIFEST).read_text())
    assert (manifest["variant"], manifest["rows"], manifest["sources"][0]["path"]) == (
        "growth.churn/1",
        2_300,
        str(path),
    )


def test_a_run_that_was_ended_goes_on_with_the_parts_that_are_missing(
    shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = written(rows(), tmp_path / "rows.parquet"), tmp_path / "out"
    made: list[int] = []
    real = batch.predict_part

    def ending(part: Part, *rest: Any) -> Any:
        if part.number == 2:
            raise KeyboardInterrupt
        made.append(part.number)
        return real(part, *rest)

    monkeypatch.setattr(batch, "predict_part", ending)
    with pytest.raises(KeyboardInterrupt):
        predict("growth.churn", str(path), out, keep=[], settings=shop)
    assert not (out / MANIFEST).exists()
    (out / ".part-00002.parquet.77").write_bytes(b"half")
    monkeypatch.setattr(batch, "predict_part", lambda part, *rest: made.append(part.number) or real(part, *rest))
    said = predict("growth.churn", str(path), out, keep=[], settings=shop)
    assert made == [0, 1, 2, 3], "each part once"
    assert "1,200 of them earlier" in said
    whole = answers(out)
    assert len(whole) == 2_300
    again = predict("growth.churn", str(path), out, keep=[], settings=shop)
    assert again == f"2,300 predictions of growth.churn/1 are in '{out}', 2,300 of them earlier."
    assert made == [0, 1, 2, 3]


def test_a_part_that_a_crash_has_cut_off_is_made_again(shop: Settings, tmp_path: Path) -> None:
    path, out = written(rows(), tmp_path / "rows.parquet"), tmp_path / "out"
    predict("growth.churn", str(path), out, keep=["id"], settings=shop)
    whole = (out / "part-00001.parquet").read_bytes()
    for cut in (b"", whole[: len(whole) // 2]):
        (out / "part-00001.parquet").write_bytes(cut)
        predict("growth.churn", str(path), out, keep=["id"], settings=shop)
        assert answers(out)["id"].tolist() == rows()["id"].tolist()


def test_the_folder_is_one_table_for_others(shop: Settings, tmp_path: Path) -> None:
    path, out = written(rows(), tmp_path / "rows.csv.gz"), tmp_path / "out"
    predict("growth.churn", str(path), out, keep=["id"], settings=shop)
    assert len(pd.read_parquet(out)) == 2_300
    assert not (out / batch.UNPACKED).exists(), "what was unpacked is removed"
    (out / "part-00001.parquet").unlink()
    predict("growth.churn", str(path), out, keep=["id"], settings=shop)
    assert pd.read_parquet(out)["id"].tolist() == rows()["id"].tolist(), "and unpacked again for what is left"


def test_compressed_files_of_one_name_are_not_mixed_up(shop: Settings, tmp_path: Path) -> None:
    one, other = (rows(300, seed=1), rows(300, seed=1))
    other["id"] += 5_000
    for name, frame in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        packed = gzip.compress(frame.to_csv(index=False).encode(), compresslevel=0, mtime=0)
        (tmp_path / name / "rows.csv.gz").write_bytes(packed)
        os.utime(tmp_path / name / "rows.csv.gz", (1, 1))
    assert len({(tmp_path / name / "rows.csv.gz").stat().st_size for name in "ab"}) == 1
    predict("growth.churn", f"{tmp_path}/?/*.gz", tmp_path / "out", keep=["id"], settings=shop)
    assert answers(tmp_path / "out")["id"].astype(int).tolist() == [*one["id"], *other["id"]]


def test_a_folder_that_an_earlier_release_has_begun_is_gone_on_with(shop: Settings, tmp_path: Path) -> None:
    path, out = written(rows(), tmp_path / "rows.parquet"), tmp_path / "out"
    predict("growth.churn", str(path), out, keep=[], settings=shop)
    (out / batch.PLAN).rename(out / "plan.json")
    (out / MANIFEST).rename(out / "manifest.json")
    (out / "part-00002.parquet").unlink()
    assert "of them earlier" in predict("growth.churn", str(path), out, keep=[], settings=shop)
    assert sorted(one.name for one in out.iterdir() if one.suffix == ".json") == [MANIFEST, batch.PLAN]
    packed, begun = written(rows(), tmp_path / "rows.csv.gz"), tmp_path / "begun"
    predict("growth.churn", str(packed), begun, keep=[], settings=shop)
    (begun / batch.PLAN).rename(begun / "plan.json")
    with pytest.raises(Conflict, match="begun by an earlier release"):
        predict("growth.churn", str(packed), begun, keep=[], settings=shop)
    (out / batch.PLAN).write_text('{"variant": "growth')
    with pytest.raises(Conflict, match="cannot be read"):
        predict("growth.churn", str(path), out, keep=[], settings=shop)


def test_after_a_promotion_it_is_told_how_to_go_on(
    own_shelf: Shelf, churn: Bundle, shop: Settings, tmp_path: Path
) -> None:
    path, out = written(rows(), tmp_path / "rows.parquet"), tmp_path / "out"
    predict("growth.churn", str(path), out, keep=[], settings=shop)
    own_shelf.put("growth.churn", churn)
    with pytest.raises(Conflict, match=r"predictions by growth\.churn/1, and growth\.churn/2 was asked for") as refused:
        predict("growth.churn", str(path), out, keep=[], settings=shop)
    assert "Go on with 'growth.churn/1'" in refused.value.hint
    assert "2,300 of them earlier" in predict("growth.churn/1", str(path), out, keep=[], settings=shop)
    with pytest.raises(Conflict, match="other columns kept"):
        predict("growth.churn/1", str(path), out, keep=["id"], settings=shop)


def test_a_folder_with_something_else_is_left_alone(shop: Settings, tmp_path: Path) -> None:
    path, out = written(rows(), tmp_path / "rows.parquet"), tmp_path / "out"
    predict("growth.churn", str(path), out, keep=[], settings=shop)
    before = answers(out)
    written(rows(900, seed=2), path)
    with pytest.raises(Conflict, match="predictions of other rows"):
        predict("growth.churn", str(path), out, keep=[], settings=shop)
    pd.testing.assert_frame_equal(answers(out), before)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(Conflict, match="is not empty"):
        predict("growth.churn", str(path), other, keep=[], settings=shop)
    assert [one.name for one in other.iterdir()] == ["letter.txt"]


def test_rows_that_cannot_be_predicted_are_named_and_the_others_are_kept(shop: Settings, tmp_path: Path) -> None:
    frame = rows()
    frame["age"] = frame["age"].astype(object)
    frame.loc[1_500, "age"] = "old"
    path, out = written(frame, tmp_path / "rows.csv"), tmp_path / "out"
    with pytest.raises(
        InvalidData, match=r"Rows .* of .*rows.csv', bytes .* cannot be predicted: age: Row \d+ .*'old'"
    ):
        predict("growth.churn", str(path), out, keep=[], settings=shop)
    kept = sorted(one.name for one in out.glob("part-*.parquet"))
    assert kept[:2] == ["part-00000.parquet", "part-00001.parquet"]
    assert not list(out.glob(".part*"))


@pytest.mark.parametrize(
    ("keep", "error", "says"),
    [
        (["prediction"], InvalidRequest, "is a column of the predictions"),
        (["nobody"], InvalidData, "have no column 'nobody'"),
    ],
)
def test_columns_that_cannot_be_kept(
    keep: list[str], error: type[Exception], says: str, shop: Settings, tmp_path: Path
) -> None:
    path = written(rows(300), tmp_path / "rows.parquet")
    with pytest.raises(error, match=says):
        predict("growth.churn", str(path), tmp_path / "out", keep=keep, settings=shop)


def test_files_are_a_file_a_folder_or_a_pattern(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.csv", "notes.md", "deep/c.parquet", ".hidden/d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = lambda data: [str(one.relative_to(tmp_path)) for one in files_of(data)]  # noqa: E731
    assert names(str(tmp_path)) == ["a.parquet", "b.csv", "deep/c.parquet"]
    assert names(f"{tmp_path}/*.parquet") == ["a.parquet"]
    assert names(f"{tmp_path}/b.csv") == ["b.csv"]
    for nothing in (f"{tmp_path}/*.xlsx", f"{tmp_path}/absent", f"{tmp_path}/absent/*.csv"):
        with pytest.raises(InvalidData, match="There is no table at"):
            files_of(nothing)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.parquet", b"", "is empty"),
        ("cut.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("page.csv", b"<html><body>No.</body></html>", "is named as CSV but"),
        ("head.csv", b"age,income\n", "There are no rows"),
    ],
)
def test_files_that_are_no_tables(
    name: str,
    content: bytes,
    says: str,
    shop: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(batch, "load_settings", lambda: shop)
    code = main(["growth.churn", "--data", str(tmp_path / name), "--out", str(tmp_path / "out")])
    assert code == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_ray_data_comes_to_the_same(
    shop: Settings, churn: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "FEW_BYTES", 0)
    path, out = written(rows(), tmp_path / "rows.parquet"), tmp_path / "out"
    predict("growth.churn", str(path), out, keep=["id"], settings=shop)
    expected = churn.predict(churn.require(read_table(str(path), max_rows=10_000)))
    got = answers(out)
    assert got["id"].tolist() == rows()["id"].tolist()
    pd.testing.assert_frame_equal(got[list(expected.columns)], expected, rtol=1e-12)
    assert pq.read_metadata(out / "part-00000.parquet").num_rows == 600

    broken = rows()
    broken["age"] = "old"
    bad = written(broken, tmp_path / "bad.parquet")
    with pytest.raises(InvalidData, match="cannot be predicted: age"):
        predict("growth.churn", str(bad), tmp_path / "other", keep=[], settings=shop)


# --- declared batches -----------------------------------------------------------------


def run_of(shop: Settings, ledger: Any, **changes: Any) -> Any:
    """Declare a batch, ask for a run, and make it as its job does."""
    fields = {"team": "growth", "name": "nightly", "variant": "growth.churn"} | changes
    batch = ledger.create_batch(BatchWish.model_validate(fields), anywhere=changes.get("upload") is None, by=SETUP)
    run = ledger.start_batch_run(batch.name, by=SETUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_run, "load_settings", lambda: shop)
        code = batch_run.main([run.id])
    return code, ledger.batch_run(run.id)


def test_a_run_of_a_declared_batch_tells_what_it_came_to(own_shelf: Shelf, shop: Settings, tmp_path: Path) -> None:
    path = written(rows(), tmp_path / "rows.parquet")
    code, run = run_of(shop, own_shelf.ledger, path=str(path), keep=["id"])
    assert (code, run.state, run.rows, run.variant) == (0, "done", 2_300, "growth.churn/1")
    assert json.loads((shop.root / run.manifest).read_text())["variant"] == "growth.churn/1"
    frame = pd.read_parquet(shop.root / run.folder)
    assert frame["id"].tolist() == rows()["id"].tolist()
    assert set(frame["version"]) == {1}


def test_a_run_that_cannot_be_made_tells_why(own_shelf: Shelf, shop: Settings, tmp_path: Path) -> None:
    code, run = run_of(shop, own_shelf.ledger, path=str(tmp_path / "none.parquet"))
    assert (code, run.state, run.rows, run.manifest) == (2, "failed", None, None)
    assert "There is no table at" in run.message


def test_a_run_reads_what_its_team_may_name_when_it_begins(own_shelf: Shelf, shop: Settings, tmp_path: Path) -> None:
    secret = written(rows(30), tmp_path / "secret.parquet")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "rows.parquet").symlink_to(secret)
    shop = shop.model_copy(update={"dataset_folders": str(tmp_path / "open")})
    ledger = own_shelf.ledger
    wish = {"team": "growth", "name": "linked", "variant": "growth.churn", "path": f"{tmp_path}/open/*.parquet"}
    batch = ledger.create_batch(BatchWish.model_validate(wish), anywhere=False, by=SETUP)
    run = ledger.start_batch_run(batch.name, by=SETUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_run, "load_settings", lambda: shop)
        assert batch_run.main([run.id]) == 2
    assert "may not be named" in ledger.batch_run(run.id).message


def test_a_run_reads_the_files_that_were_checked(
    own_shelf: Shelf, shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    real = batch_source.files_of

    def once(data: str) -> list[Path]:
        looked.append(data)
        return real(data)

    for module in (batch, batch_run):
        monkeypatch.setattr(module, "files_of", once)
    path = written(rows(30), tmp_path / "rows.parquet")
    assert run_of(shop, own_shelf.ledger, path=str(path))[0] == 0
    assert looked == [str(path)], "a link that is changed between two looks would lead elsewhere"
