"""Quotes: what is told before anything is started, by priors, by history, and what would stop a request."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, update

from factory.data.dataset import from_frame
from factory.data.loading import store_table
from factory.data.traits import traits_of
from factory.ledger import Ledger, schema
from factory.operate.quotes import Holding, Place, Quote, Rates, quote, quote_document
from factory.operate.quotes.spread import Spread
from factory.search.plan import check_request
from factory.settings import Settings
from factory.spec import FileDataset, RequestState, Trial, Variant, VariantRequest
from tests.postgres import MISSING, server

ROOT = Path(__file__).resolve().parents[2]
RATES = Rates(cpu_hour=0.1, gpu_hour=3.0, gb_hour=0.01, currency="EUR")


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def ledger(home: Settings) -> Iterator[Ledger]:
    with Ledger.open(home.ledger) as opened:
        yield opened


def frame(n_rows: int = 400, *, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, n_rows),
            "income": rng.normal(40, 9, n_rows),
            "city": rng.choice(["Bern", "Genf"], n_rows),
            "churned": rng.choice(["no", "yes"], n_rows),
        }
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    frame().to_parquet(tmp_path / "customers.parquet", index=False)
    return tmp_path / "customers.parquet"


def document(table: Path | str, **fields: Any) -> dict[str, Any]:
    base = {"team": "growth", "name": "churn", "recipe": "tabular-auto"}
    return base | {"dataset": {"path": str(table), "target": "churned"}, "budget": {"time_s": 60}} | fields


def made(
    ledger: Ledger,
    request: dict[str, Any],
    *,
    took_s: float,
    rows: pd.DataFrame | None = None,
    score: float = 0.8,
    fold_s: float = 1.0,
    version: int = 1,
    attempts: int = 1,
) -> str:
    """Put a request that was made into the ledger, as the pipeline leaves it; return its id."""
    order = VariantRequest.model_validate(request)
    rows = frame() if rows is None else rows
    dataset = from_frame(rows, FileDataset(path="t.parquet", target=order.dataset.target))
    regression = dataset.task == "regression"
    metric = "neg_root_mean_squared_error" if regression else "roc_auc"
    record = ledger.create_request(order)
    for _ in range(attempts):
        ledger.claim(record.id).release()
    ledger.reach(record.id, RequestState.PREPARING, "Reading.")
    ledger.record_traits(record.id, traits_of(dataset).model_copy(update={"metric": metric, "constant_score": 0.5}))
    for number in range(4):
        trial = Trial(number=number, family="lightgbm", parameters={}, state="succeeded", score=score or 0.5)
        ledger.record_trial(
            record.id, trial.model_copy(update={"folds": (0,), "fold_scores": (score or 0.5,)} | {"cost_s": fold_s})
        )
    half = abs(score) * 0.01
    ledger.record_variant(
        Variant(
            name=order.variant,
            version=version,
            request_id=record.id,
            task=dataset.task,
            metric=metric,
            score=score,
            score_low=score - half,
            score_high=score + half,
            recipe="tabular-auto",
            recipe_digest="a" * 64,
            dataset_digest="b" * 64,
            bundle_digest="c" * 64,
            cost_s=4 * fold_s,
            blend={0: 0.5, 1: 0.5},
        )
    )
    ledger.reach(record.id, RequestState.REGISTERED, "Registered.")
    at = schema.events.c
    began = next(e.time for e in ledger.events(record.id) if e.state is RequestState.PREPARING)
    with ledger._write() as connection:  # the clock is not waited for
        ended = (at.request_id == record.id) & (at.state == "registered")
        connection.execute(update(schema.events).where(ended).values(time=began + timedelta(seconds=took_s)))
    return record.id


def quoted(request: dict[str, Any], ledger: Ledger, home: Settings, **more: Any) -> Quote:
    order, recipe = check_request(request, settings=home)
    return quote(order, recipe, ledger=ledger, settings=home, **({"rates": RATES, "cpus": 2} | more))


# --- time and money ----------------------------------------------------------------


@pytest.mark.parametrize("budget_s", [5, 15, 60, 300, 3600])
def test_a_timed_search_is_quoted_within_what_the_engine_promises(
    budget_s: int, table: Path, ledger: Ledger, home: Settings
) -> None:
    told = quoted(document(table, budget={"time_s": budget_s}), ledger, home)
    assert told.problems == ()
    assert told.wall_s is not None
    assert told.promise_s == budget_s * 1.05 + 15
    assert 0.6 * budget_s < told.wall_s.low < told.wall_s.expected < told.wall_s.high <= told.promise_s
    assert (told.n_past, told.n_rows, told.n_columns) == (0, 400, 4)
    assert "No earlier request" in told.basis
    assert Quote.model_validate_json(told.model_dump_json()) == told


def test_money_is_what_is_held_for_as_long_as_it_takes(table: Path, ledger: Ledger, home: Settings) -> None:
    request = document(table, resources={"workers": 2, "gpus_per_worker": 0.5}, budget={"time_s": 60, "memory_gb": 8})
    told = quoted(request, ledger, home, cpus=4)
    assert told.holding == Holding(cpus=4, gpus=1, memory_gb=8)
    assert told.wall_s is not None
    assert told.cpu_s is not None
    assert told.gpu_s is not None
    assert told.gb_s is not None
    assert told.money is not None
    assert told.used_cpu_s is not None
    assert told.cpu_s.expected == pytest.approx(4 * told.wall_s.expected)
    assert told.gpu_s.expected == pytest.approx(told.wall_s.expected)
    assert told.gb_s.high == pytest.approx(8 * told.wall_s.high)
    assert told.money.low == pytest.approx(told.wall_s.low / 3600 * (4 * 0.1 + 3.0 + 8 * 0.01))
    assert told.currency == "EUR"
    assert 0 < told.used_cpu_s.expected <= told.cpu_s.high
    free = quoted(document(table), ledger, home, rates=Rates(cpu_hour=0, gpu_hour=0, gb_hour=0))
    assert free.money is not None
    assert free.money.high == 0
    assert Rates.of(home).currency == home.currency


def test_what_earlier_requests_took_corrects_the_estimate(table: Path, ledger: Ledger, home: Settings) -> None:
    before = quoted(document(table), ledger, home).wall_s
    for version in range(1, 13):
        made(ledger, document(table, budget={"time_s": 120}), took_s=107.0, version=version)
    after = quoted(document(table), ledger, home)
    assert before is not None
    assert after.wall_s is not None
    assert after.n_past == 12
    assert "Corrected by 12 earlier requests" in after.basis
    assert after.wall_s.high - after.wall_s.low < before.high - before.low
    usual = quoted(document(table, budget={"time_s": 120}), ledger, home).wall_s
    assert usual is not None
    assert usual.low < 107 + 4 < usual.high  # the start of a process comes on top


def test_one_slow_request_moves_the_interval_and_many_become_it(table: Path, ledger: Ledger, home: Settings) -> None:
    ends = [quoted(document(table), ledger, home).wall_s]
    for version in range(1, 10):
        made(ledger, document(table), took_s=64.0, version=version)
        ends.append(quoted(document(table), ledger, home).wall_s)
    expected = [end.expected for end in ends if end is not None]
    assert expected == sorted(expected)
    assert expected[1] - expected[0] < (expected[-1] - expected[0]) / 2
    assert ends[-1] is not None
    assert ends[-1].low < 70 < ends[-1].high


@pytest.mark.parametrize(
    ("changed", "attempts"),
    [({"team": "risk"}, 1), ({"recipe": "tabular-fast"}, 1), ({"budget": {"time_s": 60, "trials": 9}}, 1), ({}, 2)],
    ids=["another team", "another recipe", "counted trials", "an interrupted one"],
)
def test_requests_of_another_kind_correct_nothing(
    changed: dict[str, Any], attempts: int, table: Path, ledger: Ledger, home: Settings
) -> None:
    before = quoted(document(table), ledger, home)
    made(ledger, document(table, **changed), took_s=20.0, attempts=attempts)
    assert quoted(document(table), ledger, home).wall_s == before.wall_s


def test_counted_trials_take_as_long_as_they_are_many_and_their_table_is_large(
    table: Path, tmp_path: Path, ledger: Ledger, home: Settings
) -> None:
    frame(20_000).to_parquet(tmp_path / "large.parquet", index=False)

    def fits(path: Path, trials: int) -> float:
        told = quoted(document(path, budget={"time_s": 3600, "trials": trials}), ledger, home)
        assert told.used_cpu_s is not None
        return told.used_cpu_s.expected

    assert fits(table, 10) < fits(table, 100) < fits(tmp_path / "large.parquet", 100)
    short = quoted(document(table, budget={"time_s": 30, "trials": 1000}), ledger, home)
    assert short.wall_s is not None
    assert short.promise_s is not None
    assert short.wall_s.high <= short.promise_s
    before = fits(table, 100)
    made(ledger, document(table), took_s=55.0, fold_s=9.0)
    assert fits(table, 100) > 2 * before  # by the trials of a timed search


def test_a_refit_takes_what_its_parents_members_take(
    table: Path, tmp_path: Path, ledger: Ledger, home: Settings
) -> None:
    made(ledger, document(table), took_s=55.0, fold_s=20.0)
    ledger.set_alias("growth.churn", "champion", 1, who="t", why="t")
    frame(1200).to_parquet(tmp_path / "more.parquet", index=False)

    def told(path: Path, making: str) -> Quote:
        return quoted(document(path, making=making, parent="growth.churn"), ledger, home)

    same, more = told(table, "refit").wall_s, told(tmp_path / "more.parquet", "refit").wall_s
    assert same is not None
    assert more is not None
    assert same.expected > 20.0  # two members of 20 s on two threads, and the rest
    assert more.expected > same.expected + 20
    assert "searches nothing" in told(table, "incremental").basis
    search = quoted(document(table), ledger, home).wall_s
    assert search is not None
    assert same.expected < search.expected


def test_segments_are_quoted_like_a_timed_search(table: Path, ledger: Ledger, home: Settings) -> None:
    told = quoted(document(table, segments={"by": "city"}, budget={"time_s": 60, "trials": 50}), ledger, home)
    assert told.wall_s is not None
    assert 45 < told.wall_s.expected <= 78


def test_the_place_in_the_queue_is_asked_for_with_what_is_held(table: Path, ledger: Ledger, home: Settings) -> None:
    asked = []

    def place(request: VariantRequest, holding: Holding, expected_s: float) -> Place:
        asked.append((request.team, holding.cpus, expected_s))
        return Place(position=3, eta_s=120, sentence="Behind two requests of team risk.")

    told = quoted(document(table), ledger, home, place=place)
    assert told.place is not None
    assert told.place.position == 3
    assert told.wall_s is not None
    assert asked == [("growth", 2, told.wall_s.expected)]
    assert quoted(document(table), ledger, home).place is None


def test_a_long_history_takes_no_more_statements(table: Path, ledger: Ledger, home: Settings) -> None:
    def statements() -> int:
        seen: list[str] = []
        listener = lambda *arguments: seen.append(arguments[2])  # noqa: E731
        event.listen(ledger._engine, "before_cursor_execute", listener)
        quoted(document(table), ledger, home)
        event.remove(ledger._engine, "before_cursor_execute", listener)
        return len(seen)

    made(ledger, document(table), took_s=55.0)
    few = statements()
    for version in range(2, 12):
        made(ledger, document(table), took_s=55.0, version=version)
    assert statements() == few <= 6


def test_the_history_is_the_same_on_postgresql(table: Path, home: Settings) -> None:
    postgres = server() or pytest.skip(MISSING)
    quotes = []
    with postgres.database() as name:
        for url in (home.ledger, postgres.url(name)):
            with Ledger.open(url) as ledger:
                for version in range(1, 4):
                    made(ledger, document(table), took_s=50.0 + version, version=version)
                quotes.append(quoted(document(table), ledger, home))
    assert quotes[0] == quotes[1]
    assert quotes[0].n_past == 3


def test_a_quote_imports_no_heavy_framework(table: Path, home: Settings) -> None:
    code = (
        "import sys; from factory.operate.quotes import quote_document; from factory.ledger import Ledger\n"
        "from factory.settings import Settings\n"
        f"settings = Settings(home={str(home.root)!r})\n"
        "with Ledger.open(settings.ledger) as ledger:\n"
        f"    told = quote_document({document(table)!r}, ledger=ledger, settings=settings)\n"
        "assert told.wall_s, told\n"
        "print(sorted({'torch', 'tensorflow', 'ray', 'mlflow', 'feast'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


# --- what would stop it --------------------------------------------------------------


def fields(told: Quote) -> dict[str, str]:
    return {problem.field: problem.message for problem in told.problems}


def problems(request: object, ledger: Ledger, home: Settings) -> dict[str, str]:
    return fields(quote_document(request, ledger=ledger, settings=home))


def test_all_problems_are_told_at_once(tmp_path: Path, ledger: Ledger, home: Settings) -> None:
    request = document(tmp_path / "absent.csv", families=["lightgmb"], budget={"time_s": -1}, colour="red")
    told = quote_document(request, ledger=ledger, settings=home)
    assert set(fields(told)) == {"families.lightgmb", "budget.time_s", "colour", "dataset.path"}
    assert told.wall_s is None
    assert "does not exist" in fields(told)["dataset.path"]


@pytest.mark.parametrize("request_", [None, 7, [], {}, {"recipe": "tabular-auto"}, {"dataset": {"path": 3}}])
def test_what_is_no_request_is_told_so(request_: object, ledger: Ledger, home: Settings) -> None:
    assert problems(request_, ledger, home)


def test_an_unknown_recipe_or_parent(table: Path, ledger: Ledger, home: Settings) -> None:
    assert "recipe" in problems(document(table, recipe="tabular-atuo"), ledger, home)
    told = quote_document(document(table, making="refit", parent="growth.chrun"), ledger=ledger, settings=home)
    assert "There is no variant" in fields(told)["parent"]
    assert told.wall_s is not None
    assert problems(document(table, making="cold", parent="growth.chrun"), ledger, home) == {}


def test_columns_that_the_table_lacks_are_told(table: Path, ledger: Ledger, home: Settings) -> None:
    dataset = {
        "path": str(table),
        "target": "churn",
        "weights": "weight",
        "types": {"agee": "numeric"},
        "drop": ["incme"],
        "keep": ["town"],
    }
    request = document(table, dataset=dataset, segments={"by": "region"}, gates={"slices": ["land"]})
    request["validation"] = {"kind": "time", "column": "day"}
    told = problems(request, ledger, home)
    assert set(told) == {
        "dataset.target",
        "dataset.weights",
        "dataset.types.agee",
        "dataset.drop",
        "dataset.keep",
        "segments.by",
        "gates.slices",
        "validation.column",
    }
    assert "Did you mean 'churned'?" in told["dataset.target"]
    assert "Columns: age, churned, city, income." in told["dataset.drop"]


def test_too_few_and_too_many_rows_are_told(tmp_path: Path, ledger: Ledger, home: Settings) -> None:
    frame(12).to_csv(tmp_path / "few.csv", index=False)
    assert "12 rows; at least 20" in problems(document(tmp_path / "few.csv"), ledger, home)["dataset.path"]
    frame(300).to_parquet(tmp_path / "many.parquet", index=False)
    small = home.model_copy(update={"max_rows": 299})
    assert "at most 299" in problems(document(tmp_path / "many.parquet"), ledger, small)["dataset.path"]


def test_uploads_entity_tables_and_far_files(tmp_path: Path, ledger: Ledger, home: Settings) -> None:
    digest = store_table(frame(), home)
    upload = {"upload": digest, "target": "churned", "scoring": str(tmp_path / "new.csv")}
    assert set(problems(document("", dataset=upload), ledger, home)) == {"dataset.scoring"}
    assert "no upload" in problems(document("", dataset=upload | {"upload": "0" * 64}), ledger, home)["dataset.upload"]
    far = quote_document(document("s3://bucket/t.parquet"), ledger=ledger, settings=home)
    assert far.problems == ()
    assert far.n_rows is None
    assert "not on this machine" in far.notes[0]
    assert far.wall_s is not None
    frame().to_csv(tmp_path / "labels.csv", index=False)
    entities = {"entities": str(tmp_path / "labels.csv"), "target": "churned", "feature_service": "customer_v1"}
    told = quote_document(document("", dataset=entities), ledger=ledger, settings=home)
    assert set(fields(told)) == {"dataset.timestamp"}
    assert "'customer_v1' was not looked at" in told.notes[0]


# --- the score to expect -------------------------------------------------------------


def test_nothing_is_known_of_the_first_of_its_kind(table: Path, ledger: Ledger, home: Settings) -> None:
    told = quoted(document(table), ledger, home)
    assert told.score is None
    assert told.score_basis == (
        "Nothing is known: of 0 earlier requests of the team for recipe 'tabular-auto', none had data like these."
    )
    other = pd.DataFrame({"x": np.arange(300.0), "y": np.arange(300.0) % 7, "z": ["a", "b"] * 150})
    made(ledger, document(table, dataset={"path": "x.csv", "target": "z"}), took_s=50, rows=other)
    assert quoted(document(table), ledger, home).score is None


def test_the_score_is_that_of_variants_of_like_data(table: Path, ledger: Ledger, home: Settings) -> None:
    for version, score in enumerate([0.80, 0.82, 0.84], start=1):
        made(ledger, document(table), took_s=50, score=score, version=version)
    made(ledger, document(table, team="risk"), took_s=50, score=0.6)
    told = quoted(document(table), ledger, home)
    assert told.score is not None
    assert (told.score.metric, told.score.n_requests, told.score.nearest) == ("roc_auc", 3, "growth.churn")
    assert told.score.distance < 0.01
    assert told.score.score.expected == pytest.approx(0.82, abs=0.005)
    assert told.score.score.low < 0.80
    assert 0.84 < told.score.score.high < 1
    assert told.score_basis.startswith("By 3 of 3 earlier requests")
    assert quoted(document(table, metric="neg_log_loss"), ledger, home).score is None


def test_the_more_is_known_the_narrower_is_the_score(table: Path, ledger: Ledger, home: Settings) -> None:
    widths = []
    for version in range(1, 9):
        made(ledger, document(table), took_s=50, score=0.82, version=version)
        told = quoted(document(table), ledger, home).score
        assert told is not None
        widths.append(told.score.high - told.score.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 1.5


def test_losses_of_a_regression_are_compared_as_ratios(tmp_path: Path, ledger: Ledger, home: Settings) -> None:
    rows = frame().assign(spend=np.random.default_rng(1).normal(100, 20, 400)).drop(columns="churned")
    rows.to_parquet(tmp_path / "spend.parquet", index=False)
    request = document("", dataset={"path": str(tmp_path / "spend.parquet"), "target": "spend"})
    for version, score in enumerate([-10.0, -14.4], start=1):
        made(ledger, request, took_s=50, rows=rows, score=score, version=version)
    told = quoted(request, ledger, home).score
    assert told is not None
    assert told.metric == "neg_root_mean_squared_error"
    assert told.score.expected == pytest.approx(-12.0, rel=0.01)
    assert told.score.low < -14.4 < -10.0 < told.score.high < 0


def test_of_data_that_are_far_away_the_same_variants_history_is_taken(ledger: Ledger, home: Settings) -> None:
    request = document("s3://bucket/t.parquet")
    made(ledger, request, took_s=50, score=0.8)
    told = quoted(request, ledger, home)
    assert told.score is not None
    assert told.score.score.expected == pytest.approx(0.8)
    assert quoted(request | {"name": "other"}, ledger, home).score is None


# --- how history corrects ------------------------------------------------------------

residuals = st.lists(st.floats(-20, 20), max_size=40)


@given(seen=residuals)
@settings(deadline=None, derandomize=True)
def test_a_corrected_spread_stays_in_order(seen: list[float]) -> None:
    told = Spread(8, 10, 14).corrected(seen)
    assert told.low <= told.mid <= told.high


@given(seen=residuals, more=st.floats(1, 7))
@settings(deadline=None, derandomize=True)
def test_a_case_above_what_is_expected_never_lowers_it(seen: list[float], more: float) -> None:
    prior = Spread(8, 10, 14)
    before, after = prior.corrected(seen), prior.corrected([*seen, more])
    assert after.mid >= before.mid - 1e-9 or prior.residual(before.mid) > more


@pytest.mark.parametrize(("n_past", "least"), [(0, 0.75), (5, 0.7), (40, 0.72)])
@pytest.mark.parametrize("off", [0.0, 0.5, -0.4])
def test_four_in_five_lie_within_the_interval_once_there_is_history(n_past: int, least: float, off: float) -> None:
    """Cases that are as spread as the prior says, but for a shift that only history can tell."""
    rng = np.random.default_rng(0)
    within = []
    for _ in range(400):
        cases = rng.normal(off, 1 / 1.2816, n_past + 1)
        told = Spread(8, 10, 12).corrected(cases[:-1].tolist())
        within.append(told.low <= 10 + 2 * cases[-1] <= told.high)
    shifted_without_history = off and not n_past
    assert np.mean(within) >= (0.6 if shifted_without_history else least)
    assert np.mean(within) <= 0.9
