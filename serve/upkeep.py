"""What a replica does beside its calls: it loads champions at the start, and looks at feature services now and then."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial

from serve.core import Core
from serve.store import Reference

logger = logging.getLogger(__name__)

PRELOADED = 16
"""Champions loaded at start, pinned ones first; of thousands of names most are never called."""
REFRESHED_EVERY_S = 60.0
"""Between two looks at the feature store's registry: a service or a TTL that was applied anew counts after that."""

WRITTEN_EVERY_S = 10.0
"""Between two times that a replica's metrics are written for the others."""


async def preload(core: Core) -> None:
    """Load the first champions before somebody asks for them; requests are answered meanwhile.

    What fails is logged, and holds up nothing else: it is tried again when somebody asks for it.
    """
    try:
        await core.in_("load", core.warm_up)
    except Exception:
        logger.warning("what most variants need is imported when they are asked for", exc_info=True)
    try:
        served = await core.in_("ledger", core.ledger.deployments)
    except Exception:
        logger.warning("champions are loaded when they are asked for", exc_info=True)
        return
    names = list(dict.fromkeys(deployment.name for deployment in served if deployment.as_ == "champion"))
    n_loaded, first = 0, sorted(names, key=core.limits.pins, reverse=True)[:PRELOADED]
    for name in first:
        try:
            loaded = await core.cache.get(await core.table.resolve(Reference(name)))
            if (service := loaded.variant.feature_service) is not None:
                await core.in_("features", partial(core.features.warm_up, service))
            n_loaded += 1
        except Exception:
            logger.warning("%s is loaded when it is asked for", name, exc_info=True)
    logger.info("%d of %d champions are loaded", n_loaded, len(first))


async def keep_writing_metrics(core: Core, over: asyncio.Event) -> None:
    """Write this replica's metrics every few seconds where others read them, until it is over."""
    fleet = core.fleet
    while fleet is not None and not over.is_set():
        try:
            text = core.metrics()
            await core.in_("disk", partial(fleet.write, text))
        except Exception:
            logger.warning("metrics cannot be written for other replicas", exc_info=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), WRITTEN_EVERY_S)


async def keep_refreshing(core: Core, over: asyncio.Event) -> None:
    """Look every minute whether feature services have changed, in a thread of its own, until it is over."""
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), REFRESHED_EVERY_S)
        if over.is_set():
            return
        try:
            await core.in_("registry", core.features.refresh)
        except Exception:
            logger.warning("feature services could not be looked at; what is known of them counts", exc_info=True)
