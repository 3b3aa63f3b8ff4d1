"""Requests at the doors: checked against what their asker may name, quoted, and put into the queue.

Every door comes through here, so that the same document has the same problems,
the same quote and the same place in the queue wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from factory.errors import Conflict, Detail, InvalidRequest, NotFound, listing
from factory.ledger import Door, Idempotency, Ledger, RequestRecord
from factory.ledger.intake import new_request_id
from factory.ledger.records import document_json
from factory.operate.json_logs import known
from factory.operate.quotes import PlaceOf, Quote, Rates, Usual, quote, quote_document, usual
from factory.operate.quotes.documents import Problem
from factory.search.cluster import Crew, local_cpus, memory_budget_mb
from factory.search.plan import check_request
from factory.settings import Settings
from factory.spec import Actor, Budget, Principal, Recipe, VariantRequest

QUEUED = "Waiting to be admitted."
LONGEST_PLACE = 1024
_PLACES = ("path", "entities", "scoring")
"""Fields of a dataset that name a file or a URL."""


@dataclass(frozen=True)
class Taken:
    """A request that was taken in.

    Attributes:
        record: The request.
        replayed: Whether it was made before, under the same idempotency key.
    """

    record: RequestRecord
    replayed: bool = False


@dataclass(frozen=True)
class Intake:
    """What takes requests in, for one asker.

    Args:
        ledger: The state.
        settings: Name recipes, uploads, and the folders that data may be named in.
        principal: Who asks; None for somebody who runs this process, and may read what it may.
        cpus: Of the cluster; those of this machine where that is not known.
    """

    ledger: Ledger
    settings: Settings
    principal: Principal | None = None
    cpus: float | None = None

    def submit(
        self,
        document: object,
        *,
        door: Door,
        by: Actor | None = None,
        problems: Sequence[Detail] = (),
        idempotency: Idempotency | None = None,
        retry_of: str | None = None,
        job: str | None = None,
    ) -> Taken:
        """Check and quote a request, and put it into the queue, in one transaction.

        Args:
            document: The request, not checked yet.
            door: By which it comes.
            by: Who asks, for the audit log.
            problems: What the door itself has found wrong with it.
            idempotency: Key under which it is made once.
            retry_of: Id of the request that this one tries again.
            job: Ray job that waits to make it.

        Raises:
            InvalidRequest: with one detail for each problem, those of its data and its parent too; nothing is stored.
            NotFound: the asker's teams are others, or there is no such recipe.
            Conflict: the key was used for something else, the team is archived, or ``retry_of`` has not ended.
        """
        if idempotency is not None and (made := self.ledger.replayed(idempotency)) is not None:
            # Whoever used the key may see less by now.
            seen_by = None if self.principal is None else self.principal.team
            return Taken(self.ledger.request(made, seen_by=seen_by), replayed=True)
        request, recipe = self._checked(document, problems)
        told = quote(request, recipe, ledger=self.ledger, settings=self.settings, cpus=self._asked(request, recipe))
        if told.problems:
            raise _invalid(Detail(problem.field, problem.message) for problem in told.problems)
        request_id = new_request_id(datetime.now(UTC))
        record = self.ledger.create_request(
            request,
            request_id=request_id,
            retry_of=retry_of,
            by=by,
            door=door,
            idempotency=idempotency,
            quote=told.model_dump(mode="json"),
            expected_s=None if told.wall_s is None else told.wall_s.expected,
            cpus=1.0 if told.holding is None else told.holding.cpus,
            memory_gb=None if told.holding is None else told.holding.memory_gb,
            queued=QUEUED,
            trace=known("trace"),
            job=job,
        )
        return Taken(record, replayed=record.id != request_id)

    def retry(
        self,
        old: RequestRecord,
        *,
        door: Door,
        by: Actor | None = None,
        idempotency: Idempotency | None = None,
    ) -> Taken:
        """Order again what a request that has ended without a variant asked for; arguments and errors of `submit`."""
        return self.submit(old.request, door=door, by=by, idempotency=idempotency, retry_of=old.id)

    def quote(self, document: object, *, problems: Sequence[Detail] = (), place: PlaceOf | None = None) -> Quote:
        """Return the quote of a request; what is wrong with it is in ``problems``, not raised. Nothing is started.

        Args:
            document: The request, not checked yet.
            problems: What the door itself has found wrong with it.
            place: Tells its place in the queue.

        Raises:
            NotFound: the asker's teams are others.
            InvalidRequest: the recipe itself is not valid, which its author has to mend.
        """
        try:
            request, recipe = self._checked(document, problems)
        except (InvalidRequest, NotFound) as error:
            if isinstance(error, _NotYours):
                raise
            details = error.details or (Detail("(document)", error.message),)
            return Quote(
                problems=tuple(Problem(field=d.field, message=d.message) for d in details),
                currency=Rates.of(self.settings).currency,
                basis="The request is not valid.",
            )
        cpus = self._asked(request, recipe)
        return quote(request, recipe, ledger=self.ledger, settings=self.settings, cpus=cpus, place=place)

    def usual(self, recipe: Recipe, team: str | None) -> Usual:
        """Return what a request of a recipe usually takes, by a team's earlier ones where there are some."""
        workers = self._workers(recipe.budget.default)
        return usual(recipe, team, ledger=self.ledger, settings=self.settings, cpus=workers)

    def _checked(self, document: object, known: Sequence[Detail]) -> tuple[VariantRequest, Recipe]:
        """Return a request and its recipe, or report all that is wrong with it at once."""
        plain = document_json(document) if isinstance(document, VariantRequest) else document
        fields: Mapping[str, Any] = plain if isinstance(plain, Mapping) else {}
        self._check_team(fields)
        forbidden = list(self._forbidden(fields))
        try:
            checked = check_request(document, settings=self.settings)
        except (InvalidRequest, NotFound) as error:
            if isinstance(error, NotFound) and not known and not forbidden:
                raise
            found = error.details or (Detail("(document)", error.message),)
            if not forbidden:  # what may not be named is not looked at
                told = quote_document(document, ledger=self.ledger, settings=self.settings)
                found = tuple(Detail(problem.field, problem.message) for problem in told.problems)
            fields_told = {detail.field for detail in found}
            others = [*forbidden, *(d for d in known if d.field not in fields_told)]
            alone = not others and fields_told == {detail.field for detail in error.details}
            raise _invalid([*found, *others], hint=error.hint if alone else "") from error
        if forbidden or known:
            raise _invalid([*forbidden, *known])
        return checked

    def _check_team(self, fields: Mapping[str, Any]) -> None:
        """Refuse a team that is not the asker's, as one that does not exist; nothing else of its document is judged."""
        team = fields.get("team")
        if self.principal is None or not isinstance(team, str):
            return
        if not self.principal.sees(team):
            raise _NotYours(
                f"There is no team {team[:80]!r} that you may order for.",
                hint="Order for the team that your token is of.",
                details=[Detail("team", f"{team[:80]!r} is not known")],
            )
        if self.principal.team is None and self.ledger.team(team).archived_at is not None:
            raise Conflict(f"Team {team} is archived.", hint="An archived team orders nothing.")

    def _forbidden(self, fields: Mapping[str, Any]) -> Iterator[Detail]:
        """Yield the data and variants that a document names and its asker may not; also of one that is not valid."""
        asker, dataset = self.principal, fields.get("dataset")
        if asker is None or (asker.team is None and asker.may("admin")):
            return
        team = fields["team"] if isinstance(fields.get("team"), str) else asker.team or ""
        if isinstance(dataset, Mapping):
            for field in _PLACES:
                place = dataset.get(field)
                if isinstance(place, str) and not may_be_named(place, self.settings):
                    yield Detail(f"dataset.{field}", not_allowed(place, self.settings))
            upload = dataset.get("upload")
            if isinstance(upload, str) and not self.ledger.may_see("dataset", upload, team):
                yield Detail("dataset.upload", f"There is no upload {upload[:12]!r}; upload the table first.")
        parent = fields.get("parent")
        if isinstance(parent, str):
            name = parent.partition("@")[0].partition("/")[0]
            if not self.ledger.may_see("variant", name, team):
                yield Detail("parent", f"There is no variant {name[:130]!r}.")

    def _asked(self, request: VariantRequest, recipe: Recipe) -> int:
        """Return the CPUs that a request asks for: as many as its memory has workers for, and the cluster has."""
        return max(self._workers(request.terms(recipe).budget), request.resources.workers)

    def _workers(self, budget: Budget) -> int:
        most = local_cpus(self.settings) if self.cpus is None else int(self.cpus)
        crew = Crew.of(cpus=max(most, 1), memory_mb=memory_budget_mb(budget, self.settings))
        return max(crew.workers, 1)


class _NotYours(NotFound):
    """A team that is not the asker's."""


def may_be_named(place: str, settings: Settings) -> bool:
    """Whether somebody who comes over the network may name a file or URL: FACTORY_DATASET_FOLDERS lists where.

    A path has to be absolute, and is looked at where its links lead.
    """
    if "::" in place or "\\" in place or not place.isprintable() or len(place) > LONGEST_PLACE:
        return False
    scheme, _, rest = place.rpartition("://")
    if scheme in ("file", "local"):
        place, scheme = unquote(rest), ""
    allowed = [entry.strip() for entry in (settings.dataset_folders or "").split(",") if entry.strip()]
    if scheme:
        return any(_is_below(place, entry) for entry in allowed if "://" in entry)
    path = Path(place)
    if not path.is_absolute():
        return False
    try:
        real = path.resolve()
        return any(real.is_relative_to(Path(entry).expanduser().resolve()) for entry in allowed if "://" not in entry)
    except (OSError, RuntimeError):  # a loop of links, or a name that is too long
        return False


def _is_below(url: str, prefix: str) -> bool:
    """Whether a URL lies below another one, part by part."""
    try:
        given, above = urlsplit(url), urlsplit(prefix)
        same = (given.scheme.lower(), given.netloc.lower()) == (above.scheme.lower(), above.netloc.lower())
    except ValueError:
        return False
    parts, first = unquote(given.path).split("/"), unquote(above.path).rstrip("/").split("/")
    return same and not {".", ".."} & set(parts) and parts[: len(first)] == first


def not_allowed(place: str, settings: Settings, *, field: str = "dataset.upload") -> str:
    """Return what is told of a file or URL that may not be named; ``field`` takes an upload instead."""
    shown = place if len(place) <= 80 else f"{place[:79]}…"
    folders = [entry.strip() for entry in (settings.dataset_folders or "").split(",") if entry.strip()]
    where = f"only below {listing(folders)}, or as an upload" if folders else "only as an upload"
    return (
        f"{shown!r} may not be named: over the network, data are named {where}. "
        f"Upload the table (POST /api/v1/datasets) and write its digest as {field}."
    )


def _invalid(problems: Iterable[Detail], *, hint: str = "") -> InvalidRequest:
    told = list(dict.fromkeys(problems))
    return InvalidRequest(
        "The request is not valid: " + " ".join(f"{d.field}: {d.message}" for d in told),
        hint=hint or f"Mend the named field{'s' if len(told) > 1 else ''} and try again.",
        details=told,
    )
