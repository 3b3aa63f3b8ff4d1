"""Small services started, killed and stopped as a stack."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from factory.errors import Conflict, ServiceFault, StorageFault
from factory.operate.ports import free_port
from factory.operate.stack import control, supervisor
from factory.operate.stack.control import StackStatus
from factory.operate.stack.processes import MARK, SERVICE, Leader, family, identity
from factory.operate.stack.records import HttpProbe, Plan, Port, Service, ServiceState, StackFolder, StackState, now
from factory.operate.stack.supervisor import Supervisor

from .stacks import lives, marked, states, until

PROGRAM = """
import http.server, os, signal, subprocess, sys, time
port, how = int(sys.argv[1]), sys.argv[2]
print("begins", how, flush=True)
if how == "broken":
    sys.exit("no such table: requests")
if "stubborn" in how:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
    subprocess.Popen([sys.executable, "-c", child], start_new_session=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(4)
        self.send_response(503 if how == "sick" else 200)
        self.end_headers()
        self.wfile.write(b"ready")

    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def service(name: str, how: str = "well", *, needs: tuple[str, ...] = (), port: int = 0, **more: float) -> Service:
    """A service that answers on a port."""
    number = port or free_port(0)
    return Service(
        name=name,
        command=(sys.executable, "-c", PROGRAM, str(number), how),
        env={"PATH": os.environ["PATH"], "GREETING": name},
        ports=(Port(number=number, setting=f"FACTORY_{name.upper()}_PORT"),),
        health=HttpProbe(url=f"http://127.0.0.1:{number}/", contains="ready", timeout_s=1),
        depends_on=needs,
        url=f"http://127.0.0.1:{number}",
        **{"stop_s": 1.0, "start_s": 20.0, **more},
    )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A FACTORY_HOME whose stack is ended afterwards."""
    yield tmp_path / "home"
    control.stop(tmp_path / "home")


# --- a stack of small services ---------------------------------------------------


def test_a_stack_is_started_in_order_watched_and_stopped(home: Path) -> None:
    told: list[tuple[str, str]] = []
    services = [service("portal", needs=("ledger",)), service("ledger")]
    state = control.start(home, services, progress=lambda each: told.append((each.name, each.state)))
    assert state.phase == "running"
    assert set(told) >= {("portal", "waiting"), ("portal", "healthy"), ("ledger", "healthy")}
    said = (home / "stack" / "supervisor.log").read_text()
    assert said.index("ledger is well") < said.index("portal is started") < said.index("portal is well")
    assert control.look(home).supervised
    for each in control.look(home).services:
        assert (each.state, each.restarts, each.message) == ("healthy", 0, "")
        assert each.pid is not None
        assert each.uptime_s is not None
        assert 0 < each.uptime_s < 60
        assert each.memory_mb is not None
        assert each.memory_mb > 1
        process = psutil.Process(each.pid)
        assert os.getsid(each.pid) == os.getpgid(each.pid) == each.pid
        assert {n: v for n, v in process.environ().items() if n not in (MARK, "LC_CTYPE")} == {
            "PATH": os.environ["PATH"], "GREETING": each.name, SERVICE: each.name,
        }  # fmt: skip
        lines = [json.loads(line) for line in Path(each.log).read_text().splitlines()]
        assert [(line["service"], line["message"]) for line in lines] == [(each.name, "begins well")]
        assert int((home / "stack" / f"{each.name}.pid").read_text()) == each.pid
    with pytest.raises(Conflict, match=rf"runs already, supervised by process {state.pid}") as error:
        control.start(home, services)
    assert "factory down" in error.value.hint
    assert set(states(home).values()) == {"healthy"}, "a second start does no harm"
    assert (home / "stack").stat().st_mode & 0o777 == 0o700
    names = ["ledger.log", "ledger.pid", "lock", "plan.json", "portal.log", "portal.pid", "state.json"]
    files = {path.name: oct(path.stat().st_mode & 0o777) for path in (home / "stack").iterdir()}
    assert files == dict.fromkeys([*names, "supervisor.err", "supervisor.log"], "0o600")
    assert sorted(control.stop(home)) == ["ledger", "portal"]
    assert marked(home) == []
    assert not control.look(home).supervised
    assert states(home) == {"ledger": "stopped", "portal": "stopped"}
    assert not list((home / "stack").glob("*.pid"))
    assert control.stop(home) == ()


def test_taken_ports_are_refused_before_anything_starts(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        again = free_port(0)
        services = [service("mlflow", port=busy), service("portal", port=again), service("predictor", port=again)]
        with pytest.raises(Conflict, match=f"Port {busy} on 127.0.0.1 cannot be used") as error:
            control.start(home, services)
    assert f"Process {os.getpid()}" in error.value.message
    assert [detail.field for detail in error.value.details] == ["FACTORY_MLFLOW_PORT", "FACTORY_PREDICTOR_PORT"]
    assert f"Port {again} is also FACTORY_PORTAL_PORT" in error.value.details[1].message
    assert control.look(home) == StackStatus()


def test_two_stacks_live_side_by_side(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    control.start(home, [service("portal")])
    control.start(other, [service("portal")])
    try:
        control.stop(home)
        assert states(home) == {"portal": "stopped"}
        assert states(other) == {"portal": "healthy"}
        with pytest.raises(Conflict, match="portal: Port"):
            control.start(home, [service("portal", port=control.look(other).services[0].ports[0])])
    finally:
        control.stop(other)


def test_a_service_that_ends_while_it_starts_takes_the_others_with_it_and_its_log_is_told(home: Path) -> None:
    with pytest.raises(ServiceFault, match="portal ended with exit code 1") as error:
        control.start(home, [service("ledger"), service("portal", "broken", needs=("ledger",))])
    assert "begins broken\nno such table: requests" in error.value.message
    assert str(home / "stack") in error.value.hint
    assert marked(home) == []
    assert set(states(home).values()) == {"stopped"}
    assert control.look(home).fault == "portal ended with exit code 1"
    control.start(home, [service("ledger")])
    assert states(home) == {"ledger": "healthy"}


def test_a_service_that_is_not_well_in_time_is_told_with_what_it_answers(home: Path) -> None:
    with pytest.raises(ServiceFault, match=r"portal was not well within 1 s: http://127.0.0.1:\d+/ answers 503"):
        control.start(home, [service("portal", "sick", start_s=1.0)])
    assert marked(home) == []


def test_a_killed_service_is_started_again_and_what_it_left_is_ended(home: Path) -> None:
    control.start(home, [service("portal", "stubborn")])
    (before,) = control.look(home).services
    assert before.pid is not None
    orphans = [process for process in marked(home) if process.pid != before.pid]
    assert len(orphans) == 1
    psutil.Process(before.pid).kill()
    until(
        lambda: control.look(home).services[0].restarts == 1 and states(home) == {"portal": "healthy"},
        "it did not come back",
    )
    (after,) = control.look(home).services
    assert after.pid != before.pid
    assert not lives(orphans[0])
    said = (home / "stack" / "supervisor.log").read_text()
    assert "portal ended with signal SIGKILL; it is started again in 1 s" in said


def test_what_ignores_the_stop_is_killed_with_its_children(home: Path) -> None:
    control.start(home, [service("portal", "stubborn", stop_s=0.3)])
    living = marked(home)
    assert len(living) == 2
    assert control.stop(home) == ("portal",)
    assert not any(lives(process) for process in living)
    assert "had to be killed" in (home / "stack" / "supervisor.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_nothing_is_left_after_a_killed_supervisor(home: Path) -> None:
    state = control.start(home, [service("ledger"), service("portal", "stubborn")])
    living = {process.pid: process for process in marked(home)}
    ledger = next(each for each in control.look(home).services if each.name == "ledger")
    psutil.Process(state.pid).kill()
    until(lambda: not lives(living[ledger.pid or 0]), "services go on without a supervisor")
    assert not control.look(home).supervised
    assert states(home)["ledger"] == "stopped"
    again = control.start(home, [service("ledger")])
    assert again.mark != state.mark
    assert not any(lives(process) for process in living.values()), "a new start clears away the old"
    psutil.Process(again.pid).kill()
    control.stop(home)
    assert marked(home) == []


def test_a_process_that_has_a_number_of_ours_by_chance_is_left_alone(home: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        folder = StackFolder(home)
        folder.prepare()
        boot = (identity(stranger.pid) or "").partition(":")[0]
        for known in ("another", f"{boot}:12345"):
            each = ServiceState(name="portal", state="healthy", pid=stranger.pid, identity=known, started=now())
            folder.write(
                StackState(mark="none", pid=stranger.pid, identity=known, phase="running", services=(each,), fault="")
            )
            assert control.stop(home) == ()
            assert stranger.poll() is None
            assert family(Leader(stranger.pid, known), mark="none") == []
        assert [p.pid for p in family(Leader(stranger.pid, identity(stranger.pid) or ""), mark="none")] == [
            stranger.pid
        ]
    finally:
        stranger.kill()
        stranger.wait()


def test_trouble_after_trouble_is_waited_for_longer_and_longer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_BACKOFF_S", 0.03)
    folder = StackFolder(home)
    folder.prepare()
    dying = service("portal")
    running = Supervisor(folder, Plan(mark="m" * 32, services=(dying,)))
    thread = threading.Thread(target=running.run)
    thread.start()

    def well_again(round_: int) -> bool:
        unit = running._units[0] if running._units else None
        return unit is not None and unit.starts > round_ and unit.state == "healthy"

    try:
        for round_ in range(4):
            until(partial(well_again, round_), "it is not well")
            psutil.Process(running._units[0].record.pid).kill()
    finally:
        running.stop()
        thread.join()
    notes = [json.loads(line)["message"] for line in folder.log_file("supervisor").read_text().splitlines()]
    waits = [note.rpartition("started again in ")[2] for note in notes if "started again in" in note]
    assert waits[:3] == ["0.01 s", "0.02 s", "0.03 s"]


def test_a_supervisor_in_the_foreground_prints_json_tells_systemd_and_stops_at_sigterm(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from factory.operate.stack import control;"
        "from factory.operate.stack.records import Plan;"
        "plan = Plan.model_validate_json(sys.argv[2]);"
        "control.run(Path(sys.argv[1]), plan.services, echo=True, on_ready=lambda: 'the token is there')"
    )
    plan = Plan(mark="none", services=(service("portal"),))
    channel = home.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(channel))
        systemd.settimeout(30)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(home), plan.model_dump_json()],
            env={**os.environ, "NOTIFY_SOCKET": str(channel)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert systemd.recv(100) == b"READY=1"
        assert states(home) == {"portal": "healthy"}
        process.send_signal(signal.SIGTERM)
        assert systemd.recv(100) == b"STOPPING=1"
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    messages = [json.loads(line)["message"] for line in said.splitlines()]
    assert {"begins well", "all services are well", "the token is there", "has stopped"} <= set(messages)
    assert marked(home) == []


def test_a_start_that_cannot_be_finished_is_stopped_again(home: Path) -> None:
    def no_token() -> str:
        raise StorageFault("The ledger is locked.")

    with pytest.raises(ServiceFault, match=r"could not finish the start: The ledger is locked\."):
        control.run(home, [service("portal")], on_ready=no_token)
    assert marked(home) == []
    assert states(home) == {"portal": "stopped"}


def test_a_program_that_is_not_there_is_told(home: Path) -> None:
    missing = service("portal").model_copy(update={"command": ("no-such-program",)})
    with pytest.raises(ServiceFault, match="no-such-program cannot be run: No such file"):
        control.start(home, [missing])


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFault):
        control.start(tmp_path / "file" / "home", [service("portal")])
    assert control.look(tmp_path / "none") == StackStatus()
    assert control.stop(tmp_path / "none") == ()
    assert not (tmp_path / "none").exists(), "looking makes nothing"


@pytest.mark.parametrize(
    ("services", "said"),
    [
        ([service("a"), service("a")], "one name each"),
        ([service("a", needs=("b",))], r"a depends on \['b'\]"),
        ([service("a", needs=("b",)), service("b", needs=("a",))], "in a circle"),
    ],
)
def test_a_plan_that_could_not_be_started_is_not_made(services: list[Service], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Plan(mark="none", services=tuple(services))
