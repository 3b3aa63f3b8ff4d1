"""The portal's application: ``uvicorn serve.portal.app:app``, or rather ``python -m serve.portal``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from factory.errors import FactoryError
from factory.operate import json_logs
from factory.operate.jobs import Jobs
from factory.operate.ray_jobs import RayJobs
from factory.search.cluster import ray_token
from factory.settings import Settings, load_settings
from serve.portal.context import Portal
from serve.portal.edge import Edge
from serve.portal.openapi import described
from serve.portal.pages.site import add_pages, shown
from serve.portal.replies import on_disk, on_fault, on_http, on_invalid
from serve.portal.routes import (
    batches,
    cluster,
    datasets,
    deployments,
    exports,
    features,
    health,
    proposals,
    quotes,
    recipes,
    requests,
    schedules,
    sharing,
    sign_in,
    streams,
    teams,
    tokens,
    variants,
)
from serve.release import release
from serve.tracing import Traced, tracer_of

THREADS = 16
"""Calls that are worked on at a time, the others wait; the ledger has connections for 20."""
_NOUNS = (
    requests,
    streams,
    quotes,
    datasets,
    features,
    recipes,
    variants,
    exports,
    proposals,
    deployments,
    batches,
    schedules,
    teams,
    tokens,
    sharing,
    cluster,
    sign_in,
)


def create_app(settings: Settings, *, jobs: Jobs | None = None) -> FastAPI:
    """Return the application; nothing is opened before the first call needs it.

    Args:
        settings: Say where ledger, cluster and uploads are, and what may be sent.
        jobs: The cluster; the one of the settings where not given.

    Raises:
        InvalidRequest: a setting is not valid.
        StorageFault: FACTORY_HOME cannot be written.
    """
    settings.prepare_home()
    if jobs is None:
        address = settings.dashboard
        jobs = RayJobs(address, token_path=ray_token(settings.root))
    app = FastAPI(
        title="model-variant-factory",
        version=release(),
        lifespan=_lifespan,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation,
    )
    app.state.portal = Portal(settings, jobs)
    for noun in _NOUNS:
        app.include_router(noun.router)
    for router in (sign_in.people, health.router):
        app.include_router(router)
    handlers = {FactoryError: on_fault, OSError: on_disk, RequestValidationError: on_invalid, HTTPException: on_http}
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, shown(handler))
    add_pages(app)
    app.add_middleware(Edge)
    app.add_middleware(Traced, tracer=tracer_of("portal"))
    app.openapi = partial(described, app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    # Takes half a second, for which the first who needs it would hold up all others.
    await to_thread.run_sync(described, app)
    yield
    app.state.portal.close()


@cache
def _app() -> FastAPI:
    json_logs.configure()
    return create_app(load_settings())


def __getattr__(name: str) -> Any:
    """Return ``app``, made when a server asks for it and not when this module is imported."""
    if name == "app":
        return _app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _operation(route: APIRoute) -> str:
    return route.name
