"""A portal that has something of everything, without Ray: for looking at its pages."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import pandas as pd
import pytest
from sklearn.datasets import load_wine

from factory.data.dataset import from_frame
from factory.errors import InvalidData
from factory.ledger import LATENCY_MS, CanaryCounts, Ledger, Served, ShadowCounts, moments
from factory.operate.batches import run_log
from factory.settings import Settings
from factory.spec import (
    ALIAS,
    Actor,
    BatchWish,
    CurvePoint,
    DeploymentWish,
    FileDataset,
    Quota,
    RequestState,
    Task,
    Trial,
    Variant,
)
from factory.variants import onnx_file
from factory.variants.background import Background
from factory.variants.bundle import Bundle
from factory.variants.report import render
from factory.variants.resampling import Comparison
from serve.portal.exporting import OnnxReport
from tests.serve.conftest import fitted
from tests.serving import portal, predictor
from tests.variants.conftest import make
from tests.variants.test_report import card_of

if TYPE_CHECKING:
    from .conftest import Tab

SETUP = Actor(who="token:setup")
HISTORY: tuple[tuple[float, ALIAS, int, str], ...] = (
    (41, "champion", 1, "The first one"),
    (30, "challenger", 2, "More rows"),
    (19, "champion", 2, "Better in the pilot"),
    (12, "champion", 1, "Rollback: Version 2 does worse than the one before."),
    (9, "champion", 2, "It was the features, not the version"),
    (4, "challenger", 3, "Another recipe"),
)
"""Days ago, alias, version and reason."""
FAMILIES = ("constant", "catboost", "lightgbm", "xgboost", "linear", "extra_trees", "tabm")
OPENED_MS = 300
"""Until what was opened has loaded its parts."""
MADE = (RequestState.PREPARING, RequestState.SEARCHING, RequestState.EVALUATING, RequestState.REGISTERED)


@dataclass(frozen=True)
class Filled:
    """A portal that runs.

    Attributes:
        token: Of the team's admin.
        operator: Token that sees all teams.
        pages: Name → path of every page, as the team's admin sees it.
        operators: Name → path of what an operator sees otherwise.
        ledger: Its state.
    """

    address: str
    token: str
    operator: str
    pages: dict[str, str]
    ledger: Ledger
    operators: dict[str, str] = field(
        default_factory=lambda: {
            "teams": "/team",
            "new-team": "/new",
            "team-by-operator": "/team?name=growth",
            "batch-team": "/batches/new",
        }
    )


def _predict(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Predict").click()
    tab.page.locator("#answer .card").wait_for()


def _ask(tab: Tab) -> None:
    tab.page.locator("form[data-question] button").first.click()
    tab.page.locator("dialog[open]").wait_for()


def _choose(when: str) -> Callable[[Tab], None]:
    def choose(tab: Tab) -> None:
        tab.page.locator(f"input[name=when][value={when}]").check()
        tab.page.wait_for_timeout(OPENED_MS)

    return choose


def _name_wrong_rows(tab: Tab) -> None:
    tab.page.get_by_label("Files by their path").check()
    tab.page.locator("#b-path").fill("/etc/passwd")
    tab.page.get_by_role("button", name="Declare this batch").click()
    tab.page.locator("#w-path").wait_for()


ACTS: dict[str, tuple[str, Callable[[Tab], None]]] = {
    "try-answer": ("try", _predict),
    "question": ("dataset", _ask),
    "batch-new-weekly": ("batch-new", _choose("weekly")),
    "batch-new-cron": ("batch-new", _choose("cron")),
    "batch-new-refused": ("batch-new", _name_wrong_rows),
}
"""Name of what comes up on a page → the page, and what is done there."""


def views(portal: Filled, tab: Tab, only: Collection[str] = ()) -> Iterator[str]:
    """Show every page in a tab, and what comes up on some of them, and yield the name of each while it is shown.

    Args:
        portal: With its pages.
        tab: Signed in by this, as one person after the other.
        only: Names of those that are wanted; all if empty.
    """

    def shown(name: str, path: str) -> Iterator[str]:
        if not only or name in only:
            tab.go(path)
            yield name

    tab.page.context.clear_cookies()
    yield from shown("sign-in", "/sign-in")
    tab.sign_in(portal.token)
    for name, path in portal.pages.items():
        yield from shown(name, path)
    yield from shown("error", "/variants/growth.unknown")
    for name in ("variant", "version", "compare", "deployment", "team", "request", "recipe-changed", "form"):
        for opened in shown(f"{name}-opened", portal.pages[name]):
            tab.page.evaluate("document.querySelectorAll('main details').forEach((one) => { one.open = true; })")
            tab.page.wait_for_timeout(OPENED_MS)
            yield opened
    for name, (page, act) in ACTS.items():
        for acted in shown(name, portal.pages[page]):
            act(tab)
            yield acted
    tab.page.context.clear_cookies()
    tab.sign_in(portal.operator)
    for name, path in portal.operators.items():
        yield from shown(name, path)


@contextmanager
def filled_portal(home: Path) -> Iterator[Filled]:
    """Run a portal over a new ledger in a folder, with requests in every state, variants, and what belongs to them."""
    settings = Settings(_env_file=None, home=home, requests_a_minute=100_000)

    def known_by(address: str) -> Settings:
        return settings.model_copy(update={"public_url": address})

    with Ledger.open(settings.ledger) as ledger, portal(known_by) as address, predicting(ledger):
        bootstrap = ledger.bootstrap_token(by=SETUP)
        assert bootstrap is not None
        ledger.create_team("growth", title="Growth", quota=Quota(cpus=4, memory_gb=16), by=SETUP)
        ledger.create_team("risk", title="Risk", quota=Quota(), by=SETUP)
        ledger.add_member("growth", "oidc|7", email="ann@example.com", scopes=["read", "submit", "deploy"], by=SETUP)
        token = ledger.issue_token("ann's laptop", team="growth", scopes=["admin"], by=SETUP).secret
        client = httpx.Client(base_url=f"{address}/api/v1", headers={"authorization": f"Bearer {token}"}, timeout=30)
        with client:
            pages = _Filling(ledger, settings, client).pages()
        yield Filled(address, token, bootstrap.secret, pages, ledger)


@contextmanager
def predicting(ledger: Ledger) -> Iterator[None]:
    """Run a predictor that answers for every variant with one model, and let the portal know of it."""

    with predictor(ledger, wine_bundle()) as url, pytest.MonkeyPatch.context() as patch:
        here = SimpleNamespace(url=url)
        patch.setattr("serve.portal.trying.running_predictor", lambda _: here)
        patch.setattr("serve.portal.routes.deployments.running_predictor", lambda _: here)
        patch.setattr("serve.portal.routes.exports.onnx_report", lambda *_: wine_onnx())
        patch.setattr(Ledger, "leader", lambda *_: "a controller, which there is none of here")
        # Its versions are in no registry, which would mirror the aliases.
        mirror = SimpleNamespace(set_alias=lambda *_: None)
        patch.setattr("factory.operate.promotion.Registry", lambda _: mirror)
        yield


@cache
def wine_onnx() -> OnnxReport:
    """Say that the one model can be had as ONNX, once it was written so."""
    with tempfile.TemporaryDirectory() as folder:
        onnx_file.write(wine_bundle(), Path(folder), about={})
    return OnnxReport(possible=True)


@contextmanager
def ago(**how_long: float) -> Iterator[None]:
    """Let what the ledger writes have happened some time ago."""
    then = datetime.now(UTC) - timedelta(**how_long)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "clock", lambda: then)
        yield


@cache
def wine() -> pd.DataFrame:
    """178 wines of three kinds, with what was measured of them."""
    frame = load_wine(as_frame=True).frame
    return frame.assign(target=frame["target"].map({0: "red", 1: "white", 2: "rose"}))


@cache
def wine_bundle() -> Bundle:
    """One model of the wines, with rows to explain by."""
    task = Task.MULTICLASS
    made = fitted(
        from_frame(wine(), FileDataset(path="w.csv", target="target", task=task)), task=task, ignored=("target",)
    )
    return replace(made, background=Background.of(wine(), made.columns, seed=0))


@dataclass(frozen=True)
class _Filling:
    ledger: Ledger
    settings: Settings
    client: httpx.Client

    def pages(self) -> dict[str, str]:
        """Fill the portal, and return where its pages are."""
        digest = self.uploaded()
        first = self.ordered(digest, "churn", seed=1)
        self.made(first, digest)
        second = self.ordered(digest, "churn", seed=2)
        with ago(days=30):
            self.version(second, digest, 2, 0.849, kind="warm_start", parent="growth.churn/1")
        with ago(days=4):
            self.version(second, digest, 3, 0.8, state="rejected")
        self.card(second, 2)
        for days, alias, version, why in HISTORY:
            with ago(days=days):
                self.ledger.set_alias("growth.churn", alias, version, who="person:ann", why=why, by=SETUP)
        self.judged(first, 1, 0.842)
        self.judged(second, 2, 0.849)
        self.judged(second, 3, 0.8)
        for segment, n_rows in (("east", 31), ("overseas", 12)):
            reason = f"it has {n_rows} rows, fewer than segments.min_rows 200."
            told = {"segment": segment, "reason": reason}
            self.ledger.note(
                second, "segment", f"Segment {segment!r} is served by the pooled variant: {reason}", payload=told
            )
        for days, wish, version, why in (
            (12, {"as": "champion"}, 1, "The version before, as the new one does worse"),
            (9, {"as": "champion"}, 2, "It was the features, not the version"),
            (2, {"as": "canary", "percent": 10}, 1, "Whether it was the features after all"),
            (1, {"as": "shadow"}, 3, "The other recipe, beside them"),
        ):
            named = DeploymentWish.model_validate(wish)
            with ago(days=days):
                self.ledger.set_deployment("growth.churn", named, version=version, why=why, who="person:ann", by=SETUP)
        self.called()
        self.batches(digest)
        for title in ("Churn, explained by a line", "Churn, explained by a short line"):
            recipe = {"name": "churn-linear", "title": title, "families": ["constant", "linear"]}
            self.client.put("/recipes/churn-linear", json=recipe).raise_for_status()
        for k, region in enumerate(("north", "south", "west")):
            name = f"growth.churn.{region}"
            self.version(first, digest, 1, 0.8 + k / 30, name=name, segment=region)
            self.ledger.set_alias(name, "champion", 1, who="token:setup", why="The first one", by=SETUP)
        running = self.ordered(digest, "upsell", seed=3)
        self.trials(running, 9)
        self.ledger.admit(running)
        self.advanced(running, MADE[:2])
        broken = self.ordered(digest, "broken", seed=4)
        fault = InvalidData("There is no column 'churned'. Did you mean 'target'?", hint="Name one of its columns.")
        self.ledger.fail(broken, fault)
        waiting = self.ordered(digest, "waiting", seed=5)
        # The first look imports Feast.
        self.client.get("/feature-services", timeout=120).raise_for_status()
        return {
            "home": "/",
            "requests": "/requests",
            "request": f"/requests/{first}",
            "request-running": f"/requests/{running}",
            "request-failed": f"/requests/{broken}",
            "request-waiting": f"/requests/{waiting}",
            "variants": "/variants",
            "variant": "/variants/growth.churn",
            "version": "/variants/growth.churn/versions/1",
            "compare": "/variants/growth.churn/compare?a=1&b=2",
            "try": "/variants/growth.churn/versions/1/try",
            "new": "/new",
            "form": f"/new/form?dataset={digest}",
            "recipes": "/recipes",
            "recipe": "/recipes/tabular-auto",
            "recipe-changed": "/recipes/churn-linear",
            "datasets": "/datasets",
            "features": "/features",
            "feature-service": "/features/country_v1",
            "dataset": f"/datasets/{digest}",
            "batches": "/batches",
            "batch": "/batches/growth.nightly",
            "batch-run": "/batches/growth.nightly/runs/2",
            "batch-run-running": "/batches/growth.nightly/runs/4",
            "batch-idle": "/batches/growth.when-asked",
            "batch-new": "/batches/new?variant=growth.churn",
            "deployments": "/deployments",
            "deployment": "/deployments/growth.churn",
            "team": "/team",
            "queue": "/queue",
            "audit": "/audit",
            "account": "/account",
        }

    def called(self) -> None:
        """Let the champion and its canary have answered for an hour."""
        random_ = random.Random(7)
        begin, counted = datetime.now(UTC) - timedelta(minutes=58), []
        for minute in range(58):
            for version, mean, slow in ((2, 90, 0), (1, 10, 1)):
                n = int(mean * (1 + 0.4 * math.sin(minute / 9)) + random_.randint(0, 6))
                latency = [0] * (len(LATENCY_MS) + 1)
                latency[2 + slow], latency[3 + slow] = n - n // 8, n // 8
                counted.append(
                    Served(
                        name="growth.churn",
                        version=version,
                        began=begin + timedelta(minutes=minute),
                        calls=n,
                        failed=int(version == 1 and minute % 20 == 3),
                        latency=tuple(latency),
                    )
                )
        self.ledger.add_served(counted)
        served = {one.as_: one for one in self.ledger.deployment("growth.churn")}
        canary = served["canary"]
        seen = CanaryCounts(calls=640, failed=3, compared=610, slower=290)
        self.ledger.add_canary("growth.churn", 1, canary.updated, seen)
        for against, n in ((2, 5_120), (1, 566)):
            compared = ShadowCounts(calls=n, labelled=n, agreed=round(n * 0.943))
            self.ledger.add_shadow("growth.churn", 3, served["shadow"].updated, against, compared)

    def batches(self, digest: str) -> None:
        """Let batches be declared, and the first one have run: with an end, with a fault, and still."""
        for name, changes in (
            ("nightly", {"schedule": {"cron": "30 4 * * mon-fri", "time_zone": "Europe/Berlin"}, "keep": ["alcohol"]}),
            ("of-every-customer-in-all-regions-of-the-north", {"schedule": {"every": "6h"}}),
            ("when-asked", {"variant": "growth.churn@challenger"}),
        ):
            document = {"team": "growth", "name": name, "variant": "growth.churn", "upload": digest} | changes
            self.ledger.create_batch(BatchWish.model_validate(document), anywhere=False, by=SETUP)
        self.ledger.enable_batch("growth.of-every-customer-in-all-regions-of-the-north", False, by=SETUP)
        fault = "There is no column 'alcohol' in the rows."
        for hours, state, message in (
            (50, "done", "178 predictions"),
            (26, "failed", fault),
            (2, "done", "178 predictions"),
        ):
            with ago(hours=hours):
                run = self.ledger.start_batch_run("growth.nightly", by=SETUP)
                self.ledger.mark_batch_run(run.id, variant="growth.churn/2")
            with ago(hours=hours, seconds=-94):
                rows = {"rows": 178, "manifest": f"{run.folder}/_manifest.json"} if state == "done" else {}
                self.ledger.end_batch_run(run.id, state, message, **rows)
            log = run_log(run, self.settings)
            log.parent.mkdir(parents=True)
            log.write_text(f"Reading the rows.\nPredicting by growth.churn/2.\n{message}\n", encoding="utf-8")
        with ago(seconds=40):
            run = self.ledger.start_batch_run("growth.nightly", by=SETUP)
            self.ledger.mark_batch_run(run.id, variant="growth.churn/2")

    def uploaded(self) -> str:
        content = wine().to_csv(index=False).encode()
        answer = self.client.post("/datasets", params={"filename": "wine.csv"}, content=content)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["dataset"]["digest"])

    def ordered(self, digest: str, name: str, *, seed: int) -> str:
        dataset = {"upload": digest, "target": "target"}
        order = {"team": "growth", "name": name, "recipe": "tabular-auto", "dataset": dataset, "seed": seed}
        answer = self.client.post("/requests", json={**order, "budget": {"time_s": 60}})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def made(self, request_id: str, digest: str) -> None:
        """End a request: trials, a version, its card, and the version as champion."""
        self.trials(request_id, 24)
        self.ledger.admit(request_id)
        self.advanced(request_id, MADE)
        self.ledger.end_attempt(f"{request_id}-1", "done")
        with ago(days=41):
            self.version(request_id, digest, 1, 0.842)
        wine_bundle().save(self.card(request_id, 1).parent / "bundle")

    def card(self, request_id: str, version: int) -> Path:
        """Write the model card of what a request has made."""
        card = self.settings.workspace(request_id) / "pooled" / "card.html"
        card.parent.mkdir(parents=True)
        variant = self.ledger.variant("growth.churn", version)
        card.write_text(render(card_of(make(Task.BINARY), variant=variant)), encoding="utf-8")
        return card

    def judged(self, request_id: str, version: int, score: float) -> None:
        """Let a gate have found something of a version."""
        passed, than = version < 3, 0.84
        comparison = Comparison(
            difference=score - than,
            low=score - than - 0.012,
            high=score - than + 0.013,
            probability=0.982 if passed else 0.004,
            candidate=score,
            baseline=than,
            n_rows=420,
            n_resamples=1000,
        )
        checks = [
            {"name": "improvement", "passed": passed, "value": score - than, "limit": 0.0, "sentence": "Better."},
            {"name": "latency", "passed": True, "value": 2.31, "limit": 20.0, "sentence": "Fast."},
            {"name": "size", "passed": True, "value": 12.4, "limit": 100.0, "sentence": "Small."},
            {"name": "leakage", "passed": True, "value": 0, "limit": 0, "sentence": "No column gives it away."},
        ]
        found = {"passed": passed, "baseline": "a constant", "comparison": comparison.model_dump(), "checks": checks}
        said = f"growth.churn/{version}: {'Passed' if passed else 'Not passed'}. 420 held-out rows were judged."
        self.ledger.note(request_id, "gate", said, payload=found)

    def advanced(self, request_id: str, states: tuple[RequestState, ...]) -> None:
        for state in states:
            self.ledger.advance(request_id, state, f"{state.value.title()}.")

    def version(self, request_id: str, digest: str, number: int, score: float, **more: object) -> None:
        base = {"name": "growth.churn", "state": "registered", "recipe": "tabular-auto", "recipe_digest": "a1b2" * 16}
        scores = {"metric": "roc_auc", "score": score, "score_low": score - 0.015, "score_high": score + 0.014}
        costs = {"size_mb": 12.4, "latency_ms": 2.31, "cost_s": 71, "bundle_digest": "c" * 64}
        document = base | scores | costs | {"version": number, "request_id": request_id, "dataset_digest": digest}
        self.ledger.record_variant(Variant.model_validate({**document, "task": "binary", **more}))

    def trials(self, request_id: str, n: int) -> None:
        chance = random.Random(0)
        for number in range(n):
            family = FAMILIES[number] if number < len(FAMILIES) else chance.choice(FAMILIES[1:])
            score = 0.5 if family == "constant" else 0.80 + 0.045 * chance.random() ** 0.5
            folds = tuple(range(8 if number in (2, 4) else 1))
            state = {5: "pruned", 7: "failed"}.get(number, "succeeded")
            curve = tuple(CurvePoint(step=k * 10, train=3 / (5 + k), validation=3.7 / (6 + k)) for k in range(1, 20))
            self.ledger.record_trial(
                request_id,
                Trial(
                    number=number,
                    family=family,
                    parameters={"a": number},
                    state=state,
                    score=None if state == "failed" else score,
                    train_score=score + 0.03,
                    folds=folds,
                    fold_scores=(score,) * len(folds),
                    cost_s=6 * chance.random(),
                    curve=curve if family != "constant" else (),
                ),
            )
