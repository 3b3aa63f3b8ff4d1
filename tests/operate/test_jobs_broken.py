"""Jobs with faults: broken answers of Ray, which only a fake of HTTP gives, and the simulated cluster's on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from factory.errors import Conflict, InvalidRequest, NotFound, ServiceFault, StorageFault
from factory.operate import ray_jobs
from factory.operate.admission import Capacity
from factory.operate.jobs import LOG_BYTES, JobInfo, Jobs, JobSpec, JobState
from factory.operate.ray_jobs import RayJobs
from factory.search.cluster import ray_token
from factory.testing.jobs import FakeJobs, Script

# --- broken answers of Ray, which only a fake of HTTP can give -------------------


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> RayJobs:
    return RayJobs("http://127.0.0.1:8265", transport=httpx.MockTransport(answer))


def broken(error: type[httpx.TransportError]) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error("refused", request=request)

    return answer


CALLS: dict[str, Callable[[Jobs], object]] = {
    "submit": lambda jobs: jobs.submit(JobSpec("a-1", ("true",))),
    "stop": lambda jobs: jobs.stop("a-1"),
    "info": lambda jobs: jobs.info("a-1"),
    "list": lambda jobs: jobs.list(),
    "logs": lambda jobs: jobs.logs("a-1"),
    "tail": lambda jobs: list(jobs.tail("a-1")),
    "delete": lambda jobs: jobs.delete("a-1"),
    "capacity": lambda jobs: jobs.capacity(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (broken(httpx.ConnectError), "cannot be reached: refused"),
        (broken(httpx.ReadTimeout), "does not answer in time"),
        (broken(httpx.RemoteProtocolError), "cannot be reached"),
        (lambda _: httpx.Response(500, text="Traceback:\nRuntimeError: the agent is gone"), "the agent is gone"),
        (lambda _: httpx.Response(200, text="<html>another server</html>"), "another server"),
        (lambda _: httpx.Response(401), "token"),
    ],
)
def test_whatever_breaks_is_a_fault_that_says_what_to_do(
    call: str, answer: Callable[[httpx.Request], httpx.Response], said: str
) -> None:
    with answering(answer) as jobs, pytest.raises(ServiceFault, match=said) as fault:
        CALLS[call](jobs)
    assert "factory" in fault.value.hint
    assert "http://127.0.0.1:8265" in fault.value.message


def details(**more: object) -> dict[str, object]:
    return {
        "type": "SUBMISSION",
        "submission_id": "a-1",
        "status": "RUNNING",
        "message": "m" * 20_000,
        "metadata": None,
        "start_time": 1_700_000_000_000,
        "end_time": None,
        "driver_exit_code": None,
        "driver_node_id": "n1",
        **more,
    }


def test_a_submit_that_ray_refuses_counts_where_the_job_is_there() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        known = request.method == "GET"
        return httpx.Response(200, json=details()) if known else httpx.Response(500, text="it already exists")

    with answering(answer) as jobs:
        jobs.submit(JobSpec("a-1", ("true",)))


def test_a_job_that_ended_between_two_looks_is_still_deleted_or_told() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        return httpx.Response(404) if request.method == "GET" else httpx.Response(500, text="gone meanwhile")

    with answering(answer) as jobs:
        assert not jobs.delete("a-1")
    assert asked == ["DELETE", "GET"]


def test_of_a_long_log_and_a_long_message_the_end_is_told() -> None:
    lines = [f"{number:09d}" for number in range(150_000)]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/api/v0/logs/file":
            return httpx.Response(200, json=details())
        assert dict(request.url.params) == {
            "node_id": "n1",
            "filename": "job-driver-a-1.log",
            "lines": str(ray_jobs.LOG_LINES),
            "timeout": "10",
        }
        parts = ("".join(f"{line}\n" for line in lines[first : first + 1000]) for first in range(0, len(lines), 1000))
        return httpx.Response(200, content=(part.encode() for part in parts))

    with answering(answer) as jobs:
        kept = jobs.logs("a-1").splitlines()
        known = jobs.info("a-1")
    assert kept == lines[-len(kept) :]
    assert LOG_BYTES - 20 <= 10 * len(kept) <= LOG_BYTES
    assert known == JobInfo(
        "a-1", JobState.RUNNING, "m" * ray_jobs.MESSAGE_CHARS, started_at=datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    )


def test_only_living_nodes_count_and_only_submitted_jobs_are_listed() -> None:
    def node(living: str, **resources: float) -> dict[str, object]:
        return {"state": living, "resources_total": resources}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/jobs/":
            return httpx.Response(200, json=[details(), {"type": "DRIVER", "submission_id": None}])
        nodes = [node("ALIVE", CPU=4, GPU=1, memory=8e9), node("ALIVE", CPU=2), node("DEAD", CPU=64, memory=1e12)]
        return httpx.Response(200, json={"data": {"result": {"result": nodes}}})

    with answering(answer) as jobs:
        assert jobs.capacity() == Capacity(cpus=6, gpus=1, memory_gb=8)
        assert jobs.n_nodes() == 2
        assert list(jobs.list()) == ["a-1"]


def test_what_is_sent_reserves_what_the_entrypoint_holds() -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={})

    spec = JobSpec("a-1", ("run", "a b"), env={"A": "1"}, metadata={"team": "t"}, cpus=0.5, gpus=1, memory_mb=2000)
    with answering(answer) as jobs:
        jobs.submit(spec)
    assert sent == [
        {
            "submission_id": "a-1",
            "entrypoint": "umask 077; ulimit -c 0; exec run 'a b'",
            "runtime_env": {"env_vars": {"A": "1"}},
            "metadata": {"team": "t"},
            "entrypoint_num_cpus": 0.5,
            "entrypoint_num_gpus": 1,
            "entrypoint_memory": 2_000_000_000,
        }
    ]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"submission_id": "a/../b"}, "submission_id"),
        ({"submission_id": ""}, "submission_id"),
        ({"entrypoint": "rm -rf /"}, "entrypoint"),
        ({"entrypoint": ()}, "entrypoint"),
        ({"entrypoint": ("a\0b",)}, "entrypoint"),
        ({"folder": "a\0b"}, "folder"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"SECRET": "s3cr3t\0"}}, "env"),
        ({"env": {"SECRET": "s3cr3t$HOME"}}, "env"),
        ({"env": {"SECRET": "s3cr3t${HOME}"}}, "env"),
    ],
)
def test_a_job_that_a_shell_could_misread_is_not_made(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as error:
        JobSpec(**({"submission_id": "a-1", "entrypoint": ("true",)} | changes))  # type: ignore[arg-type]
    assert {detail.field for detail in error.value.details} == {field}
    assert "s3cr3t" not in error.value.message


def test_the_address_and_the_token_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="localhost:8265"):
        RayJobs("localhost:8265")
    made = ray_token(tmp_path / "home")
    made.chmod(0o644)
    before = made.read_text()
    assert len(before) == 64
    assert ray_token(tmp_path / "home").read_text() == before
    assert made.stat().st_mode & 0o777 == 0o600


def test_the_token_of_a_cluster_that_was_started_otherwise_is_the_one_that_ray_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "ray_token"
    theirs.write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(theirs))
    assert ray_token(tmp_path / "home") == theirs
    assert not (tmp_path / "home").exists()
    theirs.unlink()
    with pytest.raises(StorageFault, match="is no file"):
        ray_token(tmp_path / "home")


# --- the fake's own: faults ------------------------------------------------------


def test_a_lost_answer_has_had_its_effect_and_a_refused_call_has_not() -> None:
    jobs = FakeJobs()
    jobs.fail_next("submit")
    with pytest.raises(ServiceFault):
        jobs.submit(JobSpec("a-1", ("run",)))
    assert jobs.info("a-1") is None
    jobs.fail_next("submit", answer_lost=True)
    with pytest.raises(ServiceFault):
        jobs.submit(JobSpec("a-1", ("run",)))
    jobs.submit(JobSpec("a-1", ("run",)))
    jobs.advance(60)
    assert jobs.starts == {"a-1": 1}


def test_jobs_go_on_while_the_cluster_cannot_be_reached_and_are_forgotten_when_it_is_restarted() -> None:
    jobs = FakeJobs(lambda _: Script(run_s=30))
    jobs.submit(JobSpec("a-1", ("run",)))
    jobs.reachable = False
    for ask in CALLS.values():
        with pytest.raises((ServiceFault, NotFound)):
            ask(jobs)
    jobs.advance(60)
    jobs.reachable = True
    assert jobs.list()["a-1"].state is JobState.SUCCEEDED
    jobs.submit(JobSpec("b-1", ("run",), cpus=2))
    jobs.advance(10)
    followed = jobs.tail("b-1")
    next(followed)
    jobs.restart()
    assert jobs.list() == {}
    assert jobs.free == jobs.capacity()
    with pytest.raises(ServiceFault):
        next(followed)
    jobs.submit(JobSpec("b-1", ("run",), cpus=2))
    jobs.advance(60)
    assert jobs.list()["b-1"].state is JobState.SUCCEEDED


def test_a_job_that_is_lost_with_its_node_has_no_exit_code() -> None:
    jobs = FakeJobs(lambda _: Script(run_s=30, lines=((1, "one"), (20, "never"))))
    jobs.submit(JobSpec("a-1", ("run",), cpus=2))
    jobs.submit(JobSpec("b-1", ("run",), cpus=2))
    jobs.advance(5)
    jobs.lose("a-1")
    jobs.lose("b-1")
    jobs.advance(60)
    assert {(job.state, job.exit_code) for job in jobs.list().values()} == {(JobState.FAILED, None)}
    assert jobs.logs("a-1") == "one\n"
    assert jobs.starts == {"a-1": 1}
    assert jobs.free == jobs.capacity()


def test_a_step_acts_while_the_job_runs_and_may_end_it() -> None:
    seen: list[str] = []
    steps = ((5.0, lambda: seen.append("five")), (10.0, lambda: 3), (15.0, lambda: seen.append("never")))
    jobs = FakeJobs(lambda _: Script(start_s=1, run_s=100, steps=steps))
    jobs.submit(JobSpec("a-1", ("run",)))
    jobs.advance(100)
    known = jobs.info("a-1")
    assert seen == ["five"]
    assert known is not None
    assert (known.exit_code, known.ended_at) == (3, jobs.now - timedelta(seconds=89))


def test_a_job_that_never_fits_fails_in_the_end_and_a_deleted_name_is_used_up() -> None:
    jobs = FakeJobs()
    jobs.submit(JobSpec("large-1", ("run",), cpus=3))
    jobs.submit(JobSpec("small-1", ("run",), cpus=1))
    jobs.advance(60)
    assert [job.state for job in jobs.list().values()] == [JobState.PENDING, JobState.SUCCEEDED]
    jobs.advance(900)
    known = jobs.info("large-1")
    assert known is not None
    assert (known.state, known.exit_code) == (JobState.FAILED, None)
    assert jobs.delete("large-1")
    with pytest.raises(Conflict):
        jobs.submit(JobSpec("large-1", ("run",)))


def test_ten_thousand_jobs_pass_in_virtual_time_and_each_runs_once() -> None:
    jobs = FakeJobs(lambda _: Script(run_s=60), capacity=Capacity(cpus=1000, gpus=0, memory_gb=1000))
    for number in range(10_000):
        jobs.submit(JobSpec(f"r{number}-1", ("run",)))
    while jobs.next_event is not None:
        jobs.advance((jobs.next_event - jobs.now).total_seconds())
    assert set(jobs.starts.values()) == {1}
    assert {job.state for job in jobs.list().values()} == {JobState.SUCCEEDED}
    assert len(jobs.list()) == 10_000
