"""H2O AutoML with its defaults, in a JVM of its own that listens on the loopback only."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import h2o
import pandas as pd
from h2o.automl import H2OAutoML

from bench.peers.job import Job, Predict, classes, run

METRICS = {"AUC": "AUC", "log-loss": "logloss", "RMSE": "RMSE"}


def start(cores: int) -> None:
    """Start the JVM on a free port, with H2O's default share of the memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    h2o.init(
        ip="127.0.0.1",
        port=port,
        name=f"bench-{os.getpid()}",
        nthreads=cores,
        ice_root=str(Path.cwd()),
        bind_to_localhost=True,
        strict_version_check=False,
    )
    h2o.no_progress()


def fit(train: pd.DataFrame, job: Job) -> Predict:
    """Start H2O, hand the rows over, and search for the job's time."""
    start(job.cores)
    rows = h2o.H2OFrame(train)
    names = [name for name in train.columns if name != job.target]
    if all(rows.types[name] == "string" for name in names):
        for name in names:
            rows[name] = rows[name].asfactor()
    if job.task != "regression":
        rows[job.target] = rows[job.target].asfactor()
    types = {name: rows.types[name] for name in names}
    search = H2OAutoML(
        max_runtime_secs=job.budget_s,
        seed=job.seed,
        sort_metric=METRICS[job.metric],
        stopping_metric=METRICS[job.metric],
    )
    search.train(x=names, y=job.target, training_frame=rows)
    leader = search.leader
    labels = classes(train, job)

    def predict(frame: pd.DataFrame) -> pd.DataFrame:
        handed = h2o.H2OFrame(frame, column_types=types)
        answer: pd.DataFrame = leader.predict(handed).as_data_frame(use_multi_thread=False)
        h2o.remove(handed)
        if not labels:
            return answer[["predict"]].rename(columns={"predict": "prediction"})
        # H2O puts a "p" before a label that is a number.
        found = {label: answer[label] if label in answer else answer[f"p{label}"] for label in labels}
        return pd.DataFrame(found)

    return predict


if __name__ == "__main__":
    run(fit, packages=["h2o"])
    h2o.cluster().shutdown()
    sys.stdout.flush()
