"""A whole factory in this process: portal, controller, predictor and command line over one home, with its stores.

Only the cluster is simulated. Everything is made once; tests break one thing,
ask at every door, mend it, and ask again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from factory.cli.run import PATIENCE_S
from factory.data.features import join, materialize
from factory.data.online import OnlineReader
from factory.errors import SystemFault
from factory.ledger import Ledger, moments
from factory.operate.attending import LOST_S
from factory.operate.controller import Controller
from factory.operate.stack.services import declared
from factory.pipeline import REGISTRY_AWAY_S
from factory.settings import Settings
from factory.spec import Quota, Task, Variant, VariantRequest
from factory.testing.jobs import FakeJobs
from factory.variants.registry import Registry
from serve.app import Predictor
from serve.portal.app import create_app
from serve.replica import build
from tests.answers import error_of
from tests.cli.conftest import factory
from tests.portal.conftest import SETUP, World, customers
from tests.serve.conftest import SERVICE, TIMESTAMP, Caller, life_bundle, variant_of

NAME = "growth.life"
BRIEF_S = 0.3
"""For which doors wait here for a ledger that does not answer; 2 s to 60 s outside of tests."""
SOON_S, LATE_S = 5.0, 180.0
"""What waits has not ended so soon; what does not wait has ended by then, also on a busy machine."""


@dataclass
class Whole:
    """A factory.

    Attributes:
        world: The portal and its ledger.
        controller: One that leads.
        driver: The ledger as a job's driver has it.
        predictor: What serves.
        made: Folder of a bundle that jobs register once more, and its digest.
        entities: A table that jobs join features to.
        row: What the variant predicts.
        request_id: A request that waits.
    """

    world: World
    controller: Controller
    driver: Ledger
    predictor: Predictor
    made: Path
    digest: str
    entities: pd.DataFrame
    row: dict[str, Any]
    request_id: str = ""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))
    _seed: int = 0

    # --- doors ---------------------------------------------------------------------

    def read(self) -> int:
        return self._status(self.world("growth/read").get("/requests"))

    def submit(self) -> int:
        order = self.world.order() | {"seed": self._another()}
        return self._status(self.world().post("/requests", json=order))

    def upload(self) -> int:
        content = customers(self._another()).to_csv(index=False).encode()
        uploads = self.world.settings.uploads
        before = set(uploads.iterdir())
        response = self.world().post("/datasets", params={"filename": "c.csv"}, content=content)
        assert (set(uploads.iterdir()) == before) == (response.status_code != 201), "nothing half-stored stays"
        return self._status(response)

    def events(self) -> int:
        """Open a stream of events, and leave it once it has begun."""
        request_id, secret = self.request_id, self.world.secrets["growth/read"]
        return asyncio.run(_status(self.world.app, f"/api/v1/requests/{request_id}/events", secret))

    def promote(self) -> int:
        version = 2 if self._another() % 2 else 1
        body = {"version": version, "why": "To see whether it works."}
        return self._status(self.world("growth/deploy").post(f"/variants/{NAME}/promote", json=body))

    def log(self) -> int:
        """Read the log of a job that runs."""
        request_id = self.driver.open_attempts()[-1].request_id
        return self._status(self.world("growth/read").get(f"/requests/{request_id}/logs"))

    def ready(self) -> tuple[int, set[str]]:
        response = self.world(None).get("http://portal/readyz")
        assert self.world(None).get("http://portal/healthz").status_code == 200
        missing = {check["name"] for check in response.json()["checks"] if not check["ok"]}
        return response.status_code, missing - {"controller"}

    def command(self) -> int:
        """Submit by the command line of this machine."""
        settings, path = self.world.settings, self.made.with_name("order.json")
        order = VariantRequest.model_validate(self.world.order() | {"seed": self._another()})
        path.write_text(order.model_dump_json(by_alias=True, exclude_defaults=True))
        url = f"{settings.ledger}?timeout={BRIEF_S}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FACTORY_HOME", str(settings.root))
            patch.setenv("FACTORY_LEDGER_URL", url)
            patch.setenv("FACTORY_DASHBOARD_PORT", "9")
            answer = factory("submit", "--local", path)
        assert answer.code == 0 or answer.err.startswith("Error: "), answer.err
        assert "Unexpected" not in answer.err
        return answer.code

    def predict(self) -> int:
        """Ask a variant that is in memory."""
        body = {"dataframe_records": [self.row]}
        return self._predicted(body)

    def first_call(self) -> int:
        """Ask a variant that nobody has asked before."""
        kept = dict(self.predictor.core.cache._loaded), dict(self.predictor.core.table._known._known)
        self.predictor.core.cache._loaded.clear()
        self.predictor.core.table._known._known.clear()
        try:
            return self.predict()
        finally:
            self.predictor.core.cache._loaded.update(kept[0])
            self.predictor.core.table._known._known.update(kept[1])

    def by_entities(self) -> int:
        """Ask for a prediction with features from the online store."""
        body = {"entities": [{"country": "Peru", "continent": "Americas"}]}
        return self._predicted(body)

    def _predicted(self, body: dict[str, Any]) -> int:
        caller = Caller(self.predictor, self.world.secrets["growth/predict"])
        return caller.post(f"/variants/{NAME}/versions/1/invocations", json=body).status_code

    # --- what works by itself ---------------------------------------------------------

    def controls(self) -> str:
        try:
            assert self.controller.reconcile().led
        except SystemFault:
            return "waits"
        return "goes on"

    def works(self, told: str, mend: Callable[[], None]) -> None:
        """Check what a job comes to: each of its stages that needs a store of the factory.

        Args:
            told: ``goes on``, ``waits`` until it is mended, or ``tried again``: a fault of the system ends it, after
                which the controller tries every job again.
            mend: Mends what is broken.
        """
        stages = [self._pool.submit(stage) for stage in (self._note, self._register, self._join)]
        if told == "waits":
            time.sleep(SOON_S)
            assert not all(stage.done() for stage in stages)
            mend()
        faults = [fault for stage in stages if (fault := _fault(stage)) is not None]
        assert bool(faults) == (told == "tried again"), faults

    def loses_its_job(self) -> None:
        """Let the head of the cluster come back without the jobs that it had, and see that a request is tried again."""
        self.controller.reconcile()
        lost = self.driver.open_attempts()[-1]
        self.world.jobs.restart()
        with pytest.MonkeyPatch.context() as patch:
            later = moments.clock() + timedelta(seconds=LOST_S + 1)
            patch.setattr(moments, "clock", lambda: later)
            self.controller.reconcile()
        assert self.driver.attempt(lost.submission_id).outcome == "lost"
        assert self.driver.request(lost.request_id).not_before is not None

    def _note(self) -> None:
        self.driver.note(self.request_id, "search", "A driver writes this.")

    def _register(self) -> None:
        wanted = variant_of(NAME, 0, request_id=f"r-{self._another()}", task=Task.REGRESSION, digest=self.digest)
        registry = Registry(self.world.settings, patience_s=REGISTRY_AWAY_S)
        registry.register(self.made, variant=wanted, example=pd.DataFrame([self.row]), metrics={})

    def _join(self) -> None:
        join(self.entities, timestamp=TIMESTAMP, feature_service=SERVICE, settings=self.world.settings)

    def _status(self, response: httpx.Response) -> int:
        """Check the shape of what is refused, and return the status."""
        if not response.is_success:
            error = error_of(response, response.status_code)
            assert error["code"] in ("storage_fault", "service_fault")
            assert response.headers["retry-after"]
            assert str(self.world.settings.root) not in response.text, "where things are is told in the log only"
            assert "://" not in response.text
        return response.status_code

    def _another(self) -> int:
        self._seed += 1
        return self._seed


async def _status(app: Any, path: str, secret: str) -> int:
    begun: asyncio.Queue[int] = asyncio.Queue()
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http",
        "query_string": b"", "client": ("10.0.0.7", 1), "server": ("portal", 80),
        "headers": [(b"authorization", f"Bearer {secret}".encode()), (b"accept", b"text/event-stream")],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(LATE_S)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            begun.put_nowait(message["status"])

    task = asyncio.create_task(app(scope, receive, send))
    try:
        return await asyncio.wait_for(begun.get(), LATE_S)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _fault(stage: Future[None]) -> SystemFault | None:
    """Return the fault that ended a stage; whatever else ended it is raised."""
    try:
        stage.result(timeout=LATE_S)
    except SystemFault as fault:
        return fault
    return None


# --- making one ------------------------------------------------------------------------


@contextmanager
def whole(settings: Settings) -> Iterator[Whole]:
    """Make a factory: teams and tokens, features, two versions of a variant, and a request that waits."""
    secrets = {}
    ledger = Ledger.open(settings.ledger, patience_s=BRIEF_S)
    ledger.create_team("growth", title="Growth", quota=Quota(cpus=64), by=SETUP)
    for scope in ("read", "predict", "submit", "deploy"):
        scopes = (scope,) if scope == "read" else ("read", scope)
        secrets[f"growth/{scope}"] = ledger.issue_token(scope, team="growth", scopes=scopes, by=SETUP).secret
    OnlineReader(settings, SERVICE)
    materialize(settings)
    bundle, entities = life_bundle(settings)
    made = settings.root / "made"
    digest = bundle.save(made)
    row = dict.fromkeys((column.name for column in bundle.columns), None)
    for _ in (1, 2):
        _register(ledger, settings, made, digest=digest, row=row)
    jobs = FakeJobs()
    world = World(create_app(settings, jobs=jobs), settings, ledger, jobs, secrets)
    driver = Ledger.open(settings.ledger, patience_s=PATIENCE_S)
    controller = Controller(Ledger.open(settings.ledger, patience_s=BRIEF_S), jobs, settings)
    it = Whole(world, controller, driver, build(settings), made, digest, entities, row)
    it.request_id = world.submitted()
    try:
        yield it
    finally:
        it._pool.shutdown()
        for closing in (ledger, driver, controller.ledger, it.predictor.core.ledger, world.app.state.portal):
            closing.close()


def _register(ledger: Ledger, settings: Settings, made: Path, *, digest: str, row: dict[str, Any]) -> Variant:
    order = {"team": "growth", "name": "life", "recipe": "tabular-fast", "dataset": {"path": "x.csv", "target": "y"}}
    request_id = ledger.create_request(VariantRequest.model_validate(order)).id
    wanted = variant_of(NAME, 0, request_id=request_id, task=Task.REGRESSION, digest=digest)
    wanted = wanted.model_copy(update={"feature_service": SERVICE})
    registered = Registry(settings).register(made, variant=wanted, example=pd.DataFrame([row]), metrics={})
    return ledger.record_variant(registered)


class MlflowServer:
    """MLflow's server as the stack starts it; a context manager.

    Args:
        settings: Of the home that it keeps.
    """

    def __init__(self, settings: Settings) -> None:
        (self._service,) = [one for one in declared(settings) if one.name == "mlflow"]
        self.url = self._service.url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            self._service.command,
            env=dict(self._service.env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 2 * LATE_S
        while True:
            try:
                httpx.get(f"{self.url}/health", timeout=2).raise_for_status()
                return
            except httpx.HTTPError:
                assert self._process.poll() is None, "MLflow's server has ended"
                assert time.monotonic() < until
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill it with what it has started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
