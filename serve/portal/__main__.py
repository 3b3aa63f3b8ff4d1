"""Run the portal: ``python -m serve.portal``, with FACTORY_HOST and FACTORY_PORTAL_PORT."""

from __future__ import annotations

import os

import uvicorn

from factory.settings import load_settings
from serve.threads import change_often

GRACE_S = 5
"""For which a stop waits for what is being answered; streams of events go on somewhere else after it."""


def main() -> None:
    """Run it until the process is told to end."""
    settings = load_settings()
    change_often()
    # Its own limits are for jobs, which wait; a person does not.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    uvicorn.run(
        "serve.portal.app:app",
        host=settings.host,
        port=settings.portal_port,
        log_config=None,
        access_log=False,
        server_header=False,
        # Which proxies are believed is FACTORY_TRUSTED_PROXIES' to say.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )


if __name__ == "__main__":
    main()
