"""What will be searched: a recipe and a request become one checked Plan.

Recipes are YAML files of one folder.  A request may narrow what its recipe
allows and never widen it; every attempt and every unknown name is reported
together with all other problems of the document.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from factory import plugins
from factory.errors import Detail, FactoryError, InvalidRequest, NotFound, SystemFault, listing, suggest
from factory.families.base import Family, Loss
from factory.parsing import parse
from factory.search.metric import Metric
from factory.settings import Settings
from factory.space import ChoiceDimension, Narrowing, Parameters, Space, narrow
from factory.spec import (
    Budget,
    Ceilings,
    Gates,
    GroupSplit,
    Recipe,
    Task,
    TimeSplit,
    Validation,
    VariantRequest,
)
from factory.spec.texts import read_json, read_yaml

MAX_DOCUMENT_BYTES = 1_000_000
SETTLED_S = 2.0
"""Age of a change of a file from which on another one shows in its times."""
LOSS, LOSSES = "loss", ("squared", "absolute")
"""A parameter that is a choice where the metric is of medians, of families that learn them; and its values."""
_STAND_INS: dict[str, object] = {"team": "team", "name": "name", "dataset": {"path": "table.csv", "target": "target"}}
"""Stand where a required field of a request is wrong, while its other fields are judged."""


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first trial."""

    request: VariantRequest
    recipe: Recipe
    task: Task
    metric: Metric
    families: tuple[str, ...]
    spaces: dict[str, Space]
    validation: Validation
    budget: Budget
    gates: Gates
    ceilings: Ceilings

    @property
    def repeatable(self) -> bool:
        """Whether the same seed must give the same trials: so when the trials are counted, not timed."""
        return self.request.budget is not None and self.request.budget.trials is not None


def family(name: str) -> Family:
    """Return the model family of that name.

    Raises:
        InvalidRequest: there is none.
        SystemFault: its framework is not installed, or it is no family.
    """
    found = plugins.load("families", name)
    if not isinstance(found, Family):
        raise SystemFault(f"The plug-in {name!r} is not a Family.", hint="Let its PLUGIN be a Family instance.")
    return found


def with_loss(parameters: Parameters) -> tuple[Parameters, Loss]:
    """Return a configuration's parameters of its family, and the error that a regression learns by."""
    own = dict(parameters)
    return own, cast("Loss", own.pop(LOSS, "squared"))


def read_document(path: Path, *, what: str) -> object:
    """Read one YAML or JSON document from a small file, as strictly as the API reads a body.

    Raises:
        InvalidRequest: no such file, too large, or not YAML or JSON as :mod:`factory.spec.texts` takes it.
    """
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise InvalidRequest(
                f"The {what} {str(path)!r} is larger than {MAX_DOCUMENT_BYTES:,} bytes.", hint="Name data by its path."
            )
        text = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"The {what} {str(path)!r} cannot be read: {error.strerror or error}.",
            hint="Name an existing YAML or JSON file.",
        ) from error
    read = read_json if path.suffix == ".json" else read_yaml
    return read(text, what=f"The {what} {str(path)!r}")


def recipe_files(settings: Settings) -> dict[str, Path]:
    """Return name → file of all recipes, by name; a published one hides one of the same name."""
    folders = (settings.recipes_folder, settings.published_recipes)
    found = {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def load_recipe(reference: str, *, settings: Settings) -> Recipe:
    """Return a recipe by ``name`` or ``name@digest``, fully checked.

    Raises:
        NotFound: there is no recipe of that name, or not with that digest.
        InvalidRequest: the recipe itself is not valid.
    """
    name, _, digest = reference.partition("@")
    files = recipe_files(settings)
    if name not in files:
        raise NotFound(
            f"There is no recipe {name!r}.{suggest(name, files)}",
            hint=f"Allowed: {listing(files)}. `factory recipes list` describes them.",
            details=[Detail("recipe", f"{name!r} is not a recipe")],
        )
    recipe = _recipe_of(files[name])
    if recipe.name != name:
        raise InvalidRequest(
            f"name: the recipe in {files[name].name} calls itself {recipe.name!r}.", hint="Let both be the same."
        )
    if digest and not recipe.digest.startswith(digest):
        raise NotFound(
            f"Recipe {name!r} has the digest {recipe.digest[:12]}, not {digest!r}.",
            hint="The recipe was changed since; order without '@' or with the new digest.",
            details=[Detail("recipe", f"{name}@{digest} is not the recipe of today")],
        )
    return recipe


def _recipe_of(file: Path) -> Recipe:
    """Return the recipe of a file; it is read again only once the file was changed.

    Every request needs its recipe, and to parse one takes as long as everything else that a submission takes.
    """
    try:
        at = file.stat()
    except OSError:
        return _read_recipe(file)  # which says what is wrong
    # Of two changes within a tick of the file system's clock the second one does not show: wait until it would.
    if abs(time.time() - at.st_ctime) < SETTLED_S:
        return _read_recipe(file)
    return _kept_recipe(file, (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns))


@lru_cache(maxsize=256)
def _kept_recipe(file: Path, _stamp: tuple[int, ...]) -> Recipe:
    return _read_recipe(file)


def _read_recipe(file: Path) -> Recipe:
    return check_recipe(read_document(file, what="recipe"))


def check_recipe(document: object) -> Recipe:
    """Return the recipe of a document, or report all its problems at once.

    Raises:
        InvalidRequest: with one detail for each problem.
    """
    recipe = parse(Recipe, document, what="recipe")
    problems = list(_unknown(recipe.families, plugins.names("families"), path="families"))
    known = [name for name in recipe.families if name in plugins.names("families")]
    problems += list(_unknown(recipe.spaces, recipe.families, path="spaces"))
    for task in recipe.tasks:
        problems += [p for p in _narrowed(known, recipe, {}, task)[1] if p not in problems]
    problems += _budget_problems(recipe.budget.default, recipe.budget.ceiling, path="budget.default")
    _raise_all(problems, what="recipe")
    return recipe


def check_request(document: object, *, settings: Settings) -> tuple[VariantRequest, Recipe]:
    """Return a request and its recipe, or report all problems at once. Looks at no data.

    What its budget, gates, ceilings and gap in time leave open is filled from the recipe.

    Raises:
        InvalidRequest: with one detail for each problem.
        NotFound: the recipe does not exist.
    """
    request, refused = _read_request(document)
    problems = list(refused.details) if refused is not None else []
    try:
        recipe = load_recipe(request.recipe, settings=settings)
    except NotFound as error:
        if refused is not None:
            _raise_all([*problems, Detail("recipe", f"{error.message} {error.hint}")], what="request")
        raise
    request = request.filled(recipe)
    found = _request_problems(request, recipe)
    if refused is not None and not found:
        raise refused
    _raise_all(problems + found, what="request")
    return request, recipe


def _read_request(document: object) -> tuple[VariantRequest, InvalidRequest | None]:
    """Return a request and what is wrong with its form; a wrong field is replaced, so that others are judged."""
    if isinstance(document, VariantRequest):
        return document, None
    try:
        return parse(VariantRequest, document, what="request"), None
    except InvalidRequest as error:
        wrong = {detail.field.partition(".")[0] for detail in error.details}
        if not isinstance(document, dict) or "recipe" in wrong:
            raise
        right = {name: value for name, value in document.items() if str(name) not in wrong}
        return VariantRequest.model_validate(_STAND_INS | right), error


def _request_problems(request: VariantRequest, recipe: Recipe) -> list[Detail]:
    """Return what a recipe does not allow of a well-formed request."""
    chosen = request.families or recipe.families
    problems = list(_unknown(chosen, recipe.families, path="families"))
    chosen = tuple(name for name in chosen if name in recipe.families)
    problems += list(_unknown(request.spaces, chosen, path="spaces"))
    if request.budget is not None:
        problems += _budget_problems(request.budget, recipe.budget.ceiling, path="budget")
    problems += _ceiling_problems(request, recipe)
    problems += _validation_problems(request.validation, recipe.validation)
    tasks = recipe.tasks
    if request.dataset.task is not None:
        tasks = tuple(t for t in tasks if t is request.dataset.task)
        if not tasks:
            message = (
                f"{request.dataset.task} is not a task of recipe {recipe.name!r}; allowed: {listing(recipe.tasks)}."
            )
            problems.append(Detail("dataset.task", message))
    if request.spaces:
        task_problems = [_narrowed(chosen, recipe, request.spaces, task)[1] for task in tasks]
        problems += [p for p in _common(task_problems) if p not in problems]
    if request.metric is not None:
        found = _metric_problems(request.metric, tasks)
        problems += found or _common([_unweighable(request, Metric(request.metric, task), ()) for task in tasks])
    return problems


def make_plan(request: VariantRequest, recipe: Recipe, task: Task) -> Plan:
    """Resolve request and recipe for the task that the data turned out to be.

    Raises:
        InvalidRequest: the recipe does not do this task, or a narrowing or metric does not fit it.
    """
    problems: list[Detail] = []
    if task not in recipe.tasks:
        problems.append(
            Detail("dataset.task", f"{task} is not a task of recipe {recipe.name!r}; allowed: {listing(recipe.tasks)}.")
        )
    chosen = tuple(name for name in request.families or recipe.families if task in family(name).tasks)
    spaces, space_problems = _narrowed(chosen, recipe, request.spaces, task)
    _raise_all(problems + space_problems, what="request")
    metric = Metric.of(request.metric or getattr(recipe.metric, task), task)
    if metric.loss == "absolute":
        spaces = {
            name: {**space, LOSS: ChoiceDimension(choices=LOSSES)} if family(name).learns_medians else space
            for name, space in spaces.items()
        }
    _raise_all(_unweighable(request, metric, chosen), what="request")
    return Plan(
        request=request,
        recipe=recipe,
        task=task,
        metric=metric,
        families=chosen,
        spaces=spaces,
        **request.terms(recipe)._asdict(),
    )


def _unknown(names: Iterable[str], allowed: Collection[str], *, path: str) -> Iterator[Detail]:
    for name in names:
        if name not in allowed:
            message = f"{name!r} is not allowed here.{suggest(name, allowed)} Allowed: {listing(allowed)}."
            yield Detail(f"{path}.{name}", message)


def _narrowed(
    chosen: Iterable[str], recipe: Recipe, wanted: Mapping[str, dict[str, Narrowing]], task: Task
) -> tuple[dict[str, Space], list[Detail]]:
    spaces: dict[str, Space] = {}
    problems: list[Detail] = []
    for name in chosen:
        space = family(name).space(task)
        for by in (recipe.spaces.get(name, {}), wanted.get(name, {})):
            space, found = narrow(space, by, path=f"spaces.{name}")
            problems += found
        spaces[name] = space
    return spaces, problems


def _common(problems: list[list[Detail]]) -> list[Detail]:
    """Problems that every possible task has; the others are judged when the task is known."""
    return [p for p in problems[0] if all(p in others for others in problems[1:])] if problems else []


def _budget_problems(asked: Budget, ceiling: Budget, *, path: str) -> list[Detail]:
    pairs = (
        ("time_s", asked.time_s, ceiling.time_s),
        ("trials", asked.trials, ceiling.trials),
        ("memory_gb", asked.memory_gb, ceiling.memory_gb),
    )
    return [
        Detail(f"{path}.{name}", f"{value:g} is beyond the recipe's ceiling; allowed: up to {most:g}.")
        for name, value, most in pairs
        if value is not None and most is not None and value > most
    ]


def _ceiling_problems(request: VariantRequest, recipe: Recipe) -> list[Detail]:
    problems = []
    for name in ("latency_ms", "size_mb") if request.ceilings else ():
        asked, most = getattr(request.ceilings, name), getattr(recipe.ceilings, name)
        if asked is not None and most is not None and asked > most:
            message = f"{asked:g} is above the recipe's ceiling; allowed: up to {most:g}."
            problems.append(Detail(f"ceilings.{name}", message))
    limits = (
        ("workers", request.resources.workers, recipe.max_workers),
        ("gpus_per_worker", request.resources.gpus_per_worker, recipe.max_gpus_per_worker),
    )
    for name, value, limit in limits:
        if value > limit:
            message = f"{value:g} is more than the recipe allows; allowed: up to {limit:g}."
            problems.append(Detail(f"resources.{name}", message))
    return problems


def _validation_problems(asked: Validation | None, given: Validation) -> list[Detail]:
    """Return how a request would judge by rows that its recipe keeps apart: those of other times, or other groups."""
    if asked is None or not isinstance(given, TimeSplit | GroupSplit):
        return []
    if not isinstance(asked, TimeSplit | GroupSplit) or asked.kind != given.kind:
        message = f"{asked.kind!r} is not what the recipe validates by; allowed: {given.kind!r}, by {given.column!r}."
        return [Detail("validation.kind", message)]
    problems = []
    if asked.column != given.column:
        message = f"{asked.column!r} is not the recipe's column; allowed: {given.column!r}."
        problems.append(Detail("validation.column", message))
    if isinstance(asked, TimeSplit) and isinstance(given, TimeSplit) and asked.gap < given.gap:
        message = f"{asked.gap} is below the recipe's gap; allowed: {given.gap} and more."
        problems.append(Detail("validation.gap", message))
    return problems


def _metric_problems(name: str, tasks: tuple[Task, ...]) -> list[Detail]:
    errors: list[FactoryError] = []
    for task in tasks:
        try:
            Metric.of(name, task)
        except InvalidRequest as error:
            errors.append(error)
    if not tasks or len(errors) < len(tasks):
        return []
    return [Detail("metric", f"{errors[0].message.removeprefix('metric: ')} {errors[0].hint}")]


def _unweighable(request: VariantRequest, metric: Metric, families: Iterable[str]) -> list[Detail]:
    """Return what takes all rows as equal, where a request weighs them: its metric, or families."""
    if request.dataset.weights is None:
        return []
    found = [
        Detail(f"families.{name}", f"{name!r} takes all rows as equal, and dataset.weights is given; leave it out.")
        for name in families
        if not family(name).weighted
    ]
    if not metric.weighs:
        message = f"{metric.name!r} cannot be taken over weighted rows; name another metric, or leave the weights out."
        found.append(Detail("metric", message))
    return found


def _raise_all(problems: list[Detail], *, what: str) -> None:
    if problems:
        raise InvalidRequest(
            f"The {what} is not valid: " + " ".join(f"{d.field}: {d.message}" for d in problems),
            hint="A request may narrow what its recipe allows, never widen it; `factory recipes show NAME` lists it.",
            details=problems,
        )
