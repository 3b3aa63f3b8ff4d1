"""AutoGluon's TabularPredictor with one of its presets and its time limit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from autogluon.tabular import TabularPredictor

from bench.peers.job import Job, Predict, classes, run

METRICS = {"AUC": "roc_auc", "log-loss": "log_loss", "RMSE": "root_mean_squared_error"}


def fit(train: pd.DataFrame, job: Job) -> Predict:
    """Search for the job's time, then keep the models in memory."""
    predictor = TabularPredictor(
        label=job.target,
        problem_type=job.task,
        eval_metric=METRICS[job.metric],
        path=str(Path.cwd() / "models"),
        learner_kwargs={"random_state": job.seed},
        verbosity=1,
    ).fit(train, presets=job.option, time_limit=job.budget_s, num_cpus=job.cores, num_gpus=0)
    predictor.persist()
    labels = classes(train, job)

    def predict(rows: pd.DataFrame) -> pd.DataFrame:
        if not labels:
            return pd.DataFrame({"prediction": predictor.predict(rows).to_numpy()})
        # Classes with few rows are left out by it where the score allows that.
        probabilities: pd.DataFrame = predictor.predict_proba(rows)
        return probabilities.reindex(columns=labels, fill_value=0.0)

    return predict


if __name__ == "__main__":
    run(fit, packages=["autogluon.tabular", "lightgbm", "catboost", "xgboost-cpu", "torch", "scikit-learn"])
