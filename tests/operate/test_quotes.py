"""Quotes: what is told before anything is started, and what would stop a request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from factory.data.loading import store_table
from factory.ledger import Ledger
from factory.operate.quotes import Holding, Place, Quote, Rates, quote_document
from factory.operate.quotes.estimate import Size, _crew
from factory.settings import Settings
from factory.spec import VariantRequest
from tests.postgres import MISSING, server

from .quoted import document, frame, made, quoted

ROOT = Path(__file__).resolve().parents[2]


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


def test_a_large_table_leaves_memory_for_fewer_workers() -> None:
    """As the search itself will plan them."""
    crews = [_crew(size, cpus=4, memory_mb=8_000).workers for size in (None, Size(400, 4), Size(5_000_000, 20))]
    assert crews[0] == crews[1] == 4
    assert crews[2] < 4


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


def test_how_long_processes_took_to_start_tells_the_machines_pace(table: Path, ledger: Ledger, home: Settings) -> None:
    order = document(table, budget={"time_s": 10})
    unknown = quoted(order, ledger, home).wall_s
    made(ledger, document(table, budget={"time_s": 60, "trials": 9}), took_s=5.0, start_s=1.9)
    fast = quoted(order, ledger, home).wall_s
    for version in range(2, 4):
        made(ledger, document(table, budget={"time_s": 60, "trials": 9}), took_s=5.0, start_s=7.5, version=version)
    slow = quoted(order, ledger, home).wall_s
    assert unknown is not None
    assert fast is not None
    assert slow is not None
    assert unknown.low < fast.expected < unknown.expected < slow.expected
    assert fast.high - fast.low < unknown.high - unknown.low, "another kind of request, but the same machine"


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
