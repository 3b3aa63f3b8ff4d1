"""Show the whole way on bundled data: two requests, their gates, and answers over HTTP."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import httpx
import typer
import yaml

from factory.cli._console import ProgressLine, exit_code, leaderboard, out, outcome, table
from factory.cli._first_token import first_token
from factory.data.feature_store import apply
from factory.data.features import materialize
from factory.data.tables import write_table
from factory.errors import Conflict, ServiceFault
from factory.ledger import Ledger
from factory.operate.deployments import start_predictor, stop_predictor
from factory.operate.inprocess import InProcess
from factory.pipeline import Outcome, produce
from factory.search.metric import Metric
from factory.settings import Settings, load_settings
from factory.spec import RequestState

PLUGIN = typer.Typer()

MARK = "made-by-factory-demo"
TABLE_S, FEATURES_S = 25, 45
"""Wall seconds of the two requests: with both starts of Ray the demo stays under three minutes on two cores."""
CLIENT_S = 30.0


@PLUGIN.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the predictor running at the end.")] = False,
) -> None:
    """Show the whole way on bundled data: two requests, their gates, and answers over HTTP."""
    base = load_settings()
    base.prepare_home()
    settings = base.model_copy(update={"home": base.root / "demo", "serve_port": 0})
    _fresh(settings.root)
    with Ledger.open(settings.ledger) as ledger:
        _title("1. A table: is a tumour malignant? (scikit-learn's breast cancer data)")
        table_path, row = _breast_cancer(settings.root)
        tumour = _order(_table_request(table_path), settings, ledger)

        _title("2. An entity table joined with the Feast store: life expectancy in five years, by continent")
        report = apply(settings)
        out.print(f"Feature store: {len(report.changes)} objects of {report.repository} applied")
        entities = settings.feature_store / "data" / "entities" / "life_expectancy.parquet"
        life = _order(_features_request(entities), settings, ledger)
        views = materialize(settings)
        out.print(f"Online store: {', '.join(m.view for m in views)} filled")

        _title("3. Served: both variants behind one endpoint")
        predictor = start_predictor(settings)
        try:
            out.print(f"The predictor answers at {predictor.url}")
            token = first_token(ledger, by="factory demo") or ""
            for made in (tumour, life):
                ledger.reach(made.request_id, RequestState.SERVING, f"Served at {predictor.url}.")
            countries = [{"country": name} for name in ("Chile", "Germany", "Kenya")]
            calls: list[tuple[Outcome, dict[str, object]]] = [
                (tumour, {"dataframe_records": [row]}),
                (life, {"entities": countries}),
            ]
            for made, body in calls:
                _call(f"{predictor.url}/variants/{made.variants[0].name}/invocations", body, token)
        finally:
            if not keep:
                stop_predictor(settings)
    _next_steps(settings, keep=keep, token=token)


def _fresh(root: Path) -> None:
    """Empty the demo's own folder; a folder that the demo did not make is left alone."""
    if root.exists() and any(root.iterdir()):
        if not (root / MARK).is_file():
            raise Conflict(f"{str(root)!r} was not made by the demo.", hint="Move it away or set FACTORY_HOME.")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARK).touch()


def _breast_cancer(folder: Path) -> tuple[Path, dict[str, float]]:
    """Write scikit-learn's breast cancer data as CSV; return it and one of its rows."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True)
    frame = data.data.assign(diagnosis=data.target.map(dict(enumerate(data.target_names))))
    path = folder / "breast_cancer.csv"
    write_table(frame, path)
    return path, {name: float(value) for name, value in data.data.iloc[0].items()}


def _table_request(path: Path) -> dict[str, object]:
    return {
        "team": "clinic",
        "name": "tumour",
        "recipe": "tabular-auto",
        "dataset": {"path": str(path), "target": "diagnosis"},
        "budget": {"time_s": TABLE_S},
    }


def _features_request(entities: Path) -> dict[str, object]:
    return {
        "team": "atlas",
        "name": "life",
        "recipe": "tabular-fast",
        "dataset": {
            "entities": str(entities),
            "target": "life_expectancy_in_5_years",
            "feature_service": "country_v1",
            "drop": ["continent"],
        },
        "validation": {"kind": "time", "column": "event_timestamp"},
        "segments": {"by": "continent", "min_rows": 200},
        "budget": {"time_s": FEATURES_S},
    }


def _order(document: dict[str, object], settings: Settings, ledger: Ledger) -> Outcome:
    """Submit a request as its YAML file says, make it, and print what came of it."""
    path = settings.root / f"{document['name']}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    out.print(f"[dim]{path}[/dim]")
    out.print(path.read_text(encoding="utf-8"), markup=False)
    record = InProcess(ledger, settings).submit(document)
    with ProgressLine() as line:
        result = produce(record.id, ledger=ledger, settings=settings, listen=line)
    first = result.variants[0]
    leaderboard(result.made[0], Metric(first.metric, first.task))
    outcome(result)
    if result.state is not RequestState.REGISTERED:
        raise typer.Exit(exit_code(result.state))
    return result


def _call(url: str, body: dict[str, object], token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    answer = httpx.post(url, json=body, headers=headers, timeout=CLIENT_S, trust_env=False)
    if answer.status_code != httpx.codes.OK:
        raise ServiceFault(f"{url} answered {answer.status_code}: {answer.text[:300]}", hint="See the predictor's log.")
    shown = str(body) if len(str(body)) < 120 else str(body)[:117] + "..."
    rows = [("POST", url), ("body", shown), ("X-Variant", answer.headers["X-Variant"]), ("answer", answer.text.strip())]
    table("", ("", ""), rows)


def _title(text: str) -> None:
    out.print(f"\n[bold]{text}[/bold]\n")


def _next_steps(settings: Settings, *, keep: bool, token: str) -> None:
    _title("Next")
    home = f"FACTORY_HOME={settings.root}"
    out.print(f"  {home} factory variants list", markup=False)
    out.print(f"  {home} factory variants show clinic.tumour", markup=False)
    if keep:
        out.print(f"  export FACTORY_TOKEN={token}   # its admin token, shown only now", markup=False)
    out.print(f"  {home} factory deployments {'stop' if keep else 'start --port 8000'}", markup=False)
    out.print("  factory fit --train YOUR.csv --target COLUMN --budget 60s", markup=False)
