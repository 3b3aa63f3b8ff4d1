"""Played through: nothing is lost, nobody starves, and teams that always have work get the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.operate.admission import MOST_PREEMPTIONS, Capacity, Priority, Waiting, decide, longest_wait_s
from factory.spec import Quota
from factory.testing.cluster_day import HOUR_S, Course, Crew, Day, Job, Policy, busy_day, fifo, simulate

PATIENCE_S, INTERVAL_S = 600.0, 30.0
FOUR = Capacity(cpus=4, gpus=0, memory_gb=0)
patient = partial(decide, patience_s=PATIENCE_S)
endless = partial(decide, patience_s=math.inf)


def job(
    id_: str,
    team: str,
    cpus: float,
    *,
    since: float = 0,
    gpus: float = 0,
    takes: float = 300,
    expected_s: float | None = 300,
    priority: Priority = "normal",
) -> Job:
    """Return a request with what it really takes."""
    return Job(Waiting(id_, team, cpus, gpus, 0, priority, since, expected_s), takes)


def queue(team: str, n: int, cpus: float, *, every: float = 0, takes: float = 300) -> list[Job]:
    """Return many equal requests of a team, all at once or one after the other."""
    return [job(f"{team}{k:03d}", team, cpus, since=k * every, takes=takes) for k in range(n)]


def play(
    jobs: Sequence[Job],
    quotas: dict[str, Quota],
    policy: Policy,
    *,
    capacity: Capacity = FOUR,
    interval_s: float = INTERVAL_S,
) -> Course:
    """Play through what some requests come to."""
    crews = tuple(Crew(team, quota=quota) for team, quota in quotas.items())
    return simulate(Day(capacity, crews, tuple(jobs), interval_s=interval_s), policy)


def wait_s(course: Course, id_: str) -> float:
    """Return how long a request waited for its first start."""
    return next(spell.wait_s for spell in course.spells if spell.id == id_)


def bound_s(course: Course, *, n_before: int = 0) -> float:
    """Return the longest wait that the course allows."""
    return longest_wait_s(
        n_before=n_before,
        n_lines=course.n_lines,
        largest_share=course.largest_share,
        longest_s=course.longest_s + INTERVAL_S,
        patience_s=PATIENCE_S + INTERVAL_S,
    )


GUARANTEES = {f"g{n}": Quota(cpus=1) for n in range(4)}


def test_guarantees_of_the_whole_cluster_starve_nobody() -> None:
    jobs = [j for name in GUARANTEES for j in queue(name, 30, 1)]
    course = play([*jobs, job("a", "outsider", 2, since=20)], GUARANTEES | {"outsider": Quota()}, patient)
    assert PATIENCE_S < wait_s(course, "a") <= bound_s(course)
    starved = play([*jobs, job("a", "outsider", 2, since=20)], GUARANTEES | {"outsider": Quota()}, endless)
    assert wait_s(starved, "a") > bound_s(course), "the test would not notice"


def test_a_request_for_all_is_not_starved_by_small_ones_that_take_longer_than_they_say() -> None:
    small = [
        job(f"{team}{n:03d}", team, 1, since=37 * n + 11 * k, takes=500, expected_s=5)
        for k, team in enumerate(("b", "c", "d", "e"))
        for n in range(50)
    ]
    course = play([*small, job("a", "all", 4, since=30)], dict.fromkeys(["all", "b", "c", "d", "e"], Quota()), patient)
    assert wait_s(course, "a") <= bound_s(course)


def test_an_older_queue_of_others_does_not_count_more_than_once() -> None:
    """Each of the others may start once before it, however many they have waiting."""
    others = [j for team in ("b", "c", "d") for j in queue(team, 20, 4)]
    quotas = dict.fromkeys(["a", "b", "c", "d"], Quota())
    course = play([*others, job("a", "a", 4, since=40)], quotas, patient)
    assert wait_s(course, "a") <= 3 * (300 + INTERVAL_S)
    assert wait_s(play([*others, job("a", "a", 4, since=40)], quotas, fifo), "a") > 50 * 300


def test_a_low_priority_is_overtaken_only_by_what_comes_within_two_days() -> None:
    every = 3000
    urgent = [job(f"h{n:03d}", "a", 4, since=n * every, priority="high", takes=3100) for n in range(90)]
    low = job("low", "a", 4, since=5, priority="low")
    course = play([*urgent, low], {"a": Quota()}, patient, interval_s=600)
    [spell] = [spell for spell in course.spells if spell.id == "low"]
    assert spell.n_before == sum(1 for j in urgent if j.request.since <= 5 + 2 * 86_400)


def test_a_borrower_makes_room_and_goes_on_later() -> None:
    jobs = [job("long", "b", 4, takes=3000, expected_s=3000), job("a", "a", 2, since=1000)]
    course = play(jobs, {"a": Quota(cpus=2), "b": Quota()}, patient)
    assert course.preempted == {"long": 1}
    assert wait_s(course, "a") <= 90 + 2 * INTERVAL_S
    assert course.n_done == 2
    assert [spell.id for spell in course.spells] == ["long", "a", "long"]
    assert course.end < 3000 + 300 + 90 + 20 + 4 * INTERVAL_S, "what it had done is not done again"


def test_nobody_makes_room_more_often_than_three_times() -> None:
    jobs = [job("long", "b", 4, takes=9000, expected_s=9000), *queue("a", 20, 2, every=900, takes=60)]
    course = play(jobs, {"a": Quota(cpus=2), "b": Quota()}, patient)
    assert course.preempted == {"long": MOST_PREEMPTIONS}
    assert course.n_done == 21


def test_what_can_never_start_is_refused_and_delays_nobody() -> None:
    course = play(
        [job("a", "a", 5), job("b", "b", 1, gpus=1), job("c", "c", 4)], dict.fromkeys("abc", Quota()), patient
    )
    assert course.refused == ["a", "b"]
    assert wait_s(course, "c") <= INTERVAL_S


TEAMS = ("a", "b", "c", "d")


@st.composite
def small_days(draw: st.DrawFn) -> tuple[list[Job], dict[str, Quota]]:
    """Draw some teams and what they send, with estimates that may be wrong tenfold."""
    quotas = {
        team: Quota(
            cpus=draw(st.sampled_from([None, None, 1.0, 2.0])), requests=draw(st.sampled_from([None, None, 1, 2]))
        )
        for team in TEAMS
    }
    jobs = []
    for n in range(draw(st.integers(1, 40))):
        takes = draw(st.sampled_from([20.0, 100.0, 400.0, 900.0]))
        wrong = draw(st.sampled_from([None, 0.1, 1.0, 1.0, 10.0]))
        jobs.append(
            job(
                f"j{n:02d}",
                draw(st.sampled_from(TEAMS)),
                draw(st.sampled_from([1.0, 1.0, 2.0, 3.0, 6.0])),
                gpus=draw(st.sampled_from([0.0, 0.0, 1.0, 2.0])),
                since=draw(st.integers(0, 40)) * 50.0,
                takes=takes,
                expected_s=None if wrong is None else takes * wrong,
                priority=draw(st.sampled_from(["low", "normal", "high"])),
            )
        )
    return jobs, quotas


@settings(max_examples=60, deadline=None)
@given(small_days())
def test_on_any_day_all_ends_and_nobody_waits_longer_than_the_bound(day: tuple[list[Job], dict[str, Quota]]) -> None:
    jobs, quotas = day
    course = play(jobs, quotas, patient, capacity=Capacity(6, 2, 0))
    assert course.n_done == len(jobs)
    assert max(course.preempted.values(), default=0) <= MOST_PREEMPTIONS
    for spell in course.spells:
        assert spell.wait_s <= bound_s(course, n_before=spell.n_before), spell
    assert course.longest_gap_s <= bound_s(course)


@pytest.fixture(scope="module")
def day() -> Day:
    """Return a morning of a small company."""
    made = busy_day(seed=1, n_teams=16, n_busy=7, hours=4)
    return Day(Capacity(200, 32, 800), made.crews, hours=made.hours, interval_s=60.0, seed=1)


@pytest.fixture(scope="module")
def fair(day: Day) -> Course:
    """Return what becomes of it."""
    return simulate(day, decide)


def spread(course: Course, day: Day) -> float:
    """Return the largest difference between the hourly shares of busy teams with the same kind of work."""
    worst = 0.0
    for mix in ("cpus", "memory", "gpus"):
        names = [crew.name for crew in day.crews if crew.backlog and crew.mix == mix]
        hours = zip(*(course.averages(n, window_s=HOUR_S, until_s=day.hours * HOUR_S) for n in names), strict=True)
        worst = max([worst, *(max(hour) - min(hour) for hour in hours)])
    return worst


def test_busy_teams_get_the_same_and_the_cluster_is_used(day: Day, fair: Course) -> None:
    assert spread(fair, day) <= 0.05
    assert fair.utilisation(until_s=day.hours * HOUR_S) > 0.93
    assert spread(simulate(day, fifo), day) > 0.15, "the test would not notice"


def test_the_same_day_takes_the_same_course(day: Day, fair: Course) -> None:
    assert simulate(day, decide) == fair


def test_averages_of_a_share_are_weighted_by_time() -> None:
    course = Course(times=[0, 30, 90], shares={"a": [0.0, 1.0, 0.5]}, used=[0.0, 1.0, 0.5])
    assert course.averages("a", window_s=60, until_s=120) == [0.5, 0.75]
    assert course.utilisation(until_s=120) == 0.625
