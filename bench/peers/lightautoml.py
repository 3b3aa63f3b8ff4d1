"""LightAutoML's TabularAutoML with its defaults and its timeout."""

from __future__ import annotations

import pandas as pd
from lightautoml.automl.presets.tabular_presets import TabularAutoML
from lightautoml.tasks import Task

from bench.peers.job import Job, Predict, classes, run

TASKS = {"binary": "binary", "multiclass": "multiclass", "regression": "reg"}
METRICS = {"AUC": "auc", "log-loss": "crossentropy", "RMSE": "mse"}


def fit(train: pd.DataFrame, job: Job) -> Predict:
    """Search for the job's time."""
    search = TabularAutoML(
        task=Task(TASKS[job.task], metric=METRICS[job.metric]),
        timeout=job.budget_s,
        cpu_limit=job.cores,
        reader_params={"n_jobs": job.cores, "random_state": job.seed},
    )
    search.fit_predict(train, roles={"target": job.target}, verbose=0)
    labels = classes(train, job)
    # It numbers classes by how many rows they have; without a mapping the numbers are the labels' order.
    mapping = search.reader.class_mapping or {label: number for number, label in enumerate(labels)}

    def predict(rows: pd.DataFrame) -> pd.DataFrame:
        answer = search.predict(rows).data
        if not labels:
            return pd.DataFrame({"prediction": answer[:, 0]})
        if job.task == "binary":
            positive = next(label for label, number in mapping.items() if number == 1)
            other = next(label for label in labels if label != positive)
            return pd.DataFrame({positive: answer[:, 0], other: 1 - answer[:, 0]})
        return pd.DataFrame({label: answer[:, mapping[label]] for label in labels})

    return predict


if __name__ == "__main__":
    run(fit, packages=["lightautoml", "lightgbm", "catboost", "torch", "scikit-learn"])
