"""Upgrades: a ledger of every released schema, with real content, on each database."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, DateTime, MetaData, Table, create_engine, make_url
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

import factory.ledger
from factory.ledger import CanaryCounts, CanaryRecord, Ledger, ShadowCounts, schema
from factory.spec import RequestState

from .conftest import ANN, file_of

FIXTURES = Path(__file__).with_name("fixtures")
MIGRATIONS = Path(factory.ledger.__file__).with_name("migrations")
DUMPS = sorted(FIXTURES.glob("*.sql"))
MADE, FAILED = "r-20261124-150405-1zaaaa", "r-20261124-150500-00bbbb"


def old_ledger(dump: Path, url: str, *, change: str = "") -> None:
    """Put a ledger of an older schema, with its content, where none is."""
    path = file_of(url) if url.startswith("sqlite") else Path(":memory:")
    path.parent.mkdir(parents=True, exist_ok=True)
    source = sqlite3.connect(path)
    source.executescript(dump.read_text() + change)
    if not url.startswith("sqlite"):
        copy(source, url, dump.stem.removeprefix("schema_"))
    source.close()


def copy(source: sqlite3.Connection, url: str, revision: str) -> None:
    """Create a schema of a revision in PostgreSQL, and take the rows over."""
    source.row_factory = sqlite3.Row
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # rows come in any order
        tables = MetaData()
        tables.reflect(connection)
        for table in tables.sorted_tables:
            rows = [typed(table, dict(row)) for row in source.execute(f'SELECT * FROM "{table.name}"')]
            connection.execute(table.delete())
            if rows:
                connection.execute(table.insert(), rows)
    engine.dispose()


def typed(table: Table, row: dict[str, object]) -> dict[str, object]:
    """Return a row of SQLite with values as PostgreSQL's columns want them."""
    kinds = {JSON: json.loads, Boolean: bool, DateTime: lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC)}
    for column in table.columns:
        convert = next((c for kind, c in kinds.items() if isinstance(column.type, kind)), None)
        if convert is not None and row[column.name] is not None:
            row[column.name] = convert(row[column.name])
    return row


def test_migrations_lead_to_the_tables_of_the_schema(empty_url: str) -> None:
    with Ledger.open(empty_url) as ledger, ledger._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        assert compare_metadata(context, schema.metadata) == []


def test_head_is_the_last_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == schema.HEAD


@pytest.mark.parametrize("table", schema.metadata.sorted_tables, ids=lambda table: table.name)
def test_tables_are_understood_by_postgresql(table: schema.Table) -> None:
    assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=postgresql.dialect()))


def test_there_is_a_ledger_of_every_released_schema() -> None:
    revisions = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    assert {dump.stem.removeprefix("schema_") for dump in DUMPS} == revisions


@pytest.mark.parametrize("dump", DUMPS, ids=lambda path: path.stem)
def test_ledger_of_every_released_schema_is_upgraded_and_read(dump: Path, empty_url: str) -> None:
    old_ledger(dump, empty_url)
    with Ledger.open(empty_url) as ledger, ledger._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        assert compare_metadata(context, schema.metadata) == []
        record = ledger.request(MADE)
        assert record.state is RequestState.REGISTERED
        assert record.created == datetime(2026, 11, 24, 15, 16, 21, 364332, UTC)
        assert ledger.request(FAILED).error is not None
        assert [e.state.value for e in ledger.events(MADE)][-1] == "registered"
        assert [t.number for t in ledger.trials(MADE)] == [0, 1]
        assert ledger.alias("growth.churn", "champion") == 1
        assert ledger.variant("growth.churn", 1, seen_by="growth").request_id == MADE
        assert ledger.deployment("growth.churn")[0].version == 1
        past = ledger.past_search(MADE)
        assert [t.number for t in past.trials] == [0, 1]
        assert (past.traits is None) == (dump.stem == "schema_0001")
        assert {"growth", "risk"} <= {team.name for team in ledger.teams()}
        new = ledger.create_request(record.request, by=ANN)
        assert ledger.requests(limit=1)[0].id == new.id
        assert ledger.verify_events(new.id) is ledger.verify_audit() is None


def test_what_0003_adds_is_filled_in_from_the_documents(empty_url: str) -> None:
    change = f"""
UPDATE requests SET document = json_set(document, '$.priority', 'high', '$.budget', json('{{"memory_gb": 8.0}}'),
    '$.resources', json('{{"workers": 2, "gpus_per_worker": 0.5}}')) WHERE id = '{MADE}';
UPDATE trials SET cost_s = 1.5, recorded = '2026-10-31 23:59:59.000000' WHERE number = 0;
UPDATE trials SET cost_s = 2.5, recorded = '2026-11-01 00:00:00.000000' WHERE number = 1;
"""
    old_ledger(FIXTURES / "schema_0002.sql", empty_url, change=change)
    with Ledger.open(empty_url) as ledger:
        made, failed = ledger.request(MADE), ledger.request(FAILED)
        assert (made.priority, made.cpus, made.gpus, made.memory_gb) == ("high", 1, 1, 8)
        assert (failed.priority, failed.cpus, failed.gpus, failed.memory_gb) == ("normal", 1, 0, None)
        assert (made.door, made.submitted_by, made.preemptions) == (None, None, 0)
        assert [(t.name, t.created) for t in ledger.teams()] == [
            ("growth", made.created),
            ("risk", failed.created),
        ]
        assert [(u.team, u.trials, u.trial_s) for u in ledger.usage("2026-10")] == [("growth", 1, 1.5)]
        assert [(u.team, u.trials, u.trial_s) for u in ledger.usage("2026-11")] == [("growth", 1, 2.5)]


def test_events_of_older_releases_have_no_hash_and_the_chain_begins_after_them(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0002.sql", empty_url)
    with Ledger.open(empty_url) as ledger:
        assert {event.hash for event in ledger.events(MADE)} == {None}
        assert ledger.verify_events(MADE) is None
        ledger.note(MADE, "note", "The first that is hashed.")
        ledger.note(MADE, "note", "The second.")
        assert [event.hash is None for event in ledger.events(MADE)] == [True] * 6 + [False] * 2
        assert ledger.verify_events(MADE) is None
        with ledger._write() as connection:
            connection.execute(schema.events.update().where(schema.events.c.sequence == 7).values(hash=None))
        assert ledger.verify_events(MADE) == 7


def test_tokens_of_before_0005_may_call_what_their_scopes_let_them(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0004.sql", empty_url)
    with Ledger.open(empty_url) as ledger:
        assert {token.variants for token in ledger.tokens(revoked=True)} == {None}


def test_what_0005_knows_of_callers_is_read(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0005.sql", empty_url)
    with Ledger.open(empty_url) as ledger:
        known = {token.name: (token.scopes, token.variants) for token in ledger.tokens(team="shop")}
        assert known["checkout"] == (("predict",), "shop.score*")


def test_what_0006_knows_of_answers_is_read(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0006.sql", empty_url)
    noon = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
    with Ledger.open(empty_url) as ledger:
        (minute,) = ledger.served("minute", since=noon.replace(second=0))
        assert (minute.name, minute.version, minute.calls, minute.failed) == ("growth.churn", 1, 7, 1)
        assert sum(minute.latency) == 7
        assert ledger.canary_counts("growth.churn", 1, noon) == CanaryCounts(3, 1, 2, 1)


def test_what_0007_knows_of_changes_is_read(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0007.sql", empty_url)
    with Ledger.open(empty_url) as ledger:
        last, first = ledger.deployment_history("growth.churn")
        assert (first.as_, first.version, first.who, first.why) == (
            "champion",
            1,
            "person:ann",
            "Approved: Better by far.",
        )
        assert (last.as_, last.who, last.evidence["calls"]) == ("none", "predictor", 3)
        since = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
        assert ledger.shadow_counts("growth.churn", 1, since) == {1: ShadowCounts(3, 5, 4, 0, 0.0)}


def test_what_0008_knows_of_batches_is_read(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0008.sql", empty_url)
    with Ledger.open(empty_url) as ledger:
        [batch] = ledger.batches("growth")
        assert (batch.name, batch.wish.keep, batch.enabled) == ("growth.nightly", ("id",), True)
        assert batch.next_due == datetime(2026, 12, 1, 3, 30, tzinfo=UTC)
        assert batch.last is not None
        assert (batch.last.state, batch.last.rows, batch.last.variant) == ("done", 120, "growth.churn/1")


def test_what_0009_knows_of_bets_is_read(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0009.sql", empty_url)
    noon = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
    with Ledger.open(empty_url) as ledger:
        record = ledger.canary_record("growth.churn", 1, noon)
        assert (record.counts, len(record.bets)) == (CanaryCounts(5, 1, 3, 1), 10)
        assert record.bets[0] == 2.717297982402066


def test_a_canary_of_before_0009_has_no_bets_yet(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0008.sql", empty_url)
    noon = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
    with Ledger.open(empty_url) as ledger:
        assert ledger.canary_record("growth.churn", 1, noon) == CanaryRecord(CanaryCounts(3, 1, 2, 1))
        told = ledger.add_canary("growth.churn", 1, noon, CanaryCounts(calls=1), bet=lambda _: (1.0, 0.5))
        assert told == CanaryRecord(CanaryCounts(4, 1, 2, 1), (1.0, 0.5))
        assert told == ledger.canary_record("growth.churn", 1, noon)


def test_what_0004_knows_of_people_is_read(empty_url: str) -> None:
    old_ledger(FIXTURES / "schema_0004.sql", empty_url)
    with Ledger.open(empty_url) as ledger:
        approved, waiting = ledger.proposals("growth.churn")
        assert (approved.state, approved.decided_by, approved.evidence) == (
            "approved",
            "person:oidc|7",
            {"improvement": 0.3},
        )
        assert (waiting.state, waiting.wish.as_, waiting.wish.percent) == ("open", "canary", 10)
        assert ledger.end_sessions_of("oidc|7", by=ANN) == 1
