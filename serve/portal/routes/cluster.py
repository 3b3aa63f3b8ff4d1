"""The cluster: what it has, and who holds what of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from factory.operate.admission import Capacity, Running
from factory.operate.outlook import running_of
from factory.spec import Document
from serve.portal.context import Here
from serve.portal.identity import Reader
from serve.portal.openapi import ALWAYS, refusals
from serve.portal.replies import reply
from serve.portal.routes import API

router = APIRouter(prefix=f"{API}/cluster", tags=["cluster"], responses=refusals(*ALWAYS))


class Amounts(Document):
    """Of each resource."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_gb: float = 0.0

    @classmethod
    def sum(cls, those: Iterable[Running | Capacity]) -> Self:
        """Return what some hold together."""
        held = list(those)
        return cls(**{name: sum(getattr(one, name) for one in held) for name in cls.model_fields})


class TeamHolds(Document):
    """What the requests of a team that are worked on hold."""

    team: str
    requests: int
    held: Amounts


class Cluster(Document):
    """The cluster, and who holds what of it."""

    answers: bool = Field(description="Whether it does now; what it has is else as it told last.")
    capacity: Amounts | None = Field(description="Of all nodes together; null where it never told.")
    held: Amounts = Field(description="By the requests of all teams.")
    requests: int = Field(description="That are worked on, of all teams.")
    teams: tuple[TeamHolds, ...] = Field(description="One's own team; all that hold something, for operators.")

    @classmethod
    def of(cls, capacity: Capacity | None, running: Sequence[Running], *, answers: bool, team: str | None) -> Self:
        """Return it as somebody of a team may see it; None sees all teams."""
        by_team: dict[str, list[Running]] = {} if team is None else {team: []}
        for one in running:
            if team in (None, one.team):
                by_team.setdefault(one.team, []).append(one)
        holds = (TeamHolds(team=name, requests=len(own), held=Amounts.sum(own)) for name, own in by_team.items())
        return cls(
            answers=answers,
            capacity=None if capacity is None else Amounts.sum([capacity]),
            held=Amounts.sum(running),
            requests=len(running),
            teams=tuple(sorted(holds, key=lambda one: one.team)),
        )


@router.get("", response_model=Cluster)
def show_cluster(portal: Here, caller: Reader) -> Response:
    """Show what the cluster has, what all requests hold of it, and what the own team's do."""
    answers = portal.outlook.answers()
    running = [running_of(attempt) for attempt in portal.ledger.open_attempts()]
    return reply(Cluster.of(portal.outlook.capacity(), running, answers=answers, team=caller.team))
