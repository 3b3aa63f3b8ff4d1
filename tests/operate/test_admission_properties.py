"""What holds of every decision, whoever waits and whatever runs."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from factory.operate.admission import (
    EXEMPT_S,
    MOST_PREEMPTIONS,
    Capacity,
    Decision,
    Rule,
    Running,
    TeamLoad,
    Waiting,
    decide,
)
from factory.operate.admission.lines import guaranteed
from factory.operate.admission.terms import Amounts, dominant_share, fits, minus, plus
from factory.spec import Quota

NOW = 1_800_000_000.0
TEAMS = ("ada", "bob", "cyd", "dee")
NOTHING: Amounts = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Situation:
    """All that a decision is made from."""

    capacity: Capacity
    waiting: list[Waiting]
    running: list[Running]
    teams: list[TeamLoad]

    @property
    def decision(self) -> Decision:
        """What is decided."""
        return decide(self.capacity, self.waiting, self.running, self.teams, NOW)

    def after(self, decision: Decision, *, gone: set[str], waiting: list[Waiting]) -> Situation:
        """Return what it is once the admitted ones run and some are gone."""
        admitted = [as_running(r) for r in self.waiting if r.id in decision.admit]
        stay = [r for r in self.running if r.id not in gone]
        return replace(self, running=stay + admitted, waiting=waiting)


def as_running(request: Waiting) -> Running:
    """Return a request that was admitted now."""
    return Running(*request[:6], since=NOW, expected_end=NOW + (request.expected_s or 60))


def total(jobs: list[Waiting] | list[Running]) -> Amounts:
    """Return what some hold together."""
    held = NOTHING
    for job in jobs:
        held = plus(held, job.need)
    return held


cpus = st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0, 8.0])
gpus = st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0])
memory = st.sampled_from([0.0, 1.0, 4.0, 8.0])
priorities = st.sampled_from(["low", "normal", "high"])
ages = st.sampled_from([0.0, 30.0, 299.0, 301.0, 900.0, 3700.0, 90_000.0])
lengths = st.one_of(st.none(), st.sampled_from([10.0, 60.0, 600.0, 5000.0]))
shares = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0, 4.0, 8.0]))
quotas = st.builds(
    Quota,
    cpus=shares,
    gpus=st.sampled_from([None, None, 1.0]),
    memory_gb=st.sampled_from([None, None, 8.0]),
    requests=st.sampled_from([None, None, None, 0, 1, 3]),
    trial_seconds_month=st.sampled_from([None, None, 100.0]),
    weight=st.sampled_from([1.0, 1.0, 0.5, 2.0]),
)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Draw a cluster with what runs in it, and a queue."""
    capacity = Capacity(*draw(st.sampled_from([(4.0, 0.0, 16.0), (8.0, 2.0, 16.0), (16.0, 2.0, 64.0)])))
    running: list[Running] = []
    for n in range(draw(st.integers(0, 8))):
        job = Running(
            f"x{n}", draw(st.sampled_from(TEAMS)), draw(cpus), draw(gpus), draw(memory), draw(priorities),
            since=NOW - draw(ages),
            expected_end=draw(st.one_of(st.none(), st.sampled_from([NOW - 5, NOW + 30, NOW + 400, NOW + 4000]))),
            preemptible=draw(st.sampled_from([True, True, True, False])),
            n_preempted=draw(st.integers(0, MOST_PREEMPTIONS)),
            stopping=draw(st.sampled_from([False, False, False, True])),
        )  # fmt: skip
        if fits(plus(total(running), job.need), capacity):
            running.append(job)
    waiting = [
        Waiting(
            f"r{n:02d}", draw(st.sampled_from(TEAMS)), draw(cpus), draw(gpus), draw(memory), draw(priorities),
            since=NOW - draw(ages), expected_s=draw(lengths),
        )
        for n in range(draw(st.integers(0, 12)))
    ]  # fmt: skip
    ends = st.one_of(st.none(), st.sampled_from([NOW, NOW - 1000, NOW - 5000]))
    known = draw(st.lists(st.sampled_from(TEAMS), unique=True))
    teams = [TeamLoad(t, draw(quotas), draw(st.sampled_from([0.0, 200.0])), draw(ends), draw(ends)) for t in known]
    return Situation(capacity, waiting, running, teams)


@given(situations())
def test_everybody_starts_or_is_told_why_not(situation: Situation) -> None:
    decision = situation.decision
    everybody = [request.id for request in situation.waiting]
    assert sorted([*decision.admit, *decision.held]) == sorted(everybody)
    for request in situation.waiting:
        if request.id in decision.held:
            held = decision.held[request.id]
            assert 10 < len(held.sentence) < 160
            assert held.eta_s is None or held.eta_s > 0
            assert (held.eta_s is None) == ("about" not in held.sentence and "less than" not in held.sentence)
            if request.need[0] > situation.capacity.cpus:
                assert held.rule is Rule.NEVER
    etas = Counter(held.eta_s for held in decision.held.values())
    assert Counter(situation.decision.held.etas()) == etas, "without a word they are the same"


@given(situations())
def test_nothing_is_given_twice(situation: Situation) -> None:
    admitted = [request for request in situation.waiting if request.id in situation.decision.admit]
    free = minus(situation.capacity, total(situation.running))
    assert fits(total(admitted), free)


@given(situations())
def test_hard_limits_hold(situation: Situation) -> None:
    admitted = Counter(r.team for r in situation.waiting if r.id in situation.decision.admit)
    running = Counter(r.team for r in situation.running)
    for load in situation.teams:
        if load.quota.requests is not None and admitted[load.name]:
            assert admitted[load.name] + running[load.name] <= load.quota.requests
        if load.quota.trial_seconds_month is not None and load.trial_seconds_used >= load.quota.trial_seconds_month:
            assert not admitted[load.name]


@given(situations())
def test_only_borrowers_make_room_and_only_for_guarantees(situation: Situation) -> None:
    decision = situation.decision
    sure = {t: guaranteed(Quota(), situation.capacity) for t in TEAMS}
    sure |= {load.name: guaranteed(load.quota, situation.capacity) for load in situation.teams}
    staying = {t: total([r for r in situation.running if r.team == t and not r.stopping]) for t in TEAMS}
    running = {job.id: job for job in situation.running}
    assert len({p.id for p in decision.preempt}) == len(decision.preempt)
    for preemption in decision.preempt:
        job = running[preemption.id]
        assert job.preemptible
        assert not job.stopping
        assert job.n_preempted < MOST_PREEMPTIONS
        assert NOW - job.since >= EXEMPT_S
        over = [held - own > 0 for held, own in zip(staying[job.team], sure[job.team], strict=True)]
        assert any(more and part > 0 for more, part in zip(over, job.need, strict=True)), "a team within its guarantee"
        staying[job.team] = minus(staying[job.team], job.need)
    for request in situation.waiting:
        if any(p.for_id == request.id for p in decision.preempt):
            assert decision.held[request.id].rule is Rule.RECLAIM
            own = total([r for r in situation.running if r.team == request.team])
            started = total([r for r in situation.waiting if r.team == request.team and r.id in decision.admit])
            assert fits(plus(plus(own, started), request.need), sure[request.team])


@st.composite
def contested(draw: st.DrawFn) -> Situation:
    """Draw a cluster full of borrowers, and teams that come for what is guaranteed to them."""
    situation = draw(situations())
    borrowed = [
        Running(
            f"y{n}", draw(st.sampled_from(TEAMS[2:])), draw(cpus), draw(gpus), draw(memory), draw(priorities),
            since=NOW - draw(st.sampled_from([301.0, 900.0])), expected_end=NOW + 4000,
        )
        for n in range(12)
    ]  # fmt: skip
    running: list[Running] = []
    for job in [*borrowed, *situation.running]:
        if fits(plus(total(running), job.need), situation.capacity):
            running.append(job)
    sure = [TeamLoad(t, Quota(cpus=draw(st.sampled_from([1.0, 2.0, 4.0])), gpus=1)) for t in TEAMS[:2]]
    return replace(situation, running=running, teams=sure)


@given(contested())
def test_who_makes_room_lets_the_other_in(situation: Situation) -> None:
    decision = situation.decision
    first = [r for r in situation.waiting if any(p.for_id == r.id for p in decision.preempt)]
    victims = {p.id for p in decision.preempt}
    stopped = {r.id for r in situation.running if r.stopping}
    after = situation.after(decision, gone=victims | stopped, waiting=first).decision
    assert set(after.admit) == {r.id for r in first}


@given(contested())
def test_nobody_makes_room_needlessly(situation: Situation) -> None:
    fresh = [request._replace(since=NOW) for request in situation.waiting]  # nobody comes first for having waited
    running = [r for r in situation.running if r.expected_end is None or not 0 < r.expected_end - NOW <= 60]
    situation = replace(situation, waiting=fresh, running=running)
    decision = situation.decision
    promised = [r for r in fresh if r.id in decision.held and decision.held[r.id].rule is Rule.RECLAIM]
    victims = {p.id for p in decision.preempt}
    stopped = {r.id for r in running if r.stopping}
    for spared in victims if len(promised) == 1 else ():
        after = situation.after(decision, gone=(victims | stopped) - {spared}, waiting=promised).decision
        assert after.admit == ()


@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(situation: Situation, rng: random.Random) -> None:
    shuffled = Situation(
        situation.capacity,
        rng.sample(situation.waiting, len(situation.waiting)),
        rng.sample(situation.running, len(situation.running)),
        rng.sample(situation.teams, len(situation.teams)),
    )
    one, other = situation.decision, shuffled.decision
    assert (one.admit, one.preempt, dict(one.held)) == (other.admit, other.preempt, dict(other.held))


@given(situations())
def test_an_empty_cluster_is_not_left_empty(situation: Situation) -> None:
    situation = replace(situation, running=[])
    decision = situation.decision
    shut = {Rule.NEVER, Rule.TRIAL_SECONDS}
    assert decision.admit or all(held.rule in shut for held in decision.held.values())


@given(situations())
def test_who_would_fit_beside_all_others_is_not_held(situation: Situation) -> None:
    decision = situation.decision
    free = minus(situation.capacity, total(situation.running))
    if fits(total(situation.waiting), free):
        rules = {held.rule for held in decision.held.values()}
        assert rules <= {Rule.NEVER, Rule.TRIAL_SECONDS, Rule.REQUESTS, Rule.ORDER}


@given(
    n_waiting=st.dictionaries(st.sampled_from(TEAMS), st.integers(1, 20), min_size=1),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=4, max_size=4),
    capacity=st.integers(1, 30),
)
def test_shares_of_equal_requests_differ_by_no_more_than_one(
    n_waiting: dict[str, int], weights: list[float], capacity: int
) -> None:
    weight = dict(zip(TEAMS, weights, strict=True))
    waiting = [
        Waiting(f"{t}{n}", t, 1, 0, 1, "normal", NOW - n, 60) for t, most in n_waiting.items() for n in range(most)
    ]
    loads = [TeamLoad(t, Quota(weight=weight[t])) for t in TEAMS]
    admitted = decide(Capacity(capacity, 0, 100), waiting, [], loads, NOW).admit
    assert len(admitted) == min(capacity, len(waiting))
    got = Counter(i[:3] for i in admitted)
    for poor in n_waiting:
        for rich in n_waiting:
            if got[poor] < n_waiting[poor]:
                assert (got[rich] - 1) / weight[rich] <= got[poor] / weight[poor] + 1e-9


@given(situations(), st.data())
def test_no_richer_team_takes_the_place_of_a_poorer_one(situation: Situation, data: st.DataObject) -> None:
    """Whoever starts was no richer at that moment than anybody who waits for the same."""
    waiting = [
        Waiting(r.id, r.team, data.draw(st.sampled_from([1.0, 2.0])), 0, 0, r.priority, NOW, 600)
        for r in situation.waiting
    ]
    situation = replace(situation, waiting=waiting, teams=[])
    decision = situation.decision
    held = {t: total([r for r in situation.running if r.team == t]) for t in TEAMS}
    by_id = {r.id: r for r in waiting}
    had = {}
    for id_ in decision.admit:
        request = by_id[id_]
        had[id_] = dominant_share(held[request.team], situation.capacity)
        held[request.team] = plus(held[request.team], request.need)
    for id_, reason in decision.held.items():
        poor = by_id[id_]
        if reason.rule in (Rule.CAPACITY, Rule.RESERVED):
            for other, share in had.items():
                if by_id[other].need == poor.need and by_id[other].team != poor.team:
                    assert share <= dominant_share(held[poor.team], situation.capacity) + 1e-9
