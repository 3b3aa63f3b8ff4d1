"""``python -m serve.predictor --port 8000``: all variants behind one Ray Serve application.

One ingress deployment holds the variants itself: every further hop would cost
6 ms (docs/decisions).  Without ``RAY_ADDRESS`` a small Ray is started for it on
this machine.  It listens on the loopback address.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from factory.errors import Conflict, Detail, FactoryError, ServiceFault
from factory.operate.deployments import MARK, announce_ready, drain_s, grpc_port
from factory.operate.ports import HOST, free_port
from factory.settings import Settings, load_settings
from serve.proxy import proxy_environment, proxy_folder
from serve.replica import PredictorDeployment
from serve.tls import Certificate, TlsProxy

APPLICATION = "predictor"
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""The least that Ray takes; requests do not pass through the object store."""
_ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ),
    "1",
)
"""One row is predicted faster by one thread than by several that have to be woken."""

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serve.predictor", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, help="port of the HTTP endpoint; default: FACTORY_SERVE_PORT")
    parser.add_argument("--grpc-port", type=int, help="port for gRPC; default: FACTORY_SERVE_GRPC_PORT")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings()
        wanted = settings.serve_port if options.port is None else options.port
        port = free_port(wanted)
        for_grpc = grpc_port(settings, after=wanted) if options.grpc_port is None else free_port(options.grpc_port)
        certificate = Certificate.of(settings)
        if certificate is not None:
            certificate.check()
        with proxy_folder(settings.prepare_home()) as folder, contextlib.ExitStack() as around:
            # Ray takes messages of 2 GB otherwise, before anybody has looked at their token.
            most = {"RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(int(1.1e6 * settings.max_request_mb) + 100_000)}
            # Of a Ray that is started here: its workers would give way to everything else on the machine.
            os.environ.setdefault("RAY_worker_niceness", "0")
            # And every five seconds its agent would look through all processes, for a dashboard that is not there.
            os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
            environment = {
                **proxy_environment(folder, ongoing=settings.serve_max_ongoing, drain_s=drain_s(settings)),
                **_ONE_THREAD,
                **most,
            }
            os.environ.update(environment)
            front: TlsProxy | None = None
            if certificate is not None:
                tls_port = free_port(settings.serve_tls_port, setting="FACTORY_SERVE_TLS_PORT")
                ports = {"port": tls_port, "http": port, "grpc": for_grpc}
                front = TlsProxy(certificate, folder, **ports, deadline_s=settings.serve_deadline_s)
                around.callback(front.close)
                logger.info("over TLS the predictor listens on port %d of all addresses", tls_port)
            run(settings, port=port, for_grpc=for_grpc, environment=environment, leave=front.leave if front else None)
    except FactoryError as error:
        logger.error("%s %s", error.message, error.hint)
        return error.exit_code
    return 0


def run(
    settings: Settings,
    *,
    port: int,
    for_grpc: int,
    environment: dict[str, str],
    leave: Callable[[], None] | None = None,
) -> None:
    """Start Ray and Serve, wait for SIGTERM or SIGINT, and stop both.

    ``leave`` is called before, so that nobody calls what is being stopped.

    Raises:
        ServiceFault: Ray or Serve cannot be started.
    """
    import ray
    from ray import serve

    stop = threading.Event()
    ours = False
    try:
        _connect(ray, settings, environment=environment)
        ours = True
        # After ray.init, which sets handlers of its own that end the process at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": HOST, "port": port},
            grpc_options={"port": for_grpc, "grpc_servicer_functions": ["serve.inference_messages.add_to_server"]},
        )
        deployment = serve.deployment(
            name=APPLICATION,
            num_replicas=settings.serve_replicas,
            # Above our own limit, which answers at once where Serve would let callers wait.
            max_ongoing_requests=4 * settings.serve_max_ongoing,
            graceful_shutdown_timeout_s=drain_s(settings),
            ray_actor_options={"num_cpus": 1},
            # Without its access log Serve still makes a record of each call.
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )(serve.ingress()(PredictorDeployment))
        serve.run(deployment.bind(settings), name=APPLICATION, route_prefix="/")
        announce_ready(settings)
        logger.info("the predictor listens on http://%s:%d, for gRPC on %s:%d", HOST, port, HOST, for_grpc)
        stop.wait()
        logger.info("the predictor stops")
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        raise ServiceFault(
            f"Ray Serve could not be started: {error}{_said(serve)}",
            hint="`factory doctor` checks Ray; see also RAY_ADDRESS.",
        ) from error
    finally:
        if leave is not None:
            leave()
        if ours:
            serve.shutdown()
        ray.shutdown()


def _connect(ray: Any, settings: Settings, *, environment: dict[str, str]) -> None:
    if not os.environ.get("RAY_ADDRESS"):
        ray.init(
            # "local": without it Ray would join any Ray that it finds on this machine.
            address="local",
            num_cpus=settings.serve_replicas,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
        )
        return
    # Serve's controller, proxy and replicas are processes of the cluster, which do not have our environment.
    carried = ("PYTHONPATH", MARK)
    ours = {name: value for name, value in os.environ.items() if name in carried or name.startswith("OTEL_")}
    variables = environment | ours
    ray.init(address=os.environ["RAY_ADDRESS"], runtime_env={"env_vars": variables}, log_to_driver=False)
    with contextlib.suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        raise Conflict(
            f"The Ray cluster {os.environ['RAY_ADDRESS']!r} serves something already, with a proxy of its own.",
            hint="Stop it (`serve shutdown`), or leave RAY_ADDRESS empty: a small Ray is started for the predictor.",
            details=[Detail("RAY_ADDRESS", "its Ray Serve cannot be shared")],
        )


def _said(serve: Any) -> str:
    """Return what Serve says of the replicas that it could not start."""
    with contextlib.suppress(Exception):
        deployments = serve.status().applications[APPLICATION].deployments.values()
        return "".join(f"\n{deployment.message}" for deployment in deployments)
    return ""


if __name__ == "__main__":
    sys.exit(main())
