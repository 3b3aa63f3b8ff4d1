"""A request's clock: it starts with the command, keeps what the caller needs, and always leaves time for a variant."""

from __future__ import annotations

import time

import pytest

from factory.search.clock import AFTER_SHARE, FINISH_LEAST_S, FINISH_MOST_S, LEAST_S, Clock, finish_s_of

NOW = 1_000_000.0


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


def test_what_came_before_is_part_of_the_budget() -> None:
    assert Clock.now().deadline(60).at == NOW + 60
    assert Clock(NOW - 4).deadline(60).at == NOW + 56
    assert Clock(NOW - 4).deadline(60, spent_s=10).at == NOW + 46


def test_what_the_caller_does_afterwards_is_kept_up_to_a_part_of_the_budget() -> None:
    assert Clock(NOW - 4, after_s=2).deadline(60).at == NOW + 54
    assert Clock(NOW - 4, after_s=1000).deadline(60).at == NOW + 56 - AFTER_SHARE * 60


@pytest.mark.parametrize("time_s", [1, 5, 15])
def test_a_small_budget_that_imports_have_eaten_has_time_for_a_variant(time_s: float) -> None:
    assert Clock(NOW - 30, after_s=3).deadline(time_s, spent_s=100).at == NOW + LEAST_S
    assert LEAST_S > FINISH_LEAST_S


def test_quotes_learn_from_processes_that_were_started_for_a_request_alone() -> None:
    assert Clock(NOW - 2.5, of_process=True).start_s == 2.5
    assert Clock(NOW - 2.5).start_s is None


def test_a_part_of_the_budget_is_kept_for_the_finish() -> None:
    assert [finish_s_of(time_s) for time_s in (5, 60, 3600)] == [FINISH_LEAST_S, pytest.approx(7.2), FINISH_MOST_S]
