"""The quote: what a request would take, cost and come to, and what would stop it; nothing is started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from pydantic import TypeAdapter, ValidationError

from factory.errors import Detail, InvalidRequest, NotFound, counted
from factory.ledger import Ledger
from factory.ledger.records import document_json
from factory.operate.quotes.checks import Looked, look, look_at_data
from factory.operate.quotes.documents import ExpectedScore, Holding, Interval, Place, Problem, Quote, Rates, Usual
from factory.operate.quotes.estimate import (
    START_S,
    Estimate,
    Size,
    estimate,
    fold_of_past,
    fold_prior,
    pace_of,
    promise_s,
    refit_of,
    seen_fold,
    size_of,
)
from factory.operate.quotes.history import Asked, PastMaking, past_makings
from factory.operate.quotes.scores import alike, expected_score, task_of
from factory.operate.quotes.spread import Spread
from factory.search.cluster import local_cpus
from factory.search.metric import Metric
from factory.search.plan import check_request
from factory.settings import Settings
from factory.spec import DatasetRef, Recipe, VariantRequest

PlaceOf = Callable[[VariantRequest, Holding, float], Place]
"""Called with a request, what it holds and the seconds that it is expected to take; tells its place in the queue."""
_DATASET: TypeAdapter[DatasetRef] = TypeAdapter(DatasetRef)


def quote_document(
    document: object,
    *,
    ledger: Ledger,
    settings: Settings,
    rates: Rates | None = None,
    cpus: int | None = None,
    place: PlaceOf | None = None,
) -> Quote:
    """Return the quote of a request as a door received it; what is wrong with it is in ``problems``, not raised.

    Args:
        document: The request, not checked yet.
        ledger: Has the history; another team's is never looked at.
        settings: Name recipes and uploads.
        rates: Those of the settings where not given.
        cpus: That it would be given; all of this machine where not given.
        place: Tells its place in the queue; without it nobody knows.

    Raises:
        InvalidRequest: the recipe itself is not valid, which its author has to mend.
    """
    try:
        request, recipe = check_request(document, settings=settings)
    except (InvalidRequest, NotFound) as error:
        problems = [*(error.details or [Detail("(document)", error.message)]), *_data_problems(document, settings)]
        currency = (rates or Rates.of(settings)).currency
        return Quote(problems=_told(problems), currency=currency, basis="The request is not valid.")
    return quote(request, recipe, ledger=ledger, settings=settings, rates=rates, cpus=cpus, place=place)


def quote(
    request: VariantRequest,
    recipe: Recipe,
    *,
    ledger: Ledger,
    settings: Settings,
    rates: Rates | None = None,
    cpus: int | None = None,
    place: PlaceOf | None = None,
) -> Quote:
    """Return the quote of a request that :func:`~factory.search.plan.check_request` has checked.

    Its data need not be there: what is wrong with them and with its parent is in ``problems``. The arguments are those
    of :func:`quote_document`.
    """
    rates, cpus = rates or Rates.of(settings), cpus or local_cpus(settings)
    asked = Asked.of(document_json(request), recipe.budget.default, recipe.validation)
    looked = look(request, recipe, ledger=ledger, settings=settings)
    past = past_makings(ledger, team=request.team, recipe=recipe)
    takes, n_past = _takes(request, asked, looked, past, cpus=cpus, ledger=ledger, settings=settings)
    most_s = promise_s(asked.time_s)
    wall = _interval(takes.wall_s.between(0.0, most_s))
    holding = Holding(
        cpus=cpus,
        gpus=request.resources.workers * request.resources.gpus_per_worker,
        memory_gb=min(asked.memory_gb, settings.memory_gb or asked.memory_gb),
    )
    score, score_basis = _score(request, recipe, looked, past)
    return Quote(
        problems=_told(looked.problems),
        wall_s=wall,
        used_cpu_s=_interval(takes.cpu_s.between(0.0, most_s * cpus)),
        cpu_s=wall.times(holding.cpus),
        gpu_s=wall.times(holding.gpus),
        gb_s=wall.times(holding.memory_gb),
        money=wall.times(holding.hourly(rates) / 3600),
        currency=rates.currency,
        promise_s=most_s,
        holding=holding,
        n_past=n_past,
        basis=_basis(asked, recipe, n_past),
        score=score,
        score_basis=score_basis,
        place=None if place is None else place(request, holding, wall.expected),
        n_rows=None if looked.table is None else looked.table.n_rows,
        n_columns=None if looked.table is None else len(looked.table.columns),
        notes=looked.notes,
    )


def usual(
    recipe: Recipe, team: str | None, *, ledger: Ledger, settings: Settings, cpus: int, rates: Rates | None = None
) -> Usual:
    """Return what a request of a recipe usually takes.

    Args:
        recipe: As it is now.
        team: Whose earlier requests tell; None: nobody's, but the recipe's budget.
        ledger: Has the history.
        settings: Bound what it holds.
        cpus: That it would be given.
        rates: Those of the settings where not given.
    """
    past = () if team is None else past_makings(ledger, team=team, recipe=recipe)
    budget, rates = recipe.budget.default, rates or Rates.of(settings)
    time_s = median(was.making_s for was in past) + pace_of(past).mid * START_S.mid if past else budget.time_s
    holding = Holding(cpus=cpus, gpus=0, memory_gb=min(budget.memory_gb, settings.memory_gb or budget.memory_gb))
    money = time_s * holding.hourly(rates) / 3600
    return Usual(time_s=round(time_s, 1), money=round(money, 6), currency=rates.currency, n_past=len(past))


def _takes(
    request: VariantRequest,
    asked: Asked,
    looked: Looked,
    past: Sequence[PastMaking],
    *,
    cpus: int,
    ledger: Ledger,
    settings: Settings,
) -> tuple[Estimate, int]:
    """Return what a request takes, and how many past requests correct it: those that end for the same reason."""
    size = _size(request, looked, past)
    cases = [was for was in past if (was.asked.kind, was.asked.segmented) == (asked.kind, asked.segmented)]

    pace = pace_of(past)

    def of(one: Asked, its_size: Size | None, fold: Spread) -> Estimate:
        return estimate(one, its_size, fold, pace=pace, cpus=cpus, settings=settings)

    if asked.kind == "remade":
        again = request.making == "refit"
        fold = looked.parent and refit_of(looked.parent, size, again=again, ledger=ledger)
        takes = of(asked, size, fold or fold_prior(size))
        # What the fits take is known by the parent; past requests tell the rest of it.
        rest = [(of(was.asked, size_of(was), seen_fold(was, cpus=cpus)), was) for was in cases]
        return takes.corrected(rest, fits=False), len(cases)
    fold = fold_prior(size)
    if asked.kind == "counted" and size is not None and not cases:
        fold = fold_of_past(past, size, ledger=ledger) or fold
    seen = [(of(was.asked, size_of(was), fold_prior(size_of(was))), was) for was in cases]
    # What the trials of segments took is not kept with the pooled variant.
    return of(asked, size, fold).corrected(seen, fits=not asked.segmented), len(cases)


def _size(request: VariantRequest, looked: Looked, past: Sequence[PastMaking]) -> Size | None:
    """Return the size of a request's table: as its file tells, or that of the variant's last one."""
    named = [was for was in past if was.variant in _named(request, looked)]
    n_classes = named[0].traits.n_classes if named else 0
    if looked.table is not None and request.dataset.join is None:
        return Size(looked.table.n_rows, len(looked.features(request)), n_classes)
    if looked.table is not None and named:
        return Size(looked.table.n_rows, named[0].traits.n_columns, n_classes)
    return size_of(named[0]) if named else None


def _named(request: VariantRequest, looked: Looked) -> set[str]:
    return {request.variant} | ({looked.parent.name} if looked.parent is not None else set())


def _score(
    request: VariantRequest, recipe: Recipe, looked: Looked, past: Sequence[PastMaking]
) -> tuple[ExpectedScore | None, str]:
    # What a join adds to an entity table is not known, and so not what it is like.
    table = None if request.dataset.join is not None else looked.table
    like = alike(past, table, features=looked.features(request), variants=_named(request, looked))
    asked_of = f"{counted(len(past), 'earlier request')} of the team for recipe {recipe.name!r}"
    if not like:
        return None, f"Nothing is known: of {asked_of}, none had data like these."
    task = task_of(like, recipe.tasks if request.dataset.task is None else (request.dataset.task,))
    if task is None:
        return None, "Nothing is known: no earlier request with like data had such a target."
    name = request.metric or getattr(recipe.metric, task)
    try:
        found = expected_score(like, Metric.of(name, task))
    except InvalidRequest:  # the data will turn out to be of another task, or not fit the metric
        found = None
    if found is None:
        return None, f"Nothing is known: no earlier request with like data was scored by {name!r}."
    return found, (
        f"By {found.n_requests} of {asked_of}, whose data are like these; the nearest made {found.nearest}, at a "
        f"distance of {found.distance:.2f}."
    )


def _basis(asked: Asked, recipe: Recipe, n_past: int) -> str:
    ends = {
        "timed": "It searches until its time is over",
        "counted": f"It ends after {counted(asked.trials or 0, 'trial')}, or when its time is over",
        "remade": "It searches nothing and ends when its parent's models are fitted",
    }
    if not n_past:
        return f"{ends[asked.kind]}. No earlier request of this kind corrects what is usual."
    return f"{ends[asked.kind]}. Corrected by {counted(n_past, 'earlier request')} of recipe {recipe.name!r}."


def _interval(spread: Spread) -> Interval:
    return Interval(low=round(spread.low, 1), expected=round(spread.mid, 1), high=round(spread.high, 1))


def _told(problems: Iterable[Detail]) -> tuple[Problem, ...]:
    unique = dict.fromkeys(problems)  # a check of the document and a look at the data may tell the same
    return tuple(Problem(field=problem.field, message=problem.message) for problem in unique)


def _data_problems(document: object, settings: Settings) -> tuple[Detail, ...]:
    """Return what is wrong with the data of a request that is not valid for another reason."""
    try:
        ref = _DATASET.validate_python(document.get("dataset") if isinstance(document, dict) else None)
    except ValidationError:
        return ()
    return look_at_data(ref, settings=settings).problems
