"""One row over HTTP against ``mlflow models serve``, BentoML, LitServe and MLServer, each with the same two models.

A LightGBM booster and a linear model of scikit-learn.  Each server runs alone,
with one worker, and the same closed-loop client (wrk) calls it with one row.
``python -m bench.peers.install bentoml litserve mlserver`` installs them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import small_variant
from bench.claim import bare_parser
from bench.factory_run import bundle_of, newest
from bench.peers import SERVERS, python_of
from bench.peers.install import installed
from bench.peers.served_model import PATH
from bench.record import WORK, save
from bench.served import Target, measured, one_row, predictor
from bench.serving_chart import draw_peers
from factory.operate.ports import free_port
from factory.search import plan

FOLDER = WORK / "serving_peers"
MODELS = {"lightgbm": "lightgbm", "linear": "scikit-learn"}
"""Family of our variant, and the framework that the others answer with."""
OURS, MLFLOW = "factory", "mlflow"
CLIENTS = (1, 16)
SECONDS = 15
START_S = 120.0
HERE = Path(__file__).resolve().parent / "peers"

COLUMNS = {
    "model": "model",
    "system": "system",
    "clients": "clients",
    "good_a_second": "answers a second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "worst_ms": "worst ms",
    "failed": "failed",
    "met": "met",
}
NOTE = (
    f"wrk, one row of {small_variant.N_COLUMNS} numbers a call, {SECONDS} s each after a warm-up. One worker each, "
    "ours behind HAProxy with tokens, checks of types and columns, counts and the log of predictions, the others with "
    "what they do by default. The LightGBM model is the variant's own trees; scikit-learn's is a ridge regression on "
    "standardised columns, ours the family `linear` without splines. Both of ours average eight folds. Met: more "
    "answers a second and lower p50 and p99 than each."
)


@dataclass(frozen=True)
class Made:
    """The two models of one kind.

    Attributes:
        home: With our variant, ``bench.served``.
        file: Of the model that the others answer with.
        mlflow: Folder of the same as an MLflow model.
    """

    home: Path
    file: Path
    mlflow: Path


def main() -> int:
    """Measure all; return 1 where another one is better."""
    arguments = bare_parser(__doc__, quick="two seconds each")
    arguments.add_argument("--systems", nargs="+", choices=(MLFLOW, *SERVERS), default=(MLFLOW, *SERVERS))
    chosen = arguments.parse_args()
    if missing := [name for name in chosen.systems if name in SERVERS and not installed(name)]:
        print(f"Not installed: {', '.join(missing)}; python -m bench.peers.install {' '.join(missing)}")
        return 1
    seconds = 2 if chosen.quick else SECONDS
    rows = []
    for family, framework in MODELS.items():
        made = make(family, FOLDER / family)
        with predictor(FOLDER / family / "ours", home=made.home) as (_, url, token):
            of_model = measured(OURS, one_row(url, token), FOLDER, clients=CLIENTS, seconds=seconds)
        for system in chosen.systems:
            with running(system, made, framework) as target:
                of_model += measured(system, target, FOLDER, clients=CLIENTS, seconds=seconds)
        judge(of_model)
        rows += [{"model": framework, **row} for row in of_model]
    draw = partial(draw_peers, ours=OURS)
    save("serving_peers", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1, draw=draw)
    return 0 if all(row["met"] for row in rows) else 1


def make(family: str, folder: Path) -> Made:
    """Make our variant, and the model for the others."""
    shutil.rmtree(folder, ignore_errors=True)
    home = folder / "home"
    small_variant.make_variant(home, folder, name="served", family=family)
    if family == "lightgbm":
        import mlflow.lightgbm

        came = newest(home)
        assert came is not None
        members = bundle_of(came.variants[0], home).members
        # One booster that does the work of all: a variant may be a bag.
        merged: Any = plan.family(family).merge([member.model for member in members])
        merged.booster.save_model(str(folder / "model.txt"))
        mlflow.lightgbm.save_model(merged.booster, str(folder / "mlflow"))
        return Made(home, folder / "model.txt", folder / "mlflow")
    import mlflow.sklearn

    table = pd.read_parquet(folder / "train.parquet")
    pipeline = make_pipeline(StandardScaler(), Ridge()).fit(table[list(small_variant.NAMES)].to_numpy(), table["y"])
    joblib.dump(pipeline, folder / "model.joblib")
    mlflow.sklearn.save_model(pipeline, str(folder / "mlflow"))
    return Made(home, folder / "model.joblib", folder / "mlflow")


def judge(rows: list[dict[str, Any]]) -> None:
    """Say of each row of another system whether ours is better."""
    ours = {row["clients"]: row for row in rows if row["system"] == OURS}
    for row in rows:
        own = ours[row["clients"]]
        better = own["good_a_second"] > row["good_a_second"] and all(own[k] < row[k] for k in ("p50_ms", "p99_ms"))
        row["met"] = bool(row["system"] == OURS or better)


# --- the others ---------------------------------------------------------------------------

_ROW = [0.25 * i - 1 for i in range(small_variant.N_COLUMNS)]


@contextmanager
def running(system: str, made: Made, framework: str) -> Iterator[Target]:
    """Run another server; yield the call of one row."""
    port, folder = free_port(0), made.home.parent / f"run-{system}"
    folder.mkdir()
    command, path, body = _how(system, made, framework, port=port, folder=folder)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {PATH: str(made.file), "PATH": programs, "BENTOML_DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    own["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "true"  # the model was made here a moment ago
    environment = os.environ | own
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE, env=environment, start_new_session=True)
    target = Target(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {})
    try:
        deadline = time.monotonic() + START_S
        while not _answers(target):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.5)
        yield target
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _how(
    system: str, made: Made, framework: str, *, port: int, folder: Path
) -> tuple[list[str], str, Mapping[str, Any]]:
    """Return a server's command, its route and the body of one row."""
    rows = {"rows": [_ROW]}
    if system == MLFLOW:
        program = str(Path(sys.executable).with_name("mlflow"))
        options = ["-m", str(made.mlflow), "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port), "-w", "1"]
        split = {"columns": list(small_variant.NAMES), "data": [_ROW]}
        return [program, "models", "serve", *options], "/invocations", {"dataframe_split": split}
    python = str(python_of(system))
    if system == "bentoml":
        options = ["serve", "bento_server:Served", "--host", "127.0.0.1", "--port", str(port)]
        return [python, "-m", "bentoml", *options], "/predict", rows
    if system == "litserve":
        return [python, "lit_server.py", str(port)], "/predict", rows
    kind = "mlserver_lightgbm.LightGBMModel" if framework == "lightgbm" else "mlserver_sklearn.SKLearnModel"
    ports = {name: free_port(0) for name in ("grpc_port", "metrics_port")}
    settings = {"host": "127.0.0.1", "http_port": port, "parallel_workers": 0, **ports}
    (folder / "settings.json").write_text(json.dumps(settings))
    about = {"name": "served", "implementation": kind, "parameters": {"uri": str(made.file)}}
    (folder / "model-settings.json").write_text(json.dumps(about))
    tensor = {"name": "x", "shape": [1, len(_ROW)], "datatype": "FP64", "data": _ROW}
    program = str(python_of(system).with_name("mlserver"))
    return [program, "start", str(folder)], "/v2/models/served/infer", {"inputs": [tensor]}


def _answers(target: Target) -> bool:
    request = urllib.request.Request(target.url, target.body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
