"""Small real variants: linear and constant members over two preparations of a mixed table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from factory.data.dataset import Dataset, from_frame
from factory.data.preparation import Preparation
from factory.families.base import FitContext, Sample, Shape
from factory.search.plan import family
from factory.spec import FileDataset, Task
from factory.variants.bundle import Bundle, Member
from factory.variants.inputs import input_columns


def mixed_frame(n_rows: int = 300, *, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, a flag, categories, dates, and a target that they explain partly."""
    generator = np.random.default_rng(seed)
    age = generator.integers(18, 80, n_rows)
    income = np.where(generator.random(n_rows) < 0.1, np.nan, generator.lognormal(10, 1, n_rows))
    city = generator.choice(["Bern", "Genf", "Zürich", None], n_rows)
    member = generator.random(n_rows) < 0.5
    since = pd.Timestamp("2020-01-01") + pd.to_timedelta(generator.integers(0, 1500, n_rows), unit="D")
    signal = 0.06 * (age - 50) + np.where(city == "Bern", 1.5, 0) + 0.8 * member + generator.normal(0, 1, n_rows)
    return pd.DataFrame(
        {
            "age": age,
            "income": income,
            "city": city,
            "member": member,
            "since": since,
            "churned": np.where(signal > 0.5, "yes", "no"),
            "spend": 20 * signal + 100,
            "grade": np.digitize(signal, [-1, 1]),
        }
    )


@dataclass(frozen=True)
class Made:
    """A bundle with the rows it was fitted on and rows it has not seen."""

    bundle: Bundle
    dataset: Dataset
    test: Dataset


def make(task: Task, *, families: tuple[str, ...] = ("linear", "constant"), n_rows: int = 300) -> Made:
    target = {Task.BINARY: "churned", Task.REGRESSION: "spend", Task.MULTICLASS: "grade"}[task]
    inputs = ["age", "income", "city", "member", "since"]
    dataset = from_frame(
        mixed_frame(n_rows)[[*inputs, target]], FileDataset(path="mixed.parquet", target=target, task=task)
    )
    half = n_rows // 2
    train, test = dataset.take(np.arange(half)), dataset.take(np.arange(half, n_rows))
    preparations, members = [], []
    context = FitContext(task=task, n_classes=len(dataset.classes), seed=0)
    for i, name in enumerate(families):
        rows = np.arange(half) if i == 0 else np.arange(0, half, 2)
        preparation = Preparation.fit(train.frame.iloc[rows], train.types, seed=0)
        sample = Sample(preparation.transform(train.frame.iloc[rows]), train.y[rows])
        parameters = family(name).portfolio(task, shape=Shape(len(rows)))[0].parameters
        model = family(name).fit(sample, validation=None, parameters=parameters, context=context)
        preparations.append(preparation)
        members.append(
            Member(family=name, model=model, preparation=i, weight=0.75 if i == 0 else 0.25 / (len(families) - 1))
        )
    if len(members) == 1:
        members = [Member(family=families[0], model=members[0].model, preparation=0, weight=1.0)]
    bundle = Bundle(
        task=task,
        classes=dataset.classes,
        columns=input_columns(dataset.frame, dataset.types),
        preparations=tuple(preparations),
        members=tuple(members),
        ignored=(target,),
        metadata={"seed": "0"},
    )
    return Made(bundle, train, test)


@pytest.fixture(scope="session")
def binary() -> Made:
    return make(Task.BINARY)


@pytest.fixture(scope="session")
def multiclass() -> Made:
    return make(Task.MULTICLASS)


@pytest.fixture(scope="session")
def regression() -> Made:
    return make(Task.REGRESSION)


@pytest.fixture(scope="session", params=[Task.BINARY, Task.MULTICLASS, Task.REGRESSION], ids=str)
def made(request: pytest.FixtureRequest) -> Made:
    return request.getfixturevalue(str(request.param))
