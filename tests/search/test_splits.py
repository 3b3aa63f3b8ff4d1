"""Splits: nothing on two sides, nothing lost, classes and groups and time where they belong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.data.dataset import Dataset, from_frame
from factory.errors import InvalidData, InvalidRequest, NotFound
from factory.search.groups import LEAST_JUDGED, MOST_DEALT, dealt, kept_aside
from factory.search.metric import Metric
from factory.search.splits import AUTO_FOLDS, Split, evaluation_share, folds, set_aside
from factory.spec import (
    AutoValidation,
    CrossValidation,
    FileDataset,
    GroupSplit,
    Holdout,
    Task,
    TimeSplit,
    Validation,
)

from .conftest import make_dataset, make_frame

KINDS: list[Validation] = [
    AutoValidation(),
    CrossValidation(folds=4),
    Holdout(share=0.3),
    TimeSplit(column="day", gap=5),
    GroupSplit(column="shop"),
]


SHOP = GroupSplit(column="shop")


def assert_sound(split: Split, n_rows: int, *, left_out: int = 0) -> None:
    """Both sides are there, sorted, disjoint, and together all rows but those left out on purpose."""
    both = np.concatenate([split.train, split.validation])
    assert len(split.train)
    assert len(split.validation)
    assert len(np.unique(both)) == len(both) == n_rows - left_out
    assert both.min() >= 0
    assert both.max() < n_rows
    for side in (split.train, split.validation):
        assert (np.diff(side) > 0).all()


def with_labels(counts: dict[str, int]) -> Dataset:
    labels = [label for label, n in counts.items() for _ in range(n)]
    frame = make_frame(len(labels)).assign(grade=labels)
    return make_dataset(Task.MULTICLASS if len(counts) > 2 else Task.BINARY, frame=frame.assign(flag=labels))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("task", list(Task))
def test_folds_and_the_rows_set_aside_are_sound(task: Task, kind: Validation) -> None:
    dataset = make_dataset(task)
    gap = kind.gap if isinstance(kind, TimeSplit) else 0
    made = folds(dataset, kind, seed=3)
    for split in [*made, set_aside(dataset, kind)]:
        assert_sound(split, len(dataset), left_out=gap)
    if len(made) > 1:
        validated = np.concatenate([split.validation for split in made])
        assert sorted(validated) == list(range(len(dataset)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_seed_decides(kind: Validation) -> None:
    dataset = make_dataset()

    def made(seed: int) -> list[list[int]]:
        return [part.validation.tolist() for part in folds(dataset, kind, seed=seed)]

    assert made(1) == made(1)
    assert (made(1) == made(2)) is isinstance(kind, TimeSplit)


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(2, 60), min_size=2, max_size=5).filter(lambda c: sum(c) >= 20),
    n_folds=st.integers(2, 8),
    share=st.floats(0.05, 0.8),
)
def test_classes_are_shared_out_evenly(counts: list[int], n_folds: int, share: float) -> None:
    dataset = with_labels({f"c{i}": n for i, n in enumerate(counts)})
    made = folds(dataset, CrossValidation(folds=n_folds), seed=0)
    in_folds = np.array([np.bincount(dataset.y[s.validation], minlength=len(counts)) for s in made])
    assert (in_folds.max(axis=0) - in_folds.min(axis=0) <= 1).all()
    assert np.ptp(in_folds.sum(axis=1)) <= 1
    (held,) = folds(dataset, Holdout(share=share), seed=0)
    for side in (held.train, held.validation):
        assert set(dataset.y[side]) == set(range(len(counts))), "each class stands on both sides"
    in_held = np.bincount(dataset.y[held.validation], minlength=len(counts))
    assert (np.abs(in_held - share * np.array(counts)) <= 1).all()


def test_two_classes_get_no_more_folds_than_the_rare_one_has_rows() -> None:
    made = folds(with_labels({"no": 50, "yes": 3}), CrossValidation(folds=5), seed=0)
    assert len(made) == 3
    dataset = with_labels({"no": 50, "yes": 3})
    assert all(set(dataset.y[split.validation]) == {0, 1} for split in made)
    assert len(folds(with_labels({"no": 50, "yes": 3, "maybe": 9}), CrossValidation(folds=5), seed=0)) == 5


@pytest.mark.parametrize("kind", [AutoValidation(), CrossValidation(folds=5)])
def test_every_fold_has_every_class_where_the_metric_needs_it(kind: Validation) -> None:
    dataset = with_labels({"no": 50, "yes": 3, "maybe": 9})
    auc, loss = Metric.of("roc_auc_ovr", Task.MULTICLASS), Metric.of("neg_log_loss", Task.MULTICLASS)
    made = folds(dataset, kind, seed=0, metric=auc)
    assert len(made) == 3
    assert all(auc.defined(dataset.y[split.validation], 3) for split in made)
    assert len(folds(dataset, kind, seed=0, metric=loss)) >= 5


def test_no_fold_is_empty() -> None:
    dataset = make_dataset(Task.REGRESSION, n_rows=20).take(np.arange(15))
    made = folds(dataset, CrossValidation(folds=20), seed=0)
    assert [len(split.validation) for split in made] == [1] * 15


@given(n_rows=st.integers(20, 200), n_folds=st.integers(2, 8), seed=st.integers(0, 99))
def test_large_and_small_targets_are_dealt_evenly(n_rows: int, n_folds: int, seed: int) -> None:
    y = np.random.default_rng(seed).standard_cauchy(n_rows)
    y[: n_rows // 3] = 0.0  # ties
    table = pd.DataFrame({"a": np.arange(n_rows) % 7, "y": y})
    data = from_frame(table, FileDataset(path="in memory", target="y", task="regression"))
    made = folds(data, CrossValidation(folds=n_folds), seed=seed)
    assert np.ptp([len(split.validation) for split in made]) <= 1
    fold = np.empty(n_rows, dtype=int)
    for k, split in enumerate(made):
        fold[split.validation] = k
    ordered = fold[np.argsort(data.y, kind="stable")]
    for at in (0, n_rows - n_folds):
        if np.all(np.diff(np.sort(data.y)[max(at - 1, 0) : at + n_folds + 1]) > 0):
            assert sorted(ordered[at : at + n_folds]) == list(range(n_folds))


@pytest.mark.parametrize("n_rows", [240, 12_000])
def test_auto_makes_the_same_folds_whatever_the_size(n_rows: int) -> None:
    """The race decides how many of them are used."""
    made = folds(make_dataset(n_rows=n_rows), AutoValidation(), seed=0)
    assert len(made) == AUTO_FOLDS


def test_groups_make_as_many_folds_as_there_are_groups_at_most() -> None:
    frame = make_frame(120)
    assert len(folds(make_dataset(frame=frame), GroupSplit(column="shop"), seed=0)) == AUTO_FOLDS
    few = make_dataset(frame=frame.assign(shop=[f"shop {i % 3}" for i in range(120)]))
    assert len(folds(few, GroupSplit(column="shop"), seed=0)) == 3


@pytest.mark.parametrize(
    ("n_rows", "share"), [(30, 0.5), (50, 0.5), (100, 0.25), (500, 0.2), (2_000, 0.1), (40_000, 0.05)]
)
def test_the_gate_gets_a_tenth_within_bounds_but_enough_of_a_small_table(n_rows: int, share: float) -> None:
    assert evaluation_share(n_rows) == pytest.approx(share)


@pytest.mark.parametrize("kind", [AutoValidation(), GroupSplit(column="shop")], ids=lambda kind: kind.kind)
def test_rows_for_the_gate_stay_unseen_when_the_table_grows_or_is_shuffled(kind: Validation) -> None:
    grown = make_dataset(Task.REGRESSION, n_rows=4_000)
    early = grown.take(np.arange(2_000))

    def held(dataset: Dataset) -> set[tuple[object, ...]]:
        frame = pd.concat([dataset.frame, dataset.context], axis=1)
        return set(frame.iloc[set_aside(dataset, kind).validation].astype(str).itertuples(index=False, name=None))

    learned = set(pd.concat([early.frame, early.context], axis=1).astype(str).itertuples(index=False, name=None))
    learned -= held(early)
    again = len(held(grown) & learned) / len(held(grown))
    assert again < 0.1, "what an earlier champion learned from is hardly among the rows of a later gate"
    shuffled = grown.take(np.random.default_rng(1).permutation(4_000))
    assert held(shuffled) == held(grown)


def test_rows_for_the_gate_stay_the_same_when_a_column_is_left_out_or_a_later_row_lacks_a_value() -> None:
    frame = make_frame(2_000).drop(columns=["flag", "grade"]).assign(age=np.arange(2_000) % 70)

    def held(rows: pd.DataFrame, *drop: str) -> np.ndarray:
        dataset = from_frame(rows, FileDataset(path="made.parquet", target="amount", drop=drop))
        return set_aside(dataset, AutoValidation()).validation

    before = held(frame)
    assert np.array_equal(held(frame, "city", "age"), before)
    assert np.array_equal(held(frame.assign(tags=[["a"]] * 2_000), "tags"), held(frame.assign(tags="['a']"), "tags"))
    later = frame.assign(age=frame["age"].where(frame.index < 1_990))
    assert len(np.setdiff1d(held(later), before)) <= 5


def test_equal_rows_stay_together_unless_most_rows_have_a_twin() -> None:
    frame = make_frame(400)
    doubled = make_dataset(Task.REGRESSION, frame=pd.concat([frame, frame.iloc[:150]], ignore_index=True))
    split = set_aside(doubled, AutoValidation())
    held = set(split.validation.tolist())
    parted = [i for i in range(150) if (i in held) != (400 + i in held)]
    assert len(parted) <= 1, "the share may end between two twins, and only there"
    few = make_dataset(Task.REGRESSION, frame=pd.concat([frame.iloc[:4]] * 100, ignore_index=True))
    assert len(set(set_aside(few, AutoValidation()).validation % 4)) == 4


def test_time_validates_on_the_latest_rows_after_the_gap() -> None:
    dataset = make_dataset()
    day = dataset.column("day").to_numpy()
    for split in (*folds(dataset, TimeSplit(column="day", gap=7), seed=0), set_aside(dataset, KINDS[3])):
        assert day[split.train].max() < day[split.validation].min()
    (split,) = folds(dataset, TimeSplit(column="day", gap=7), seed=0)
    between = (day > day[split.train].max()) & (day < day[split.validation].min())
    assert between.sum() == 7


def test_groups_never_stand_on_two_sides() -> None:
    dataset = make_dataset()
    shop = dataset.column("shop").to_numpy()
    made = folds(dataset, GroupSplit(column="shop"), seed=0)
    for split in (*made, set_aside(dataset, GroupSplit(column="shop"))):
        assert not set(shop[split.train]) & set(shop[split.validation])
    assert max(len(s.validation) for s in made) < 2 * min(len(s.validation) for s in made)


def test_what_cannot_be_split_is_refused() -> None:
    frame = make_frame(60)
    dataset = make_dataset(frame=frame.assign(shop="one"))
    with pytest.raises(InvalidRequest, match=r"validation.gap: 40 leaves 8 of 60 rows"):
        folds(dataset, TimeSplit(column="day", gap=40), seed=0)
    with pytest.raises(InvalidRequest, match="60 rows have 1 group in 'shop'; at least 2 are needed"):
        folds(dataset, GroupSplit(column="shop"), seed=0)
    two = make_dataset(frame=frame.assign(shop=np.resize(["one", "two"], 60)))
    with pytest.raises(InvalidRequest, match="60 rows have 2 groups in 'shop'; at least 3 are needed"):
        set_aside(two, GroupSplit(column="shop"))
    with pytest.raises(NotFound, match=r"no column 'dya'. Did you mean 'day'\?"):
        set_aside(dataset, TimeSplit(column="dya"))
    gaps = frame.assign(day=frame["day"].where(frame.index > 1, pd.NaT))
    with pytest.raises(InvalidData, match="2 of 60 rows have no time in 'day'"):
        set_aside(make_dataset(frame=gaps), TimeSplit(column="day"))


def grouped(sizes: list[int], *, task: Task = Task.REGRESSION) -> Dataset:
    """Return rows of groups of these sizes; ``shop`` names them by their position."""
    frame = make_frame(sum(sizes)).assign(shop=[f"shop {i}" for i, n in enumerate(sizes) for _ in range(n)])
    return make_dataset(task, frame=frame)


def gate_of(dataset: Dataset) -> dict[str, int]:
    """Return the groups that are kept for the gate with their rows."""
    shops = dataset.column("shop").iloc[set_aside(dataset, GroupSplit(column="shop")).validation]
    return dict(shops.value_counts())


@pytest.mark.parametrize("place", [0, 5, 60])
def test_a_group_that_is_most_of_the_table_never_judges(place: int) -> None:
    """Wherever its name's hash puts it; half of the other groups' rows stay with the search."""
    sizes = [1] * 100
    sizes.insert(place, 900)
    held = gate_of(grouped(sizes))
    assert set(held.values()) == {1}
    assert 45 <= sum(held.values()) <= 50


def test_groups_of_any_size_make_up_about_the_share() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        sizes = np.ceil(generator.lognormal(2.5, 1.2, 80)).astype(int).tolist()
        dataset = grouped(sizes)
        wanted = evaluation_share(len(dataset)) * len(dataset)
        assert 0.9 * wanted <= sum(gate_of(dataset).values()) <= 2 * wanted


@pytest.mark.parametrize("sizes", [[40, 40, 40], [300, 320, 310, 305], [5_000, 6_000, 7_000]])
def test_where_all_groups_are_large_the_smallest_judges(sizes: list[int]) -> None:
    dataset = grouped(sizes)
    held = gate_of(dataset)
    assert list(held.values()) == [min(sizes)]
    left = dataset.take(set_aside(dataset, GroupSplit(column="shop")).train)
    assert folds(left, GroupSplit(column="shop"), seed=0)


@pytest.mark.parametrize(
    ("sizes", "n_kept"),
    [([5_000] * 30, 3), ([500] * 200, 8), ([100] * 1_000, 18), ([60_000, *[1_500] * 40], 8)],
    ids=["few large", "of middle size", "small", "one huge"],
)
def test_several_groups_judge_where_a_tenth_of_the_rows_has_them(sizes: list[int], n_kept: int) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)
    names = np.array([f"shop {i}" for i in range(len(sizes))])
    held = kept_aside(names, group, evaluation_share(len(group)), column="shop")
    assert len(np.unique(group[held])) == n_kept


def test_too_little_beside_one_group_is_refused() -> None:
    message = r"group 'shop 0' has 970 of 1,000 rows in 'shop'; the 30 rows of other groups are too few"
    with pytest.raises(InvalidRequest, match=message) as refused:
        gate_of(grouped([970, *[1] * 30]))
    assert [(d.field, d.message) for d in refused.value.details] == [
        ("validation.column", "group 'shop 0' has 970 of 1,000 rows")
    ]


@pytest.mark.parametrize(
    ("sizes", "n_held"),
    [([300, 300, 300, 10], 300), ([400, 30, 30, 5, 400], 35), ([2_000, 2_000, *[3] * 12], 21)],
    ids=["one instead", "one more", "several"],
)
def test_a_tiny_group_beside_large_ones_does_not_judge_alone(sizes: list[int], n_held: int) -> None:
    dataset = grouped(sizes)
    held = sum(gate_of(dataset).values())
    assert held >= n_held >= LEAST_JUDGED
    assert folds(dataset.take(set_aside(dataset, SHOP).train), SHOP, seed=0)


@pytest.mark.parametrize("sizes", [[400, 400, 5], [5_000, 5_000, 3, 3, 3]])
def test_a_few_large_groups_of_which_none_can_be_spared_are_refused(sizes: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="no whole groups make up 20 rows of the other half"):
        gate_of(grouped(sizes))


def test_the_groups_kept_aside_stay_mostly_the_same_when_groups_grow_and_come() -> None:
    generator = np.random.default_rng(3)
    sizes = np.ceil(generator.lognormal(2.5, 1.0, 120)).astype(int)
    early, late = gate_of(grouped(sizes.tolist())), gate_of(grouped([*(2 * sizes).tolist(), *sizes[:30].tolist()]))
    known = {shop: rows for shop, rows in late.items() if int(shop.removeprefix("shop ")) < 120}
    learned = sum(rows for shop, rows in known.items() if shop not in early)
    assert learned <= 0.25 * sum(late.values()), "of the later gate, hardly anything had been learned from"


AUC = Metric.of("roc_auc", Task.BINARY)


def labelled(positives: list[tuple[int, int]]) -> Dataset:
    """Return rows of groups; of each so many rows, of which so many are of the second class."""
    flag = np.concatenate([np.repeat(["yes", "no"], [n_yes, n - n_yes]) for n, n_yes in positives])
    frame = make_frame(len(flag)).assign(
        flag=flag, shop=np.repeat([f"shop {i}" for i in range(len(positives))], [n for n, _ in positives])
    )
    return make_dataset(frame=frame)


def test_groups_are_dealt_so_that_folds_are_alike_in_classes_and_size() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(5, 40, 90)
    dataset = labelled([(n, generator.binomial(n, q)) for n, q in zip(sizes, generator.beta(0.3, 2, 90), strict=True)])
    rate, each = dataset.y.mean(), len(dataset) / AUTO_FOLDS
    for seed in range(5):
        made = folds(dataset, SHOP, seed=seed, metric=AUC)
        assert len(made) == AUTO_FOLDS
        for split in made:
            assert dataset.y[split.validation].mean() == pytest.approx(rate, rel=0.25)
            assert len(split.validation) == pytest.approx(each, rel=0.15)


def test_groups_are_dealt_so_that_folds_are_alike_in_their_targets() -> None:
    dataset = grouped([10] * 80)
    dataset.y[:] = np.repeat(np.random.default_rng(1).normal(size=80), 10)
    means = [dataset.y[split.validation].mean() for split in folds(dataset, SHOP, seed=0)]
    assert np.std(means) < 0.5 * dataset.y.std() / np.sqrt(10), "of random folds it were about the whole of that"


def test_very_many_groups_are_dealt_in_bundles_that_stay_whole_and_leave_folds_alike() -> None:
    generator = np.random.default_rng(2)
    n_groups = 2 * MOST_DEALT
    sizes = np.append(generator.integers(1, 4, n_groups - 1), 9_000)
    group = generator.permutation(np.repeat(np.arange(n_groups), sizes))
    strata = (generator.random(n_groups) < 0.02).astype(np.int64)[group]
    fold = dealt(group, strata, n_folds=5, seed=0)
    assert len(np.unique(group * 5 + fold)) == n_groups, "no group stands in two folds"
    shares = np.array([(fold == k).mean() for k in range(5)])
    rates = np.array([strata[fold == k].mean() for k in range(5)])
    assert shares == pytest.approx(0.2, rel=0.01)
    assert rates == pytest.approx(strata.mean(), rel=0.02)
    assert np.array_equal(fold, dealt(group, strata, n_folds=5, seed=0))


def test_folds_of_groups_are_no_more_than_the_groups_of_a_class() -> None:
    dataset = labelled([*[(20, 0)] * 30, *[(20, 20)] * 3])
    made = folds(dataset, SHOP, seed=0, metric=AUC)
    assert len(made) == 3
    assert sorted(np.concatenate([split.validation for split in made])) == list(range(len(dataset)))
    assert all(set(dataset.y[split.validation]) == {0, 1} for split in made)


def test_folds_that_the_metric_is_not_defined_on_are_left_out_and_their_rows_train() -> None:
    frame = make_frame(200).assign(shop=[f"shop {i // 10}" for i in range(200)])
    frame["grade"] = np.where(np.arange(200) < 30, "rare", np.where(np.arange(200) % 2, "odd", "even"))
    dataset = make_dataset(Task.MULTICLASS, frame=frame)
    auc, loss = Metric.of("roc_auc_ovr", Task.MULTICLASS), Metric.of("neg_log_loss", Task.MULTICLASS)
    assert len(folds(dataset, SHOP, seed=0, metric=loss)) == AUTO_FOLDS
    made = folds(dataset, SHOP, seed=0, metric=auc)
    assert len(made) == 3
    for split in made:
        assert_sound(split, 200)
        assert set(dataset.y[split.validation]) == {0, 1, 2}


def test_a_group_that_is_most_of_the_table_validates_nothing() -> None:
    made = folds(labelled([(900, 300), *[(10, 4)] * 10]), SHOP, seed=0, metric=AUC)
    assert len(made) == AUTO_FOLDS - 1
    assert max(len(split.validation) for split in made) <= 30


@pytest.mark.parametrize("positives", [[(40, 20), (40, 0), (40, 0)], [(40, 0), (40, 40)]])
def test_a_class_of_one_group_only_is_refused(positives: list[tuple[int, int]]) -> None:
    message = r"the groups of 'shop' cannot be dealt to folds .*'yes' in 1 group"
    with pytest.raises(InvalidData, match=message) as refused:
        folds(labelled(positives), SHOP, seed=0, metric=AUC)
    assert [detail.field for detail in refused.value.details] == ["validation.column"]


MONTHS = pd.period_range("2019-01", periods=60, freq="M").strftime("%b %Y")
"""'Jan 2019' to 'Dec 2023', which the alphabet would put into another order."""


def monthly(**reference: object) -> Dataset:
    frame = make_frame(240).drop(columns=["grade", "amount", "day"]).assign(month=np.resize(MONTHS, 240))
    return from_frame(frame, FileDataset.model_validate({"path": "made.parquet", "target": "flag"} | reference))


@pytest.mark.parametrize("reference", [{}, {"drop": ("month",)}], ids=["a feature", "left out"])
def test_text_is_no_time(reference: dict[str, object]) -> None:
    dataset, kind = monthly(**reference), TimeSplit(column="month")
    for split in (lambda: set_aside(dataset, kind), lambda: folds(dataset, kind, seed=0)):
        with pytest.raises(InvalidData, match="'month' holds text, such as 'Jan 2019' or 'Feb 2019'") as refused:
            split()
        assert [detail.field for detail in refused.value.details] == ["validation.column"]
        assert "dataset.types.month: datetime" in refused.value.hint


@pytest.mark.parametrize("reference", [{}, {"drop": ("month",)}], ids=["a feature", "left out"])
def test_names_of_months_are_dates_where_the_request_says_so(reference: dict[str, object]) -> None:
    dataset = monthly(types={"month": "datetime"}, **reference)
    month = dataset.column("month").to_numpy()
    assert (month.min(), month.max()) == (np.datetime64("2019-01-01"), np.datetime64("2023-12-01"))
    (split,) = folds(dataset, TimeSplit(column="month"), seed=0)
    assert month[split.train].max() < month[split.validation].min()


@pytest.mark.parametrize("step", [np.arange(60), np.arange(60) / 4, np.arange(60) > 40], ids=lambda s: str(s.dtype))
def test_numbers_are_an_order_in_time(step: np.ndarray) -> None:
    dataset = make_dataset(frame=make_frame(60).assign(day=step))
    (split,) = folds(dataset, TimeSplit(column="day"), seed=0)
    times = dataset.column("day").to_numpy()
    assert times[split.train].max() < times[split.validation].min()


@pytest.mark.parametrize("gap", [0, 9])
def test_the_rows_of_a_moment_stand_on_one_side(gap: int) -> None:
    frame = make_frame(200)
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(200)[::-1] // 17, unit="D")
    dataset = make_dataset(frame=frame)
    kind = TimeSplit(column="day", gap=gap)
    for split in (*folds(dataset, kind, seed=0), set_aside(dataset, kind)):
        days = dataset.column("day").to_numpy()
        assert days[split.train].max() < days[split.validation].min()
        n_left_out = 200 - len(split.train) - len(split.validation)
        assert gap <= n_left_out < gap + 17
        assert not set(days[split.train]) & set(days[np.setdiff1d(np.arange(200), split.train)])
    two = make_dataset(frame=frame.assign(day=np.where(np.arange(200) < 50, frame["day"].min(), frame["day"].max())))
    (split,) = folds(two, TimeSplit(column="day"), seed=0)
    assert (len(split.train), len(split.validation)) == (50, 150)
    with pytest.raises(InvalidRequest, match="200 rows have 1 moment in 'day'; at least 3 are needed"):
        set_aside(make_dataset(frame=frame.assign(day=frame["day"].min())), TimeSplit(column="day"))


def test_so_many_moments_stay_as_later_cuts_need() -> None:
    """One to learn from, one to choose by, one to judge by; by rows alone the cut would leave one."""
    frame = make_frame(200)
    days = np.select([np.arange(200) < 10, np.arange(200) < 20], [0, 1], 2)
    dataset = make_dataset(frame=frame.assign(day=pd.Timestamp("2024-01-01") + pd.to_timedelta(days, unit="D")))
    kind = TimeSplit(column="day")
    kept = set_aside(dataset, kind)
    assert (len(kept.train), len(kept.validation)) == (20, 180)
    (split,) = folds(dataset.take(kept.train), kind, seed=0)
    assert (len(split.train), len(split.validation)) == (10, 10)
    two = dataset.take(kept.train)
    with pytest.raises(InvalidRequest, match="20 rows have 2 moments in 'day'; at least 3 are needed"):
        set_aside(two, kind)
