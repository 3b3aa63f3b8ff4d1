from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from factory.data.crosses import Cross
from factory.data.dataset import Dataset, from_frame
from factory.data.preparation import Preparation, Table
from factory.errors import InvalidData, UntrustedBundle
from factory.spec import ColumnType, FileDataset


@pytest.fixture
def dataset(mixed: pd.DataFrame) -> Dataset:
    return from_frame(mixed, FileDataset(path="in memory", target="bought"))


@pytest.fixture
def preparation(dataset: Dataset) -> Preparation:
    return Preparation.fit(dataset.frame, dataset.types, seed=1)


def same(a: Table, b: Table, *, atol: float = 0.0) -> bool:
    close = np.allclose(a.numeric, b.numeric, rtol=0, atol=atol, equal_nan=True)
    return close and np.array_equal(a.codes, b.codes) and (a.levels, a.numeric_names) == (b.levels, b.numeric_names)


def one(value: Any, dtype: Any = object) -> np.ndarray:
    return np.array([value], dtype=dtype)


def test_shapes_and_dtypes(dataset: Dataset, preparation: Preparation) -> None:
    table = preparation.transform(dataset.frame)
    assert preparation.columns == ("amount", "visits", "member", "city", "joined", "comment")
    assert table.numeric.dtype == np.float32
    assert table.codes.dtype == np.int32
    assert table.numeric.shape == (200, len(table.numeric_names))
    assert table.codes.shape == (200, 1)
    assert (table.categorical_names, table.levels) == (("city",), (4,))
    assert table.n_columns == len(table.numeric_names) + 1
    assert (table.codes < np.array(table.levels)).all()
    assert len(table) == 200
    assert len(table.rows(np.array([3, 1]))) == 2
    assert np.array_equal(table.rows(np.array([3, 1])).codes, table.codes[[3, 1]])


def test_numbers_and_levels(dataset: Dataset, preparation: Preparation) -> None:
    table = preparation.transform(dataset.frame)
    amount = table.numeric[:, table.numeric_names.index("amount")]
    assert np.allclose(amount, dataset.frame["amount"], equal_nan=True)
    expected = dataset.frame["city"].map({"Lima": 1, "Oslo": 2, "Rome": 3}).fillna(0)
    assert table.codes[:, 0].tolist() == expected.tolist()


def test_calendar_parts_equal_pandas(dataset: Dataset, preparation: Preparation) -> None:
    table = preparation.transform(dataset.frame)
    moments = dataset.frame["joined"].dt
    expected = {
        "year": moments.year,
        "month": moments.month,
        "day": moments.day,
        "weekday": moments.weekday,
        "days": (dataset.frame["joined"] - dataset.frame["joined"].min()).dt.days,
        "season_sin": np.sin(2 * np.pi * (moments.dayofyear - 1) / 365.25).astype(np.float32),
        "season_cos": np.cos(2 * np.pi * (moments.dayofyear - 1) / 365.25).astype(np.float32),
    }
    found = {n.split(":")[1]: table.numeric[:, i] for i, n in enumerate(table.numeric_names) if n.startswith("joined:")}
    assert found.keys() == expected.keys()
    for part, values in expected.items():
        assert np.array_equal(found[part], values), part


def test_the_hour_is_kept_where_it_varies() -> None:
    frame = pd.DataFrame({"at": pd.date_range("1969-12-30 01:00", periods=60, freq="h")})
    table = Preparation.fit(frame, {"at": ColumnType.DATETIME}).transform(frame)
    hour = table.numeric[:, table.numeric_names.index("at:hour")]
    assert np.array_equal(hour, frame["at"].dt.hour)
    circle = table.numeric[:, [table.numeric_names.index(f"at:hour_{part}") for part in ("sin", "cos")]]
    assert np.allclose(np.hypot(*circle.T), 1)
    assert not any("season" in name for name in table.numeric_names), "60 hours do not meet the turn of the year"


def test_days_between_dates() -> None:
    ordered = pd.Series(pd.date_range("2021-01-01 06:00", periods=40, freq="D"))
    shipped = ordered + pd.to_timedelta(np.arange(40) % 3 + 0.5, unit="D")
    frame = pd.DataFrame({"ordered": ordered, "shipped": shipped, "copy": ordered})
    frame.loc[3, "shipped"] = pd.NaT
    preparation = Preparation.fit(frame, dict.fromkeys(frame, ColumnType.DATETIME))
    table = preparation.transform(frame)
    gaps = [n for n in table.numeric_names if "-" in n]
    assert gaps == ["shipped-ordered", "shipped-copy"], "a distance that never varies is left out"
    days = table.numeric[:, table.numeric_names.index("shipped-ordered")]
    assert np.isnan(days[3])
    assert np.array_equal(np.delete(days, 3), np.delete(np.arange(40) % 3 + 0.5, 3))
    row = {"ordered": one("2021-01-01"), "shipped": one("2021-01-11T12:00:00"), "copy": one(None)}
    assert preparation.transform(row).numeric[0, table.numeric_names.index("shipped-ordered")] == 10.5


CROSSES = (
    Cross(kind="product", left="amount", right="visits"),
    Cross(kind="ratio", left="amount", right="visits"),
    Cross(kind="ratio", left="joined:days", right="not a column"),
)


def test_crosses_are_the_last_numeric_columns(dataset: Dataset, tmp_path: Path) -> None:
    preparation = Preparation.fit(dataset.frame, dataset.types, seed=1, crosses=CROSSES)
    table = preparation.transform(dataset.frame)
    assert (table.numeric_names[-2:], table.n_crosses) == (("amount*visits", "amount/visits"), 2)
    amount, visits = (dataset.frame[c].to_numpy(np.float32) for c in ("amount", "visits"))
    assert np.allclose(table.numeric[:, -2], amount * visits, equal_nan=True)
    zero = visits == 0
    assert zero.any()
    assert np.isnan(table.numeric[zero, -1]).all()
    assert np.allclose(table.numeric[~zero, -1], amount[~zero] / visits[~zero], equal_nan=True)
    without = Preparation.fit(dataset.frame, dataset.types, seed=1).transform(dataset.frame)
    assert same(table.plain, without)
    assert table.plain is table.plain
    assert without.plain is without
    assert table.rows(np.arange(5)).n_crosses == 2
    preparation.save(tmp_path)
    assert same(Preparation.load(tmp_path).transform(dataset.frame), table)


def test_matrix_is_numbers_then_codes(dataset: Dataset, preparation: Preparation) -> None:
    table = preparation.transform(dataset.frame)
    assert table.matrix.dtype == np.float32
    assert table.matrix.shape == (200, table.n_columns)
    assert np.array_equal(table.matrix[:, :-1], table.numeric, equal_nan=True)
    assert np.array_equal(table.matrix[:, -1], table.codes[:, 0])


def test_equal_preparations_have_equal_digests(dataset: Dataset, tmp_path: Path) -> None:
    first, again = (Preparation.fit(dataset.frame, dataset.types, seed=1) for _ in range(2))
    assert first == again
    assert len({first, again}) == 1
    first.save(tmp_path)
    assert Preparation.load(tmp_path).digest == first.digest
    fewer = Preparation.fit(dataset.frame.iloc[:150], dataset.types, seed=1)
    crossed = Preparation.fit(dataset.frame, dataset.types, seed=1, crosses=CROSSES)
    assert len({first.digest, fewer.digest, crossed.digest}) == 3


def test_format_1_is_still_read() -> None:
    """``fixtures/preparation_format_1`` was written before days between dates and crosses existed."""
    preparation = Preparation.load(Path(__file__).parent / "fixtures" / "preparation_format_1")
    row = {"n": one(2.0), "c": one("b"), "at": one("2020-01-31"), "t": one("two blue fish swim")}
    table = preparation.transform(row)
    assert table.numeric_names[:6] == ("n", "at:month", "at:day", "at:weekday", "at:days", "t:topic1")
    assert np.allclose(table.numeric[0, :7], [2.0, 1.0, 31.0, 4.0, 1.0, 0.733623, -0.432171], atol=1e-5)
    assert table.numeric[0, -4:].tolist() == [18.0, 4.0, 0.0, 0.0]
    assert table.codes.tolist() == [[2]]


def test_unknown_missing_infinite_and_wrong_values_are_predictable(preparation: Preparation) -> None:
    row = {
        "amount": one(np.inf, float),
        "visits": one("many"),
        "member": one(None),
        "city": one("Atlantis"),
        "joined": one("not a date"),
        "comment": one(None),
    }
    table = preparation.transform(row)
    assert table.codes.tolist() == [[0]]
    missing = dict(zip(table.numeric_names, np.isnan(table.numeric[0]), strict=True))
    assert all(m for n, m in missing.items() if not n.startswith("comment:topic"))
    assert np.isfinite([v for n, v in zip(table.numeric_names, table.numeric[0], strict=True) if ":topic" in n]).all()
    assert preparation.transform({**row, "city": one(3.5)}).codes.tolist() == [[0]]


def test_one_row_equals_its_row_among_many(dataset: Dataset, preparation: Preparation) -> None:
    whole = preparation.transform(dataset.frame)
    for i in (0, 17, 199):
        arrays = {c: dataset.frame[c].to_numpy()[i : i + 1] for c in preparation.columns}
        assert same(preparation.transform(arrays), whole.rows(np.array([i])), atol=1e-6)
        assert same(preparation.transform(dataset.frame.iloc[[i]]), whole.rows(np.array([i])), atol=1e-6)


def test_values_as_a_caller_sends_them(dataset: Dataset, preparation: Preparation) -> None:
    row = dataset.frame.iloc[4]
    sent = {
        "amount": one(str(row["amount"])),
        "visits": one(float(row["visits"])),
        "member": one(str(row["member"]).lower()),
        "city": one(row["city"]),
        "joined": one(row["joined"].isoformat()),
        "comment": one(row["comment"]),
    }
    assert same(preparation.transform(sent), preparation.transform(dataset.frame.iloc[[4]]), atol=1e-6)


def test_dates_in_text_keep_their_training_format(mixed: pd.DataFrame) -> None:
    mixed["joined"] = mixed["joined"].dt.strftime("%d/%m/%Y")
    dataset = from_frame(mixed, FileDataset(path="in memory", target="bought")).without(["comment"])
    preparation = Preparation.fit(dataset.take(np.arange(100)).frame, dataset.types)
    table = preparation.transform({**{c: one(None) for c in preparation.columns}, "joined": one("03/04/2021")})
    values = dict(zip(table.numeric_names, table.numeric[0], strict=True))
    assert (values["joined:day"], values["joined:month"]) == (3, 4)


def test_whole_numbers_as_categories_match_however_they_are_sent() -> None:
    frame = pd.DataFrame({"zone": [1.0, 2.0, np.nan] * 20})
    preparation = Preparation.fit(frame, {"zone": ColumnType.CATEGORICAL})
    for sent in (one(2), one(2.0), one("2"), np.array([2]), np.array([2.0], dtype=np.float32)):
        assert preparation.transform({"zone": sent}).codes.tolist() == [[2]]
    assert preparation.transform({"zone": np.array([np.nan])}).codes.tolist() == [[0]]


def test_rare_levels_are_folded_only_where_there_are_many() -> None:
    few = pd.DataFrame({"a": [f"v{i}" for i in range(50)]})
    assert Preparation.fit(few, {"a": ColumnType.CATEGORICAL}).transform(few).levels == (51,)
    many = pd.DataFrame({"a": [f"v{i}" for i in range(150)] + [f"v{i}" for i in range(40)]})
    table = Preparation.fit(many, {"a": ColumnType.CATEGORICAL}).transform(many)
    assert table.levels == (41,)
    assert (table.codes[40:150] == 0).all()
    assert (table.codes[:40] > 0).all()


def test_every_absent_column_is_named(preparation: Preparation, dataset: Dataset) -> None:
    sent = dataset.frame.drop(columns=["city"]).rename(columns={"amount": "amuont"})
    with pytest.raises(InvalidData) as caught:
        preparation.transform(sent)
    assert [d.field for d in caught.value.details] == ["amount", "city"]
    assert "Did you mean 'amuont'?" in caught.value.details[0].message


def test_nothing_of_other_rows_is_learned(dataset: Dataset) -> None:
    train = dataset.take(np.arange(100))
    others = dataset.frame.copy()
    others.loc[100:, "city"] = "Elsewhere"
    others.loc[100:, "comment"] = "entirely different words"
    first = Preparation.fit(train.frame, dataset.types).transform(train.frame)
    second = Preparation.fit(others.iloc[:100], dataset.types).transform(train.frame)
    assert same(first, second)


def test_same_seed_same_preparation(dataset: Dataset) -> None:
    tables = [Preparation.fit(dataset.frame, dataset.types, seed=s).transform(dataset.frame) for s in (3, 3, 4)]
    assert same(tables[0], tables[1])


def test_saved_and_loaded_it_prepares_the_same(dataset: Dataset, preparation: Preparation, tmp_path: Path) -> None:
    preparation.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preparation.json", "preparation.npz"]
    loaded = Preparation.load(tmp_path)
    assert loaded.columns == preparation.columns
    assert same(loaded.transform(dataset.frame), preparation.transform(dataset.frame))
    with np.load(tmp_path / "preparation.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype.kind == "f" for name in stored.files)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"format": 99, "plans": [], "texts": {}}', '{"format": 1, "plans": [{"kind": "x"}]}']
)
def test_a_damaged_preparation_is_not_loaded(tmp_path: Path, content: str) -> None:
    (tmp_path / "preparation.json").write_text(content)
    with pytest.raises(UntrustedBundle, match="cannot be read"):
        Preparation.load(tmp_path)


def test_text_without_words_is_left_out() -> None:
    frame = pd.DataFrame({"t": ["", None, "\n"] * 10, "x": range(30)})
    table = Preparation.fit(frame, {"t": ColumnType.TEXT, "x": ColumnType.NUMERIC}).transform(frame)
    assert table.numeric_names == ("x",)


def test_topics_tell_spam_from_ham(real: Callable[[str], tuple[pd.DataFrame, dict[str, Any]]]) -> None:
    frame, _ = real("sms_spam")
    dataset = from_frame(frame, FileDataset(path="in memory", target="label"))
    train, test = dataset.take(np.arange(0, 4000)), dataset.take(np.arange(4000, len(dataset)))
    preparation = Preparation.fit(train.frame, dataset.types)
    before, after = preparation.transform(train.frame).numeric, preparation.transform(test.frame).numeric
    spread = np.maximum(before.std(axis=0), 1e-9)
    centres = [before[train.y == k].mean(axis=0) / spread for k in (0, 1)]
    distance = [((after / spread - c) ** 2).sum(axis=1) for c in centres]
    guess = (distance[1] < distance[0]).astype(int)
    assert (guess[test.y == 1] == 1).mean() > 0.8
    assert (guess[test.y == 0] == 0).mean() > 0.9


def test_of_many_long_texts_the_beginnings_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.data.text._MOST_READ", {"word": 6_000, "char_wb": 2_000})
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "green", "blue", "grey"], 30)) for _ in range(60)]
    frame = pd.DataFrame({"note": texts})
    short = Preparation.fit(frame, {"note": ColumnType.TEXT})
    later = frame.assign(note=frame["note"].str[:100] + " unread " * 5)
    first, second = (short.transform(rows).numeric for rows in (frame, later))
    topics = [i for i, name in enumerate(short.transform(frame).numeric_names) if "topic" in name]
    assert np.array_equal(first[:, topics], second[:, topics]), "both begin alike"
    short.save(tmp_path)
    assert np.array_equal(Preparation.load(tmp_path).transform(later).numeric, second, equal_nan=True)
    assert Preparation.load(tmp_path) == short
