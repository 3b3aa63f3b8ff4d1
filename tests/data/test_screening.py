from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

from factory.data.dataset import Dataset, from_frame
from factory.data.drift import Later
from factory.data.findings import Finding, Kind
from factory.data.screening import screen
from factory.errors import InvalidData
from factory.spec import FileDataset

Real = Callable[[str], tuple[pd.DataFrame, dict[str, Any]]]


def dataset_of(frame: pd.DataFrame, target: str = "target", **fields: Any) -> Dataset:
    return from_frame(frame, FileDataset(path="in memory", target=target, **fields))


def found(dataset: Dataset, **options: Any) -> dict[str, Finding]:
    findings = screen(dataset, **options)
    assert len({f.column for f in findings}) == len(findings)
    assert all(f.column in f.message and f.message.endswith(".") for f in findings)
    return {f.column: f for f in findings}


def test_what_cannot_help_is_left_out() -> None:
    frame = load_breast_cancer(as_frame=True).frame
    n = len(frame)
    frame["same"] = "x"
    frame["nothing"] = np.nan
    frame["copy"] = frame["mean radius"]
    frame["patient_id"] = np.random.default_rng(0).permutation(n) + 10_000
    frame["line"] = np.arange(n)
    frame["code"] = [f"P{i:06d}" for i in range(n)]
    frame["rare"] = [1.0, 2.0] * 10 + [np.nan] * (n - 20)
    frame["mark"] = ["yes"] * (n // 2) + [None] * (n - n // 2)
    findings = found(dataset_of(frame))
    assert {c: (f.kind, f.action) for c, f in findings.items() if f.kind != "twins"} == {
        "same": ("constant", "drop"),
        "nothing": ("all_missing", "drop"),
        "copy": ("duplicate", "drop"),
        "patient_id": ("identifier", "drop"),
        "line": ("identifier", "drop"),
        "code": ("identifier", "drop"),
        "rare": ("high_missing", "warn"),
    }
    assert "'mean radius'" in findings["copy"].message


def test_what_counts_the_rows_shows_in_the_whole_table_only() -> None:
    n = 300
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=n), "years": np.arange(n) % 40, "line": np.arange(n)})
    frame["target"] = np.where(rng.random(n) < 0.05, np.nan, rng.normal(size=n))
    whole = dataset_of(frame)
    assert 0 < whole.dropped_rows < 40
    part = whole.take(np.sort(rng.permutation(len(whole))[:200]))
    assert "line" not in found(part)
    assert {c: f.kind for c, f in found(part, whole=whole).items()} == {"line": "identifier"}
    frame["line"] += 100_000
    whole = dataset_of(frame)
    assert not found(whole.take(np.arange(200)), whole=whole), "these numbers count something else"


@pytest.mark.parametrize("name", ["Unnamed: 0", "Unnamed: 0.1"])
def test_an_index_that_pandas_wrote_is_a_key_in_any_order(name: str) -> None:
    frame = load_breast_cancer(as_frame=True).frame
    frame[name] = np.random.default_rng(0).permutation(len(frame))
    assert found(dataset_of(frame))[name].kind == "identifier"


@pytest.mark.parametrize("load", [load_breast_cancer, load_iris, load_wine, load_diabetes])
def test_bundled_sets_are_clean_and_planted_leaks_are_found(load: Callable[..., Any]) -> None:
    frame = load(as_frame=True).frame
    assert {f.kind for f in found(dataset_of(frame)).values()} <= {"twins", "correlation"}
    y = frame["target"].to_numpy()
    rng = np.random.default_rng(0)
    frame["exact"] = np.exp(3.0 * y / y.max())
    frame["nearly"] = y + rng.normal(0, 1e-3, len(y))
    frame["honest"] = y + rng.normal(0, 0.5 * y.std(), len(y))
    findings = found(dataset_of(frame))
    assert {c: (f.kind, f.action) for c, f in findings.items() if f.action == "drop"} == {
        "exact": ("leakage" if len(np.unique(y)) > 20 else "target_copy", "drop"),
        "nearly": ("leakage", "drop"),
    }
    assert (findings["nearly"].value or 0) >= 0.999
    assert 0 < (findings["nearly"].others or 0) < 0.999


def test_leaks_in_labels_dates_and_absence() -> None:
    rng = np.random.default_rng(0)
    n = 1000
    y = rng.random(n) < 0.1
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "status": np.where(y, rng.choice(["closed", "gone"], n), rng.choice(["open", "new", "held"], n)),
            "closed_on": pd.Series(
                pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, n), unit="D")
            ).where(y),
            "refund": np.where(y, rng.normal(size=n), np.nan),
            "target": np.where(y, "left", "stayed"),
        }
    )
    assert {c for c, f in found(dataset_of(frame)).items() if f.kind == "leakage"} == {"status", "closed_on", "refund"}


def test_a_rare_class_that_one_column_splits_by_luck_is_no_leak() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=400), "z": rng.normal(size=400), "target": 0})
    frame.loc[frame["x"].nlargest(3).index, "target"] = 1
    assert found(dataset_of(frame)) == {}


@pytest.mark.parametrize("n_columns", [3, 300])
def test_a_leak_of_a_rare_class_is_found_in_many_rows(n_columns: int) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(40_000, n_columns))).rename(columns=str)
    frame["target"] = (np.arange(40_000) % 800 == 0).astype(int)
    frame["chargeback"] = np.where(frame["target"] == 1, rng.uniform(1, 9, 40_000), 0.0)
    assert found(dataset_of(frame))["chargeback"].kind == "leakage"


def test_one_blank_cell_in_the_row_of_a_rare_class_gives_nothing_away() -> None:
    frame = pd.DataFrame({"x": np.arange(60.0) % 7, "target": [f"c{i % 30}" for i in range(60)]})
    frame.loc[[4, 34], "x"] = np.nan
    assert "x" not in found(dataset_of(frame))


def test_a_slow_series_is_not_given_away_by_its_date() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    frame = pd.DataFrame(
        {
            "day": pd.date_range("2015-01-01", periods=n, freq="D"),
            "x": rng.normal(size=n),
            "target": 100 + 50 * np.sin(np.arange(n) / 200),
        }
    )
    assert found(dataset_of(frame)) == {}


@pytest.mark.parametrize(
    "name", ["adult", "avocado", "bike_hourly", "california_housing", "diamonds", "mammography", "wine_quality"]
)
def test_real_sets_are_clean(real: Real, name: str) -> None:
    frame, entry = real(name)
    dataset = dataset_of(frame, entry["target"])
    findings = found(dataset)
    assert {c: f.kind for c, f in findings.items()} == ({"y": "twins"} if name == "diamonds" else {})


def test_the_customer_number_of_telco_is_an_identifier(real: Real) -> None:
    frame, entry = real("telco_churn")
    findings = found(dataset_of(frame, entry["target"]))
    assert {c: f.kind for c, f in findings.items()} == {"customerID": "identifier"}


def test_kept_columns_stay_and_are_told() -> None:
    frame = load_breast_cancer(as_frame=True).frame
    frame["copy"] = frame["target"] * 2.0
    frame["leak"] = frame["target"] + np.random.default_rng(0).normal(0, 1e-3, len(frame))
    frame["same"] = 1
    frame["code"] = [f"P{i:06d}" for i in range(len(frame))]
    findings = found(dataset_of(frame, keep=["code"]), keep=("leak", "copy", "code"))
    assert (findings["code"].kind, findings["code"].action) == ("identifier", "keep")
    assert (findings["leak"].kind, findings["leak"].action) == ("leakage", "keep")
    assert (findings["copy"].kind, findings["copy"].action) == ("target_copy", "keep")
    assert findings["same"].action == "drop"
    for column in ("leak", "copy"):
        assert findings[column].message.endswith("it is used, since the request names it in 'keep'.")
        assert "left out" not in findings[column].message


def test_what_names_the_groups_of_the_validation_is_left_out_unless_it_is_kept() -> None:
    frame = load_iris(as_frame=True).frame.assign(garden=np.arange(150) % 12)
    (finding,) = [f for f in screen(dataset_of(frame), group="garden") if f.column == "garden"]
    assert (finding.kind, finding.action) == ("group", "drop")
    (kept,) = [f for f in screen(dataset_of(frame), group="garden", keep=["garden"]) if f.column == "garden"]
    assert kept.action == "keep"
    assert screen(dataset_of(frame), group="elsewhere") == screen(dataset_of(frame))


def test_columns_left_out_on_request_are_told() -> None:
    frame = load_iris(as_frame=True).frame
    name = "petal width (cm)"
    findings = found(dataset_of(frame, drop=[name]), drop=(name,))
    assert (findings[name].kind, findings[name].action) == ("requested", "drop")


# --- the target under another name ------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_target_under_another_name_is_found_even_with_gaps(task: str, share: float) -> None:
    rng = np.random.default_rng(0)
    n = 500
    y = {"binary": rng.integers(0, 2, n), "multiclass": rng.integers(0, 4, n), "regression": rng.normal(size=n)}[task]
    copy = -3.5 * y + 12 if task == "regression" else pd.Series(y).map(dict(enumerate("wxyz")))
    frame = pd.DataFrame({"x": rng.normal(size=n), "copy": copy, "target": y})
    frame.loc[rng.random(n) > share, "copy"] = None
    findings = found(dataset_of(frame))
    assert {c: f.kind for c, f in findings.items()} == {"copy": "target_copy"}
    assert findings["copy"].value == pytest.approx(share, abs=0.05)
    assert "'target'" in findings["copy"].message


def test_no_honest_column_is_taken_for_the_target() -> None:
    rng = np.random.default_rng(0)
    n = 500
    y = rng.integers(0, 2, n)
    frame = pd.DataFrame({"x": rng.normal(size=n), "rare": np.full(n, None, dtype=object), "target": y})
    frame.loc[:15, "rare"] = np.where(y[:16], "a", "b")  # one to one, but in sixteen rows
    frame["finer"] = [f"{'pq'[label]}{k}" for label, k in zip(y, rng.integers(0, 2, n), strict=True)]
    kinds = {c: f.kind for c, f in found(dataset_of(frame)).items()}
    assert kinds == {"rare": "high_missing", "finer": "leakage"}


# --- what a person should look at -------------------------------------------------------


def test_absence_that_follows_the_outcome_is_left_out() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    y = rng.integers(0, 2, n)
    filled = np.where(rng.random(n) < 0.01, 1 - y, y).astype(bool)
    frame = pd.DataFrame({"x": rng.normal(size=n), "closed": np.where(filled, rng.normal(size=n), np.nan), "target": y})
    finding = found(dataset_of(frame))["closed"]
    assert (finding.kind, finding.action) == ("absence", "drop")
    assert abs(finding.value or 0) == pytest.approx(0.98, abs=0.01)


def test_correlations_and_sure_levels_are_warnings() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    y = rng.integers(0, 4, n) == 0
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "close": (y ^ (rng.random(n) < 0.005)) + rng.normal(0, 0.01, n),
            "kind": np.where(rng.random(n) < 0.008, rng.choice(["open", "shut"], n), np.where(y, "shut", "open")),
            "why": np.where(y & (rng.random(n) < 0.5), rng.choice(["price", "moved"], n), "-"),
            "flat": [1.0, 2.0] + [0.0] * (n - 2),
            "target": np.where(y, "left", "stayed"),
        }
    )
    frame["closer"] = frame["x"] + rng.normal(0, 0.01, n)
    findings = found(dataset_of(frame))
    assert {c: (f.kind, f.action) for c, f in findings.items()} == {
        "close": ("correlation", "warn"),
        "kind": ("correlation", "warn"),
        "why": ("rule", "warn"),
        "flat": ("nearly_constant", "warn"),
        "closer": ("twins", "warn"),
    }
    assert "'moved'" in findings["why"].message or "'price'" in findings["why"].message
    assert "Cramér's V" in findings["kind"].message


def test_a_handful_of_values_is_no_column() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    frame = pd.DataFrame({"x": rng.normal(size=n), "few": np.full(n, np.nan), "target": rng.integers(0, 2, n)})
    frame.loc[:14, "few"] = rng.normal(size=15)
    finding = found(dataset_of(frame))["few"]
    assert (finding.kind, finding.action) == ("nearly_empty", "drop")


# --- later rows -------------------------------------------------------------------------


def drifted(n: int = 2000) -> tuple[Dataset, pd.DataFrame]:
    """Rows to learn from, and later ones of which four columns differ."""
    rng = np.random.default_rng(0)

    def rows(n: int, *, late: bool) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "steady": rng.normal(size=n),
                "town": rng.choice(["Oslo", "Rome", "Lima"], n),
                "moved": rng.normal(3 if late else 0, 1, n),
                "gone": rng.normal(40 if late else 0, 1, n),
                "emptied": np.where(rng.random(n) < (0.01 if late else 1.0), 1.5 * rng.normal(size=n), np.nan),
                "renamed": rng.choice(["c", "d"] if late else ["a", "b"], n),
                "day": pd.Timestamp("2024-06-01" if late else "2023-01-01")
                + pd.to_timedelta(rng.integers(0, 99, n), unit="D"),
                "target": rng.integers(0, 2, n),
            }
        )

    return dataset_of(rows(n, late=False)), dataset_of(rows(n // 4, late=True)).frame


def test_columns_that_differ_in_later_rows_are_named_and_left_out_if_asked() -> None:
    dataset, frame = drifted()
    later = (Later("the rows to be predicted", frame),)
    findings = found(dataset, later=later)
    assert {c: (f.kind, f.action) for c, f in findings.items()} == dict.fromkeys(
        ("moved", "gone", "emptied", "renamed"), ("drift", "warn")
    )
    assert all("the rows to be predicted" in f.message for f in findings.values())
    asked = found(dataset, later=later, drift="drop", keep=("gone",))
    assert {c: f.action for c, f in asked.items()} == {
        "moved": "warn", "gone": "keep", "emptied": "drop", "renamed": "drop",
    }  # fmt: skip


def test_a_column_that_later_rows_lack_has_drifted_if_they_are_whole() -> None:
    dataset, frame = drifted()
    later = frame.drop(columns=["steady", "gone", "moved", "emptied", "renamed"])
    assert found(dataset, later=(Later("the rows of the gate", later),)) == {}
    assert "steady" in found(dataset, later=(Later("the rows to be predicted", later, whole=True),))


def test_a_column_that_is_hardly_filled_is_not_missing_by_drift() -> None:
    frame = pd.DataFrame({"x": np.arange(1_000.0), "target": np.arange(1_000) % 2})
    frame["rare"] = np.where(np.arange(1_000) % 100 == 0, 1.0 + np.arange(1_000), np.nan)
    for n_rows, kinds in ((100, {"high_missing"}), (5_000, {"high_missing", "drift"})):
        rows = pd.DataFrame({"x": np.arange(n_rows) % 1_000.0, "rare": np.full(n_rows, np.nan)})
        findings = screen(dataset_of(frame), later=[Later("the later rows", rows)])
        assert {f.kind for f in findings if f.column == "rare"} == kinds, n_rows


def test_a_random_part_has_not_drifted() -> None:
    dataset, _ = drifted()
    rows = np.random.default_rng(1).permutation(len(dataset))
    later = Later("the rows of the gate", dataset.take(rows[:60]).frame)
    assert found(dataset.take(rows[60:]), later=(later,)) == {}


def test_nothing_left_is_an_error() -> None:
    frame = pd.DataFrame({"leak": [0.0, 1.0] * 50, "same": 1, "target": ["a", "b"] * 50})
    with pytest.raises(InvalidData) as caught:
        screen(dataset_of(frame))
    assert [d.field for d in caught.value.details] == ["leak", "same"]
    assert "keep" in caught.value.hint
    assert screen(dataset_of(frame), keep=("leak",))


def test_every_kind_of_finding_is_documented_and_no_other() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
    table = page.partition("\n### Screening\n")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(get_args(Kind))


def test_same_seed_same_findings() -> None:
    frame = load_wine(as_frame=True).frame
    frame["leak"] = frame["target"] + np.random.default_rng(1).normal(0, 1e-3, len(frame))
    dataset = dataset_of(frame)
    assert screen(dataset, seed=5) == screen(dataset, seed=5)


@pytest.mark.parametrize("classes", [("paid", "defaulted"), ("paid", "late", "defaulted")])
def test_an_outcome_written_into_notes_is_told_and_the_text_is_used(classes: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(classes, 400)
    talk = [" ".join(rng.choice(["called", "wrote", "asked", "waits", "moved", "client", "again"], 6)) for _ in y]
    frame = pd.DataFrame({"notes": talk, "honest": talk[::-1], "x": rng.normal(size=400), "target": y})
    assert not found(dataset_of(frame, types={"notes": "text", "honest": "text"}))
    frame["notes"] = [
        f"{said}, DEFAULTED in May" if label == "defaulted" else said for said, label in zip(talk, y, strict=False)
    ]
    (finding,) = found(dataset_of(frame, types={"notes": "text", "honest": "text"})).values()
    assert (finding.column, finding.kind, finding.action) == ("notes", "correlation", "warn")
    assert "by the word 'defaulted'" in finding.message or "by the word 'may'" in finding.message
