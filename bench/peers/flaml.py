"""FLAML with its defaults, its time budget and one seed."""

from __future__ import annotations

import pandas as pd
from flaml import AutoML

from bench.peers.job import Job, Predict, run

METRICS = {"AUC": "roc_auc", "log-loss": "log_loss", "RMSE": "rmse"}


def fit(train: pd.DataFrame, job: Job) -> Predict:
    """Search for the job's time."""
    regression = job.task == "regression"
    search = AutoML()
    search.fit(
        X_train=train.drop(columns=job.target),
        y_train=train[job.target],
        task="regression" if regression else "classification",
        metric=METRICS[job.metric],
        time_budget=job.budget_s,
        n_jobs=job.cores,
        seed=job.seed,
        verbose=0,
    )

    def predict(rows: pd.DataFrame) -> pd.DataFrame:
        if regression:
            return pd.DataFrame({"prediction": search.predict(rows)})
        return pd.DataFrame(search.predict_proba(rows), columns=[str(label) for label in search.classes_])

    return predict


if __name__ == "__main__":
    run(fit, packages=["flaml", "lightgbm", "xgboost", "catboost", "scikit-learn"])
