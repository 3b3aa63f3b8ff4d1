"""What runs in each replica: the ASGI application over the ledger, the registry and the feature store."""

from __future__ import annotations

import gc
import importlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from factory.errors import StorageFault
from factory.ledger import Ledger
from factory.search.near import frameworks
from factory.settings import Settings
from factory.spec import Variant
from factory.variants.registry import Registry
from serve import access_log, tracing
from serve.app import Predictor
from serve.core import Core, Watcher
from serve.fleet_metrics import FleetMetrics
from serve.inference_messages import METHODS
from serve.inference_service import InferenceService
from serve.limits import Limits
from serve.loaded import Loaded, Stock
from serve.online import FeatureReaders
from serve.recording import Recorder
from serve.threads import change_often

COLLECTED_EVERY_S = 30.0
LEDGER_S = 2.0
"""For which a call of the ledger waits for one that does not answer: what is asked next may be answered by then."""


def build(settings: Settings) -> Predictor:
    """Return the predictor's ASGI application.

    Raises:
        StorageFault: the ledger cannot be used.
    """
    registry, stock = Registry(settings), Stock()

    def load(variant: Variant) -> Loaded:
        folder = registry.bundle_folder(variant)
        try:
            return Loaded.read(variant, folder, stock)
        except OSError as error:
            raise StorageFault(
                f"The files of {variant.name}/{variant.version} cannot be read: {error.strerror or error}.",
                hint="Look at the artifact storage: is it mounted, and may this user read it?",
            ) from error

    recorder = Recorder.of(settings)
    core = Core(
        Ledger.open(settings.ledger, patience_s=LEDGER_S),
        load=load,
        features=FeatureReaders(settings),
        limits=Limits.of(settings),
        recorder=recorder,
        fleet=FleetMetrics(settings.root / "served" / "metrics", _rank),
        mirror=registry.set_alias,
        warm_up=partial(warm_up, registry),
        watchers=tuple(_watchers(settings)),
    )
    # Also where nothing is written down: what is old is removed all the same.
    recorder.start()
    return Predictor(core)


def _rank() -> int:
    """Return this replica's number in the fleet; Serve gives it anew when others have ended."""
    # Not above: Serve reads its environment when it is imported, which the predictor has to set before.
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return int(serve.get_replica_context().rank.rank)
    except RayServeException:
        return 0  # a process that is none


def _watchers(settings: Settings) -> Iterator[Watcher]:
    if settings.serve_access_log:
        yield access_log.watcher(settings.root / "logs")
    if (tracer := tracing.tracer_of("predictor")) is not None:
        yield tracing.watcher(tracer)


def warm_up(registry: Registry) -> None:
    """Import MLflow and the frameworks of most variants: it takes seconds, which no caller should wait for.

    Raises:
        FactoryError: MLflow does not answer.
    """
    for module in frameworks():
        importlib.import_module(module)
    registry.warm_up()
    _collect_apart_from_calls()


def _collect_apart_from_calls() -> None:
    """Look for garbage twice a minute, and not whenever a call has made enough objects.

    A call leaves nothing behind that only a search finds, and a search within one holds up one in a hundred of them for
    a millisecond or more. What is there now stays, and is not looked through again.
    """
    gc.collect()
    gc.freeze()
    gc.disable()

    def collect() -> None:
        while True:
            time.sleep(COLLECTED_EVERY_S)
            gc.collect()

    threading.Thread(target=collect, name="garbage", daemon=True).start()


class PredictorDeployment:
    """The class that Ray Serve makes in each replica; ``serve.ingress`` asks it for the application.

    It has the methods of :data:`~serve.inference_messages.METHODS`, which Serve calls for gRPC.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._inference: InferenceService | None = None

    def __serve_build_asgi_app__(self) -> Predictor:
        """Return the application of this replica."""
        change_often()
        predictor = build(self._settings)
        self._inference = InferenceService(predictor.core)
        return predictor

    async def _infer(self, method: str, request: Any, context: Any) -> Any:
        assert self._inference is not None
        return await getattr(self._inference, method)(request, context)


def _method(name: str) -> Any:
    async def method(self: PredictorDeployment, request: Any, grpc_context: Any) -> Any:
        return await self._infer(name, request, grpc_context)

    return method


for _of_protocol, _ours in METHODS.items():
    setattr(PredictorDeployment, _of_protocol, _method(_ours))
