"""An application on Ray Serve that does nothing, in the same mode as the predictor: what the way to it costs.

Run with the path of a file that gets its port, and ended by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from factory.operate.ports import HOST, free_port
from serve.proxy import proxy_environment, proxy_folder


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, and answer with two bytes."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


class Nothing:
    """The deployment."""

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application."""
        return nothing


def main() -> int:
    """Serve until SIGTERM."""
    told = Path(sys.argv[1])
    with proxy_folder(told.parent) as folder:
        os.environ.update(proxy_environment(folder, ongoing=32, drain_s=10.0))
        import ray
        from ray import serve

        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        over = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: over.set())
        port = free_port(0)
        serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port})
        deployment = serve.deployment(
            name="nothing",
            max_ongoing_requests=1_000,
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )(serve.ingress()(Nothing))
        serve.run(deployment.bind(), name="nothing", route_prefix="/")
        told.write_text(str(port))
        over.wait()
        serve.shutdown()
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
