"""Two people who promote at once, and what one sees of a version before it is promoted."""

from __future__ import annotations

from typing import Any

import pytest

from factory.variants.resampling import Comparison
from tests.answers import error_of
from tests.portal.conftest import SETUP, World

pytestmark = pytest.mark.usefixtures("mirror")
"""No test here reaches MLflow."""

COMPARISON = {
    "difference": 0.021, "low": 0.004, "high": 0.038, "probability": 0.991, "candidate": 0.861, "baseline": 0.84,
    "n_rows": 400, "n_resamples": 1000,
}  # fmt: skip


def promoted(world: World, version: int, **more: Any) -> Any:
    body = {"version": version, "why": f"Version {version} is better.", **more}
    return world("growth/deploy").post("/variants/growth.churn/promote", json=body)


def test_of_two_who_promote_at_once_the_second_one_is_told_who_was_first(world: World) -> None:
    for _ in range(3):
        world.made()
    assert promoted(world, 1, instead_of=0).status_code == 200
    assert promoted(world, 2, instead_of=1).status_code == 200
    error = error_of(promoted(world, 3, instead_of=1), 409)
    assert error["message"].startswith("token:deploy/")
    assert "has made version 2 champion of growth.churn meanwhile: Version 2 is better." in error["message"]
    assert error["details"] == [{"field": "instead_of", "message": "version 1 is not champion"}]
    assert [row.version for row in world.ledger.deployment("growth.churn")] == [2], "nothing is changed by halves"
    assert len(world.ledger.alias_history("growth.churn")) == 2
    assert promoted(world, 3, instead_of=2).status_code == 200
    assert promoted(world, 1).status_code == 200, "who does not say it takes any champion's place"


def test_what_was_promoted_as_seen_may_be_promoted_again(world: World, mirror: list[Any]) -> None:
    """As after a call on which MLflow did not answer."""
    world.made()
    for _ in range(2):
        assert promoted(world, 1, instead_of=0).status_code == 200
    assert mirror == [("growth.churn", "champion", 1)] * 2
    assert len(world.ledger.alias_history("growth.churn")) == 1


def test_a_champion_that_is_not_there_is_told(world: World) -> None:
    world.made()
    assert error_of(promoted(world, 1, instead_of=7), 409)["message"] == "growth.churn has no champion."
    promoted(world, 1)
    world.made()
    world.ledger.set_alias("growth.churn", "champion", None, who="ann", why="It leaks.", by=SETUP)
    message = error_of(promoted(world, 2, instead_of=1), 409)["message"]
    assert message == "ann has left growth.churn without a champion meanwhile: It leaks."
    assert promoted(world, 2, instead_of=0).status_code == 200


def test_a_proposal_is_made_against_the_champion_that_was_seen(world: World) -> None:
    world.made()
    promoted(world, 1)
    world.made(approval=True)
    error_of(promoted(world, 2, instead_of=0), 409)
    assert world.ledger.proposals("growth.churn") == []
    assert promoted(world, 2, instead_of=1).status_code == 202
    override = {"version": 2, "why": "An emergency.", "override": True, "instead_of": 0}
    error_of(world("growth/admin").post("/variants/growth.churn/promote", json=override), 409)
    assert world.ledger.alias("growth.churn", "champion") == 1


def test_of_two_who_roll_back_the_second_one_does_not_come_back(world: World) -> None:
    deployer = world("growth/deploy")
    for version in (1, 2):
        world.made()
        promoted(world, version)
    back = {"why": "It is slower.", "instead_of": 2}
    for _ in range(2):
        response = deployer.post("/variants/growth.churn/rollback", json=back)
        assert response.json()["version"] == 1
    assert world.ledger.alias("growth.churn", "champion") == 1
    world.made()
    promoted(world, 3)
    error = error_of(deployer.post("/variants/growth.churn/rollback", json=back), 409)
    assert "has made version 3 champion" in error["message"]


def test_a_version_tells_what_its_gate_found(world: World) -> None:
    made = world.made()
    place = "/variants/growth.churn/versions/1"
    assert world().get(place).json()["gate"] is None
    world.ledger.set_alias("growth.churn", "challenger", 1, who="r", why="Passed. Better.", evidence=COMPARISON)
    gate = world().get(place).json()["gate"]
    assert (gate["passed"], gate["sentence"], gate["comparison"]["difference"]) == (True, "Passed. Better.", 0.021)
    check = {"name": "latency", "passed": True, "value": 1.5, "limit": 20.0, "sentence": "One row takes 1.5 ms."}
    told = {"baseline": "a constant", "comparison": Comparison(**COMPARISON).model_dump(), "checks": [check]}
    world.ledger.note(made.request_id, "gate", "growth.churn/1: Passed. All.", payload={**told, "passed": True})
    world.ledger.note(made.request_id, "gate", "growth.churn/11: Passed. Another.")
    gate = world().get(place).json()["gate"]
    assert (gate["sentence"], gate["baseline"], gate["checks"]) == ("Passed. All.", "a constant", [check])
    world.ledger.note(made.request_id, "gate", "growth.churn/1: Passed. Otherwise.", payload={"checks": "of old"})
    gate = world().get(place).json()["gate"]
    assert (gate["sentence"], gate["checks"]) == ("Passed. Otherwise.", []), "what is not understood is left out"
    assert gate["comparison"]["difference"] == 0.021
