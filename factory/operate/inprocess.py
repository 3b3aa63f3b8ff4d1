"""A factory in this process: what commands ask of it, done on the ledger of this home.

The client of the API (:mod:`factory.remote`) has the same methods with the
same results.  Whoever holds the ledger may do everything, so nothing is asked
of teams and scopes here; the audit log names the user of this machine.
"""

from __future__ import annotations

import getpass
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial

from factory.errors import ServiceFault
from factory.ledger import (
    AliasChange,
    Batch,
    BatchRun,
    Event,
    IssuedToken,
    Ledger,
    Proposal,
    ProposalQuery,
    ProposalState,
    RequestQuery,
    RequestRecord,
    RequestSummary,
    Usage,
)
from factory.ledger.records import UNDER_WAY, Priority
from factory.operate.admission import Capacity
from factory.operate.answers import ListedVariant, RecipeDetail, Serving, VariantDetail, inside, listed
from factory.operate.batches import declare, log_of
from factory.operate.controller import LEAD
from factory.operate.deployments import running_predictor
from factory.operate.intake import Intake
from factory.operate.outlook import Queue
from factory.operate.promotion import decide, deploy, named, promote, roll_back
from factory.operate.publishing import publish, withdraw
from factory.operate.quotes import Holding, Place, Quote
from factory.operate.ray_jobs import RayJobs
from factory.search.cluster import ray_token
from factory.search.plan import family, load_recipe, recipe_files
from factory.settings import Settings
from factory.spec import (
    Actor,
    DeploymentWish,
    Member,
    Quota,
    Recipe,
    RequestState,
    Scope,
    Team,
    TokenRecord,
    Trial,
    Variant,
    VariantRequest,
)
from factory.variants.bundle import Bundle
from factory.variants.registry import Registry

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks at a request that is waited for."""
_PAGE = 200


class InProcess:
    """The factory of a home.

    Args:
        ledger: Its state.
        settings: Name its folders.
    """

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self.ledger, self.settings = ledger, settings
        self.actor = Actor(who=user())

    @property
    def is_led(self) -> bool:
        """Whether a controller takes requests out of the queue; else somebody has to run them."""
        return self.ledger.leader(LEAD) is not None

    # --- requests ----------------------------------------------------------------

    def submit(self, document: object) -> RequestRecord:
        """Check a request and put it into the queue."""
        return self._intake(self._capacity()).submit(document, door="cli", by=self.actor).record

    def quote(self, document: object) -> Quote:
        """Return what a request would take; nothing is stored."""
        capacity = self._capacity()
        place = None if capacity is None else partial(self._place, capacity)
        return self._intake(capacity).quote(document, place=place)

    def requests(
        self, *, team: str | None = None, states: Sequence[RequestState] = (), most: int | None = None
    ) -> Iterator[RequestSummary]:
        """Yield requests, the newest first."""
        where, cursor, left = RequestQuery(team=team, states=tuple(states)), None, most
        while left is None or left > 0:
            page = self.ledger.request_page(where, cursor=cursor, limit=_PAGE if left is None else min(_PAGE, left))
            yield from page.items
            cursor, left = page.next, None if left is None else left - len(page.items)
            if cursor is None:
                return

    def request(self, request_id: str) -> RequestRecord:
        """Return a request by its id or the beginning of it."""
        return self.ledger.request(request_id)

    def trials(self, request_id: str) -> list[Trial]:
        """Return the trials of a request."""
        return self.ledger.trials(request_id)

    def events(self, request_id: str) -> list[Event]:
        """Return what happened to a request."""
        return self.ledger.events(request_id)

    def wait(self, request_id: str, *, progress: Callable[[Event], None] = lambda _: None) -> RequestRecord:
        """Wait until a request that another process makes has come to an end; ``progress`` is told each event."""
        after = 0
        while True:
            record = self.ledger.request(request_id)
            for event in self.ledger.events(record.id, after=after):
                after = event.sequence
                progress(event)
            if record.state not in UNDER_WAY and after >= record.n_events:
                return record
            time.sleep(LOOK_S)

    def cancel(self, request_id: str, *, why: str = "") -> RequestRecord:
        """Ask a request to end; it has ended when this returns where nobody works on it."""
        record = self.ledger.request(request_id)
        self.ledger.request_cancel(record.id, by=self.actor, message=why)
        if record.id in self.ledger.cancels_due():
            # It was asked before, and who worked on it then is gone: no controller has to come along for it.
            self.ledger.advance(record.id, RequestState.CANCELLED, "Cancelled.")
        return self.ledger.request(record.id)

    def set_priority(self, request_id: str, priority: Priority, *, why: str = "") -> RequestRecord:
        """Put a waiting request before, or behind, others that wait."""
        return self.ledger.set_priority(request_id, priority, by=self.actor, message=why)

    def retry(self, request_id: str) -> RequestRecord:
        """Order again what a request asked for that has failed, was rejected or cancelled."""
        old = self.ledger.request(request_id)
        return self._intake(self._capacity()).retry(old, door="cli", by=self.actor).record

    def _intake(self, capacity: Capacity | None) -> Intake:
        return Intake(self.ledger, self.settings, cpus=None if capacity is None else capacity.cpus)

    def _capacity(self) -> Capacity | None:
        """Return what the controller's cluster has; None where there is none, or the cluster does not answer."""
        if not self.is_led:
            return None
        address = self.settings.dashboard
        with RayJobs(address, token_path=ray_token(self.settings.root)) as jobs:
            try:
                return jobs.capacity()
            except ServiceFault as fault:
                log.warning("capacity: %s", fault.message)
                return None

    def _place(self, capacity: Capacity, request: VariantRequest, holding: Holding, expected_s: float) -> Place:
        return Queue.read(self.ledger, capacity).place(request, holding, expected_s, now=time.time())

    # --- recipes and variants ----------------------------------------------------

    def recipes(self) -> list[RecipeDetail]:
        """Return the recipes that can be ordered."""
        return [_detail(load_recipe(name, settings=self.settings)) for name in recipe_files(self.settings)]

    def recipe(self, name: str) -> RecipeDetail:
        """Return a recipe by its name, or name and digest, with the spaces of its families."""
        return _detail(load_recipe(name, settings=self.settings), spaces=True)

    def publish_recipe(self, document: object) -> RecipeDetail:
        """Publish a recipe for all teams."""
        recipe = publish(document, team=None, ledger=self.ledger, settings=self.settings, by=self.actor)
        return _detail(recipe)

    def withdraw_recipe(self, name: str) -> None:
        """Take a published recipe back."""
        withdraw(name, team=None, ledger=self.ledger, settings=self.settings, by=self.actor)

    def variants(self, name: str | None = None, *, request_id: str | None = None) -> Iterator[ListedVariant]:
        """Yield versions of variants by name and number, each with the aliases that point at it."""
        yield from listed(self.ledger.variants(name, request_id=request_id), ledger=self.ledger)

    def alias_history(self, name: str) -> list[AliasChange]:
        """Return every change of a name's aliases, the oldest first."""
        return self.ledger.alias_history(name)

    def variant(self, reference: str) -> Variant:
        """Return the version that a reference names; a bare name without a champion is its newest version."""
        return named(reference, ledger=self.ledger)

    def variant_detail(self, reference: str) -> VariantDetail:
        """Return the version that a reference names, with what its files say of it."""
        variant = named(reference, ledger=self.ledger)
        folder = Registry(self.settings).bundle_folder(variant)
        bundle = Bundle.load(folder, digest=variant.bundle_digest)
        columns, members = inside(bundle.columns, bundle.members)
        return VariantDetail(
            variant=variant,
            columns=columns,
            members=members,
            alias_history=tuple(self.ledger.alias_history(variant.name)),
            cards=tuple(map(str, sorted(self.settings.workspace(variant.request_id).glob("*/card.html")))),
        )

    def promote(
        self, reference: str, *, why: str, override: bool = False, instead_of: int | None = None
    ) -> Variant | Proposal:
        """Make a version the champion, or propose it where a second person has to approve that."""
        variant = named(reference, ledger=self.ledger)
        return promote(
            variant,
            ledger=self.ledger,
            settings=self.settings,
            by=self.actor,
            why=why,
            override=override,
            instead_of=instead_of,
        )

    def proposals(self, *, state: ProposalState | None = None) -> Iterator[Proposal]:
        """Yield proposals, the newest first."""
        cursor = None
        while True:
            page = self.ledger.proposal_page(ProposalQuery(state=state), cursor=cursor, limit=_PAGE)
            yield from page.items
            if (cursor := page.next) is None:
                return

    def approve(self, proposal_id: str, *, why: str) -> Proposal:
        """Approve a proposal that somebody else has made, which serves the version."""
        return self._decide(proposal_id, approve=True, why=why)

    def reject(self, proposal_id: str, *, why: str) -> Proposal:
        """Reject a proposal."""
        return self._decide(proposal_id, approve=False, why=why)

    def _decide(self, proposal_id: str, *, approve: bool, why: str) -> Proposal:
        return decide(proposal_id, approve=approve, ledger=self.ledger, settings=self.settings, by=self.actor, why=why)

    def rollback(self, name: str, *, why: str, instead_of: int | None = None) -> Variant:
        """Make the version champion that was it before the present one."""
        return roll_back(
            name, ledger=self.ledger, settings=self.settings, by=self.actor, why=why, instead_of=instead_of
        )

    def deployments(self) -> Serving:
        """Return what is served, and where."""
        running = running_predictor(self.settings)
        url = running.url if running is not None else None
        return Serving(predictor=url, deployments=tuple(self.ledger.deployments()))

    def deploy(self, reference: str, wish: DeploymentWish, *, why: str) -> Variant:
        """Serve a version as wished."""
        variant = named(reference, ledger=self.ledger)
        deploy(variant, wish, ledger=self.ledger, settings=self.settings, by=self.actor, why=why)
        return variant

    # --- batches -------------------------------------------------------------------

    def batches(self, *, team: str | None = None) -> list[Batch]:
        """Return batches by name, each with its last run."""
        return self.ledger.batches(team)

    def batch(self, name: str) -> Batch:
        """Return a batch."""
        return self.ledger.batch(name)

    def create_batch(self, document: object) -> Batch:
        """Check a batch and store it."""
        return declare(document, ledger=self.ledger, settings=self.settings, by=self.actor, asker=None)

    def enable_batch(self, name: str, enabled: bool) -> Batch:
        """Let the schedule of a batch count from now on, or rest."""
        return self.ledger.enable_batch(name, enabled, by=self.actor)

    def delete_batch(self, name: str) -> None:
        """Forget a batch and its runs; what they have written stays."""
        self.ledger.delete_batch(name, by=self.actor)

    def run_batch(self, name: str) -> BatchRun:
        """Start a run now, which the controller takes up."""
        return self.ledger.start_batch_run(name, by=self.actor)

    def batch_runs(self, name: str) -> list[BatchRun]:
        """Return the newest runs of a batch, the newest first."""
        return self.ledger.batch_runs(self.ledger.batch(name).name)

    def batch_log(self, name: str, number: int) -> str:
        """Return what the job of a run has printed so far."""
        run = self.ledger.numbered_batch_run(name, number)
        with RayJobs(self.settings.dashboard, token_path=ray_token(self.settings.root)) as jobs:
            return log_of(run, jobs=jobs, settings=self.settings)

    # --- teams and tokens ----------------------------------------------------------

    def teams(self, *, archived: bool = False) -> list[Team]:
        """Return the teams by name."""
        return self.ledger.teams(archived=archived)

    def team(self, name: str) -> Team:
        """Return a team."""
        return self.ledger.team(name)

    def create_team(self, name: str, *, title: str = "", quota: Quota | None = None) -> Team:
        """Store a new team."""
        return self.ledger.create_team(name, title=title, quota=quota, by=self.actor)

    def change_team(self, team: Team, *, title: str | None = None, quota: Quota | None = None) -> Team:
        """Give a team another title or quota, unless it was changed since it was read."""
        return self.ledger.change_team(team.name, title=title, quota=quota, if_digest=team.digest, by=self.actor)

    def archive_team(self, name: str) -> Team:
        """Take nothing new from a team."""
        return self.ledger.archive_team(name, by=self.actor)

    def members(self, team: str) -> list[Member]:
        """Return the people of a team."""
        return self.ledger.members(team)

    def add_member(self, team: str, subject: str, *, email: str = "", scopes: Sequence[Scope]) -> Member:
        """Add a person to a team."""
        return self.ledger.add_member(team, subject, email=email, scopes=scopes, by=self.actor)

    def remove_member(self, team: str, subject: str) -> None:
        """Take a person out of a team."""
        self.ledger.remove_member(team, subject, by=self.actor)

    def usage(self, month: str | None = None) -> list[Usage]:
        """Return what each team used in a month."""
        return self.ledger.usage(month)

    def tokens(self, *, team: str | None = None, revoked: bool = False) -> list[TokenRecord]:
        """Return tokens without their secrets, the newest first."""
        return self.ledger.tokens(team=team, revoked=revoked)

    def issue_token(
        self,
        name: str,
        *,
        team: str | None,
        scopes: Sequence[Scope],
        expires: datetime | None = None,
        variants: str | None = None,
    ) -> IssuedToken:
        """Make a token; its secret is in the answer and nowhere else."""
        return self.ledger.issue_token(
            name, team=team, scopes=scopes, expires=expires, variants=variants, by=self.actor
        )

    def rotate_token(self, token_id: str, *, expires: datetime | None = None) -> IssuedToken:
        """Make a token in place of another one, which is refused from now on."""
        return self.ledger.rotate_token(token_id, expires=expires, by=self.actor)

    def revoke_token(self, token_id: str) -> TokenRecord:
        """Refuse a token from now on."""
        return self.ledger.revoke_token(token_id, by=self.actor)


def user() -> str:
    """Return what the user of this process is called; in a container it may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid:{os.getuid()}"


def _detail(recipe: Recipe, *, spaces: bool = False) -> RecipeDetail:
    found = {
        task.value: {
            name: {
                parameter: one.model_dump(mode="json", by_alias=True)
                for parameter, one in family(name).space(task).items()
            }
            for name in recipe.families
            if task in family(name).tasks
        }
        for task in recipe.tasks
    }
    return RecipeDetail(recipe=recipe, digest=recipe.digest, family_spaces=found if spaces else {})
