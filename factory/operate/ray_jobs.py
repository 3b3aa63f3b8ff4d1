"""The jobs of a Ray cluster, through the REST API of Ray Jobs.

Ray's ``JobSubmissionClient`` wraps the same routes, but waits for ever where
the head hangs, lets ``RAY_ADDRESS`` override the address that it is given, and
needs all of Ray imported.  Nothing here starts or joins a Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

import httpx

from factory.errors import Conflict, InvalidRequest, NotFound, ServiceFault
from factory.operate.admission import Capacity
from factory.operate.jobs import LOG_BYTES, JobInfo, JobSpec, JobState

if TYPE_CHECKING:
    import aiohttp

ANSWER_S = 10.0
"""Ray answers in 5 to 30 ms (measured); ten seconds of silence mean that it hangs."""
SUBMIT_S = 30.0
"""The first job after a start is taken after 1 to 4 s; Ray itself waits 10 s for its agent and then refuses."""
LOG_LINES = 10_000
"""That Ray is asked for, so that a log of gigabytes does not travel."""
MESSAGE_CHARS = 4_000
"""Ray's message of a failed job holds up to 20,000 characters of its log; the end of them says why."""
IDLE_S = 10.0
"""How long a followed log may be silent until the caller is let look around."""

_HINT = "`factory status` shows whether Ray runs; `factory up` starts it. Jobs that it ran are made again."


class TokenRefused(ServiceFault):
    """Ray runs, and does not take our token."""


class RayJobs:
    """The jobs of a Ray cluster.

    Args:
        address: Of the head's dashboard, ``http://127.0.0.1:8265``.
        token_path: File with Ray's token, read for each call; None for a cluster without one.
        transport: Of HTTP; for tests.
    """

    def __init__(
        self, address: str, *, token_path: Path | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.address = address.rstrip("/")
        if urlsplit(self.address).scheme not in ("http", "https"):
            raise InvalidRequest(
                f"{address!r} is not the address of Ray's dashboard.", hint="It looks like http://127.0.0.1:8265."
            )
        self._token_path = token_path
        # trust_env: a proxy of the environment must not see Ray's token.
        self._client = httpx.Client(base_url=self.address, transport=transport, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def submit(self, spec: JobSpec) -> None:
        """Start a job; nothing happens where one of this name is known already."""
        body = {
            "submission_id": spec.submission_id,
            "entrypoint": spec.command,
            "runtime_env": {"env_vars": dict(spec.env)},
            "metadata": dict(spec.metadata),
            "entrypoint_num_cpus": spec.cpus,
            "entrypoint_num_gpus": spec.gpus,
            "entrypoint_memory": round(spec.memory_mb * 1e6),
        }
        answer = self._ask("POST", "/api/jobs/", json=body, timeout_s=SUBMIT_S)
        # Ray tells "already there" and all else by one status.
        if answer.status_code == httpx.codes.OK or self.info(spec.submission_id) is None:
            self._json(answer, f"did not take job {spec.submission_id!r}")

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end; return whether there was something to stop."""
        answer = self._ask("POST", f"{_path(submission_id)}/stop")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        return bool(self._json(answer, f"did not stop job {submission_id!r}")["stopped"])

    def info(self, submission_id: str) -> JobInfo | None:
        """Return what is known of a job; None where there is none of this name."""
        details = self._details(submission_id)
        return None if details is None else _info(details)

    def list(self) -> dict[str, JobInfo]:
        """Return all jobs by name; drivers that joined Ray by themselves are not among them."""
        found = self._json(self._ask("GET", "/api/jobs/"), "did not list its jobs")
        return {details["submission_id"]: _info(details) for details in found if details["type"] == "SUBMISSION"}

    def logs(self, submission_id: str) -> str:
        """Return the end of what a job printed."""
        details = self._known(submission_id)
        if details["driver_node_id"] is None:
            return ""
        query = {
            "node_id": details["driver_node_id"],
            "filename": f"job-driver-{submission_id}.log",
            "lines": str(LOG_LINES),
            "timeout": str(round(ANSWER_S)),
        }
        # Not /api/jobs/ID/logs: its agent reads the whole file into memory.
        with self._asking("GET", "/api/v0/logs/file", params=query) as answer:
            if answer.status_code == httpx.codes.OK:
                return _end_of(answer.iter_bytes())
            answer.read()
        raise self._refused(answer, f"has no log of job {submission_id!r}")

    def tail(self, submission_id: str) -> Iterator[str]:
        """Yield what a job prints until it has ended; call it from a thread without a running event loop."""
        self._known(submission_id)
        import asyncio

        import aiohttp

        address = f"{self.address}{_path(submission_id)}/logs/tail"
        with asyncio.Runner() as runner:
            session = runner.run(_opened(aiohttp.ClientTimeout(sock_connect=ANSWER_S)))
            try:
                socket = runner.run(_connected(session, address, headers=self._headers()))
                while True:
                    try:
                        message = runner.run(socket.receive(timeout=IDLE_S))
                    except TimeoutError:
                        yield ""
                        continue
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    yield message.data
                if socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
                    raise ServiceFault(f"Ray broke off the log of job {submission_id!r}.", hint=_HINT)
            except (aiohttp.ClientError, OSError) as error:
                raise ServiceFault(
                    f"Ray's log of job {submission_id!r} cannot be followed: {error}.", hint=_HINT
                ) from error
            finally:
                runner.run(session.close())

    def delete(self, submission_id: str) -> bool:
        """Let Ray forget an ended job; return whether it was known."""
        answer = self._ask("DELETE", _path(submission_id))
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        if answer.status_code != httpx.codes.OK:
            # It told why in a traceback only.
            known = self.info(submission_id)
            if known is None:
                return False
            if not known.state.ended:
                raise Conflict(f"Job {submission_id!r} is {known.state}.", hint="Stop it first.")
        return bool(self._json(answer, f"did not delete job {submission_id!r}")["deleted"])

    def capacity(self) -> Capacity:
        """Return what the living nodes have together; one call of about 10 ms, without joining Ray."""
        living = self._living()
        cpus, gpus, memory = (sum(float(node.get(name, 0.0)) for node in living) for name in ("CPU", "GPU", "memory"))
        return Capacity(cpus=cpus, gpus=gpus, memory_gb=memory / 1e9)

    def n_nodes(self) -> int:
        """Return how many nodes live."""
        return len(self._living())

    def _living(self) -> Sequence[dict[str, Any]]:
        answer = self._ask("GET", "/api/v0/nodes", params={"detail": "1", "limit": "10000"})
        nodes = self._json(answer, "did not list its nodes")["data"]["result"]["result"]
        return [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]

    def _known(self, submission_id: str) -> dict[str, Any]:
        details = self._details(submission_id)
        if details is None:
            raise NotFound(
                f"Ray knows no job {submission_id!r}.",
                hint="Ray forgets its jobs when it is restarted; what the request came to is in the ledger.",
            )
        return details

    def _details(self, submission_id: str) -> dict[str, Any] | None:
        answer = self._ask("GET", _path(submission_id))
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        details: dict[str, Any] = self._json(answer, f"did not tell of job {submission_id!r}")
        return details

    def _ask(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_S,
    ) -> httpx.Response:
        with self._asking(method, path, json=json, params=params, timeout_s=timeout_s) as answer:
            answer.read()
        return answer

    @contextmanager
    def _asking(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_S,
    ) -> Iterator[httpx.Response]:
        """Yield the answer with its body still to come; whatever breaks meanwhile is a ServiceFault."""
        headers = self._headers()
        try:
            with self._client.stream(
                method, path, json=json, params=params, timeout=timeout_s, headers=headers
            ) as answer:
                if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                    raise TokenRefused(
                        f"Ray at {self.address} does not take the token {str(self._token_path)!r}.",
                        hint="It is of another FACTORY_HOME or of another start: `factory down`, `factory up`. "
                        "RAY_AUTH_TOKEN_PATH names the token of a cluster that was started otherwise.",
                    )
                yield answer
        except httpx.TimeoutException as error:
            raise ServiceFault(f"Ray at {self.address} does not answer in time.", hint=_HINT) from error
        except httpx.HTTPError as error:
            raise ServiceFault(f"Ray at {self.address} cannot be reached: {error}.", hint=_HINT) from error

    def _headers(self) -> dict[str, str]:
        if self._token_path is None:
            return {}
        try:
            return {"Authorization": f"Bearer {self._token_path.read_text().strip()}"}
        except OSError as error:
            raise ServiceFault(
                f"Ray's token {str(self._token_path)!r} cannot be read: {error.strerror or error}.", hint=_HINT
            ) from error

    def _json(self, answer: httpx.Response, otherwise: str) -> Any:
        if answer.status_code == httpx.codes.OK:
            with suppress(ValueError):
                return answer.json()
        raise self._refused(answer, otherwise)

    def _refused(self, answer: httpx.Response, what: str) -> ServiceFault:
        # Of a traceback the last line says what is wrong.
        said = answer.text.strip().rpartition("\n")[2][:500]
        return ServiceFault(f"Ray at {self.address} {what}: {answer.status_code} {said}", hint=_HINT)


def _path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _info(details: Mapping[str, Any]) -> JobInfo:
    return JobInfo(
        submission_id=details["submission_id"],
        state=JobState(details["status"]),
        message=(details["message"] or "")[-MESSAGE_CHARS:],
        exit_code=details["driver_exit_code"],
        started_at=_time(details["start_time"]),
        ended_at=_time(details["end_time"]),
        metadata=details["metadata"] or {},
    )


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _end_of(chunks: Iterator[bytes]) -> str:
    """Return the last :data:`LOG_BYTES` of a stream, from the beginning of a line, in no more memory than that."""
    kept: deque[bytes] = deque()
    size, cut = 0, False
    for chunk in chunks:
        kept.append(chunk)
        size += len(chunk)
        while size - len(kept[0]) >= LOG_BYTES:
            size -= len(kept.popleft())
            cut = True
    text = b"".join(kept)
    if size > LOG_BYTES or cut:
        text = text[-LOG_BYTES:].partition(b"\n")[2]
    return text.decode(errors="replace")


async def _opened(timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(timeout=timeout)


async def _connected(
    session: aiohttp.ClientSession, address: str, *, headers: Mapping[str, str]
) -> aiohttp.ClientWebSocketResponse:
    return await session.ws_connect(address, headers=headers, heartbeat=ANSWER_S)
