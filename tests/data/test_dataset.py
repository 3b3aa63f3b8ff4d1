from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from factory.data.columns import FORMATS
from factory.data.dataset import Dataset, FeatureLineage, from_frame, infer_types, read_table, table_digest, write_table
from factory.errors import InvalidData, NotFound
from factory.spec import ColumnType, FileDataset, Task

Real = Callable[[str], tuple[pd.DataFrame, dict[str, Any]]]


def ref(target: str, **fields: Any) -> FileDataset:
    return FileDataset(path="in memory", target=target, **fields)


def refusal(frame: pd.DataFrame, reference: FileDataset) -> InvalidData:
    with pytest.raises(InvalidData) as caught:
        from_frame(frame, reference)
    assert caught.value.hint
    assert caught.value.details
    assert pickle.loads(pickle.dumps(caught.value)).details == caught.value.details
    return caught.value


def test_a_mixed_table_is_typed(mixed: pd.DataFrame) -> None:
    dataset = from_frame(mixed, ref("bought"))
    assert dataset.types == {
        "amount": ColumnType.NUMERIC,
        "visits": ColumnType.NUMERIC,
        "member": ColumnType.BOOLEAN,
        "city": ColumnType.CATEGORICAL,
        "joined": ColumnType.DATETIME,
        "comment": ColumnType.TEXT,
        "customer": ColumnType.IDENTIFIER,
    }
    assert infer_types(mixed.drop(columns="bought")) == dataset.types
    assert (dataset.task, dataset.classes) == (Task.BINARY, ("no", "yes"))
    assert (np.array(dataset.classes)[dataset.y] == mixed["bought"]).all()
    assert len(dataset) == 200


def test_the_digest_does_not_depend_on_the_file_format(mixed: pd.DataFrame, tmp_path: Path) -> None:
    mixed["fraction"] = np.random.default_rng(0).random(len(mixed)) / 3
    expected, whole = from_frame(mixed, ref("bought")).digest, table_digest(mixed)
    for name in ("a.csv", "a.tsv", "a.parquet", "a.feather"):
        write_table(mixed, tmp_path / name)
        back = read_table(str(tmp_path / name), max_rows=10**6)
        assert from_frame(back, ref("bought")).digest == expected, name
        assert table_digest(back) == whole, name
    mixed.to_csv(tmp_path / "pandas.csv", index=False)
    assert from_frame(read_table(str(tmp_path / "pandas.csv"), max_rows=10**6), ref("bought")).digest == expected


def test_the_digest_depends_on_rows_names_types_and_target(mixed: pd.DataFrame) -> None:
    original = from_frame(mixed, ref("bought")).digest
    changed = mixed.copy()
    changed.loc[5, "visits"] += 1
    variants = [
        from_frame(changed, ref("bought")),
        from_frame(mixed.iloc[::-1], ref("bought")),
        from_frame(mixed.rename(columns={"visits": "visit"}), ref("bought")),
        from_frame(mixed, ref("bought", types={"visits": "categorical"})),
        from_frame(mixed, ref("city")),
    ]
    digests = {v.digest for v in variants}
    assert len(digests) == len(variants)
    assert original not in digests


@pytest.mark.parametrize(
    ("target", "task", "classes"),
    [
        ([0, 1] * 50, Task.BINARY, ("0", "1")),
        ([True, False] * 50, Task.BINARY, ("False", "True")),
        ([1.0, 2.0] * 50, Task.BINARY, ("1", "2")),
        ([10, 9, 2, 10] * 25, Task.MULTICLASS, ("2", "9", "10")),
        (["b", "a", "10", "9"] * 25, Task.MULTICLASS, ("9", "10", "a", "b")),
        (list(range(100)), Task.REGRESSION, ()),
        ([0.5, 1.5, 2.5, 3.5] * 25, Task.REGRESSION, ()),
        ([0, 1, 2] * 33 + [7], Task.REGRESSION, ()),
        ([str(i / 7) for i in range(100)], Task.REGRESSION, ()),
    ],
)
def test_the_task_is_inferred(target: list[Any], task: Task, classes: tuple[str, ...]) -> None:
    frame = pd.DataFrame({"x": np.arange(100) % 7, "target": target})
    dataset = from_frame(frame, ref("target"))
    assert (dataset.task, dataset.classes) == (task, classes)
    assert dataset.y.dtype == (np.float64 if task is Task.REGRESSION else np.int64)


def test_few_rows_of_whole_numbers_are_a_quantity() -> None:
    frame = pd.DataFrame({"x": np.arange(20) % 7, "weight": np.arange(20) + 130})
    assert from_frame(frame, ref("weight")).task is Task.REGRESSION
    assert from_frame(frame, ref("x", task="regression")).task is Task.REGRESSION


def test_bundled_sets_of_scikit_learn() -> None:
    for load, task in ((load_breast_cancer, "binary"), (load_iris, "multiclass"), (load_diabetes, "regression")):
        dataset = from_frame(load(as_frame=True).frame, ref("target"))
        assert dataset.task == task
        assert set(dataset.types.values()) == {ColumnType.NUMERIC}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("telco_churn", {"customerID": "identifier", "TotalCharges": "numeric", "Contract": "categorical"}),
        ("sms_spam", {"message": "text"}),
        ("wine_quality", {"color": "categorical", "alcohol": "numeric"}),
        ("california_housing", {"ocean_proximity": "categorical"}),
        ("digits", {"p26": "numeric"}),
        ("avocado", {"date": "datetime", "geography": "categorical"}),
        ("bike_hourly", {"timestamp": "datetime", "holiday": "numeric"}),
        ("superstore", {"order_date": "datetime", "product_name": "text", "customer_name": "categorical"}),
        ("adult", {"workclass": "categorical", "age": "numeric"}),
        ("mammography", {"f0": "numeric"}),
        ("diamonds", {"cut": "categorical"}),
    ],
)
def test_real_sets_are_typed(real: Real, name: str, expected: dict[str, str]) -> None:
    frame, entry = real(name)
    dataset = from_frame(frame, ref(entry["target"]))
    assert dataset.task == entry["task"]
    assert {c: dataset.types[c] for c in expected} == expected
    assert len(dataset.classes) == (entry.get("classes") or 0) * (entry["task"] != "regression")


def test_total_charges_may_be_text_with_blanks(real: Real) -> None:
    frame, _ = real("telco_churn")
    as_text = frame.assign(TotalCharges=frame["TotalCharges"].map(lambda v: " " if pd.isna(v) else str(v)))
    dataset = from_frame(as_text, ref("Churn"))
    assert dataset.types["TotalCharges"] is ColumnType.NUMERIC
    assert dataset.frame["TotalCharges"].isna().sum() == 11
    assert dataset.digest == from_frame(frame, ref("Churn")).digest


def test_rows_without_a_target_are_dropped_and_counted(mixed: pd.DataFrame) -> None:
    mixed.loc[:9, "bought"] = None
    mixed.loc[10:12, "bought"] = "NA"
    dataset = from_frame(mixed, ref("bought"))
    assert (dataset.dropped_rows, len(dataset), len(dataset.y)) == (13, 187, 187)
    assert dataset.frame["visits"].tolist() == mixed["visits"].tolist()[13:]
    assert dataset.digest == from_frame(mixed.iloc[13:], ref("bought")).digest


def weighted(frame: pd.DataFrame, weights: Any) -> Dataset:
    return from_frame(frame.assign(w=weights), ref("bought", weights="w"))


def test_weights_are_no_feature_and_rows_of_weight_zero_are_left_out(mixed: pd.DataFrame) -> None:
    weights = np.where(np.arange(len(mixed)) % 4 == 0, 0.0, 2.0)
    dataset = weighted(mixed, weights)
    assert "w" not in dataset.frame.columns
    assert dataset.column("w").tolist() == [2.0] * len(dataset)
    assert dataset.weightless_rows == (weights == 0).sum() == len(mixed) - len(dataset) - dataset.dropped_rows
    assert dataset.weights is not None
    assert dataset.weight(np.array([0, 3])).tolist() == [1.0, 1.0]
    assert dataset.take(np.array([1, 2])).weights.tolist() == [2.0, 2.0]
    assert weighted(mixed, weights + 1).digest != weighted(mixed, weights + 2).digest


def test_bad_weights_are_told_in_one_sentence(mixed: pd.DataFrame) -> None:
    bad = [-1.0, np.nan, np.inf, -2.5, *np.ones(len(mixed) - 4)]
    with pytest.raises(InvalidData) as refused:
        weighted(mixed, bad)
    (detail,) = refused.value.details
    assert detail.field == "dataset.weights"
    for said in ("2 are negative (-1.0, -2.5)", "1 are infinite", "1 are missing or no number (nan)", "from 0 up"):
        assert said in detail.message
    with pytest.raises(InvalidData, match="are zero"):
        weighted(mixed, 0)
    with pytest.raises(InvalidData, match="no column 'weihgt'"):
        from_frame(mixed, ref("bought", weights="weihgt"))


def test_types_can_be_overridden(mixed: pd.DataFrame) -> None:
    dataset = from_frame(mixed, ref("bought", types={"visits": "categorical", "comment": "identifier"}))
    assert dataset.types["visits"] is ColumnType.CATEGORICAL
    assert set(dataset.frame["visits"]) == {str(v) for v in mixed["visits"]}


@pytest.mark.parametrize("values", [[1_700_000_000 + i for i in range(200)], ["red", "green"] * 100])
def test_a_type_that_reads_nothing_is_told(mixed: pd.DataFrame, values: list[object]) -> None:
    error = refusal(mixed.assign(when=values), ref("bought", types={"when": "datetime"}))
    assert [detail.field for detail in error.details] == ["dataset.types.when"]
    assert repr(values[0]) in error.message
    assert "2024-01-31" in error.message
    empty = from_frame(mixed.assign(when=["NA", ""] * 100), ref("bought", types={"when": "datetime"}))
    assert empty.frame["when"].isna().all()


def test_a_kept_identifier_is_used_as_a_category(mixed: pd.DataFrame) -> None:
    assert from_frame(mixed, ref("bought", keep=["customer"])).types["customer"] is ColumnType.CATEGORICAL


def test_columns_left_out_stay_at_hand_for_splits(mixed: pd.DataFrame) -> None:
    dataset = from_frame(mixed, ref("bought", drop=["city", "joined"]), aside=["customer"])
    assert list(dataset.context) == ["city", "joined", "customer"]
    assert "city" not in dataset.types
    assert dataset.column("joined").tolist() == mixed["joined"].tolist()
    assert dataset.column("visits").tolist() == mixed["visits"].tolist()
    with pytest.raises(NotFound, match="Did you mean 'joined'"):
        dataset.column("joind")


def test_take_and_without(mixed: pd.DataFrame) -> None:
    mixed["day"] = mixed["joined"].dt.strftime("%d/%m/%Y")
    dataset = from_frame(mixed, ref("bought"))
    part = dataset.take(np.array([5, 3, 3]))
    assert part.frame["visits"].tolist() == mixed["visits"].iloc[[5, 3, 3]].tolist()
    assert (part.classes, part.types, len(part)) == (dataset.classes, dataset.types, 3)
    assert part.digest != dataset.digest
    assert part.digest == dataset.take(np.array([5, 3, 3])).digest
    masked = dataset.take(dataset.frame["visits"].to_numpy() > 20)
    assert (masked.frame["visits"] > 20).all()
    fewer = dataset.without(["customer", "city"]).take(np.arange(50))
    assert "city" not in fewer.frame
    assert "city" not in fewer.types
    assert fewer.column("city").tolist() == dataset.frame["city"].tolist()[:50]
    assert dataset.without(["city"]).digest == dataset.digest
    assert fewer.frame.attrs[FORMATS] == {"day": "%d/%m/%Y"}


# --- bad input ---------------------------------------------------------------------


def test_missing_target_column(mixed: pd.DataFrame) -> None:
    error = refusal(mixed, ref("buoght", types={"amuont": "numeric"}, drop=["nothing"], keep=["cty"]))
    assert [d.field for d in error.details] == [
        "dataset.target",
        "dataset.types.amuont",
        "dataset.drop",
        "dataset.keep",
    ]
    assert "Did you mean 'bought'?" in error.message
    assert "Did you mean 'amount'?" in error.message


def test_target_that_is_left_out(mixed: pd.DataFrame) -> None:
    assert "cannot be left out" in refusal(mixed, ref("bought", drop=["bought"])).message


def test_duplicate_column_names(mixed: pd.DataFrame) -> None:
    twice = pd.concat([mixed, mixed[["city"]]], axis=1)
    assert "city: 2 columns have this name." in refusal(twice, ref("bought")).message


def test_one_class_target(mixed: pd.DataFrame) -> None:
    assert "one class only, 'yes'" in refusal(mixed.assign(bought="yes"), ref("bought")).message
    assert "one class only" in refusal(mixed.assign(bought=1), ref("bought")).message
    constant = refusal(mixed.assign(bought=1.5), ref("bought", task="regression"))
    assert "is 1.5 in every row" in constant.message


def test_target_all_missing(mixed: pd.DataFrame) -> None:
    for nothing in (None, np.nan, ""):
        assert "missing in every row" in refusal(mixed.assign(bought=nothing), ref("bought")).message


def test_too_few_rows(mixed: pd.DataFrame) -> None:
    error = refusal(mixed.head(10), ref("bought"))
    assert "10 usable rows; at least 20" in error.message
    sparse = mixed.copy()
    sparse.loc[15:, "bought"] = None
    assert "15 usable rows; at least 20 are needed. 185 more have no target" in refusal(sparse, ref("bought")).message
    assert "0 usable rows" in refusal(mixed.head(0), ref("bought")).message


def test_a_class_with_one_row(mixed: pd.DataFrame) -> None:
    mixed.loc[3, "bought"] = "maybe"
    error = refusal(mixed, ref("bought"))
    assert "1 of 3 classes have one row only (maybe)" in error.message
    assert error.details[0].field == "bought"


def test_all_columns_useless(mixed: pd.DataFrame) -> None:
    mixed["same"], mixed["nothing"] = "x", np.nan
    error = refusal(mixed[["same", "nothing", "customer", "bought"]], ref("bought"))
    assert "every feature is constant, missing throughout or an identifier (customer, nothing, same)" in error.message
    assert "(there are none)" in refusal(mixed[["bought"]], ref("bought")).message


def test_infinite_values_are_counted_by_column(mixed: pd.DataFrame) -> None:
    mixed["ratio"] = 1.0
    mixed.loc[:2, "ratio"] = [np.inf, -np.inf, np.inf]
    mixed.loc[7, "amount"] = np.inf
    error = refusal(mixed, ref("bought"))
    assert [d.field for d in error.details] == ["amount", "ratio"]
    assert "ratio: 3 infinite values" in error.message
    assert (
        "1 values of the target are infinite"
        in refusal(mixed, ref("amount", task="regression", drop=["ratio"])).message
    )
    assert len(from_frame(mixed, ref("bought", drop=["ratio", "amount"]))) == 200


def test_a_task_that_does_not_fit_the_target(mixed: pd.DataFrame) -> None:
    assert "are not numbers: 'no', 'yes'" in refusal(mixed, ref("bought", task="regression")).message
    assert "has 3 classes" in refusal(mixed.dropna(), ref("city", task="binary")).message
    assert "use 'binary'" in refusal(mixed, ref("bought", task="multiclass")).message
    assert "holds dates" in refusal(mixed, ref("joined")).message


def test_nested_columns(mixed: pd.DataFrame) -> None:
    nested = mixed.assign(tags=[[1, 2]] * len(mixed))
    assert refusal(nested, ref("bought")).details[0].field == "tags"
    later = mixed.assign(tags=[float("nan"), "text", *[[1, 2]] * (len(mixed) - 2)])
    assert refusal(later, ref("bought")).details[0].field == "tags"
    assert "tags" in from_frame(nested, ref("bought", drop=["tags"])).context


def test_lineage_is_kept(mixed: pd.DataFrame) -> None:
    lineage = FeatureLineage(
        service="s", digest="d", views=("v",), interval=None, entity_keys=("customer",), missing={}, rows_with_missing=0
    )
    dataset: Dataset = from_frame(mixed, ref("bought"), features=lineage)
    assert dataset.take(np.arange(3)).features == lineage


def test_a_constant_is_the_mean_or_the_median_by_weight() -> None:
    table = pd.DataFrame({"a": range(40), "w": [1.0] * 30 + [2.9] * 10, "y": [0.0, 1.0] * 15 + [50.0] * 10})
    plain = from_frame(table, FileDataset(path="memory", target="y", task="regression"))
    assert plain.constant(2).tolist() == [12.875] * 2
    assert plain.constant(1, median=True).tolist() == [1.0]
    weighed = from_frame(table, FileDataset(path="memory", target="y", task="regression", weights="w"))
    assert weighed.constant(1, median=True).tolist() == [1.0]
    assert weighed.constant(1, of=np.arange(25, 40), median=True).tolist() == [50.0]
