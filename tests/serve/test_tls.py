"""Calls over TLS by the real proxy: HTTP and gRPC on one port, callers' certificates, and one that is renewed."""

from __future__ import annotations

import http.server
import json
import logging
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from factory.errors import InvalidRequest
from factory.operate.ports import free_ports
from factory.settings import Settings
from serve.tls import Certificate, TlsProxy

from .authority import Authority

METHOD = "/test.Echo/Say"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority.pem")


class Heard(http.server.BaseHTTPRequestHandler):
    """Answers with the headers that it was sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        told = {name.lower(): ", ".join(self.headers.get_all(name, ())) for name in self.headers}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Quiet(http.server.ThreadingHTTPServer):
    """Says nothing of connections that its callers have cut."""

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture
def behind() -> Iterator[dict[str, int]]:
    """What stands for the predictor: a server for HTTP and one for gRPC, and the ports of both and of the proxy."""
    port, for_http, for_grpc = free_ports(3)
    server = Quiet(("127.0.0.1", for_http), Heard)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    echo = grpc.unary_unary_rpc_method_handler(lambda request, _: b"heard " + request)
    rpc = grpc.server(ThreadPoolExecutor(2))
    rpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Say": echo}),))
    rpc.add_insecure_port(f"127.0.0.1:{for_grpc}")
    rpc.start()
    try:
        yield {"port": port, "http": for_http, "grpc": for_grpc}
    finally:
        rpc.stop(None).wait()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def proxy(certificate: Certificate, folder: Path, ports: dict[str, int]) -> Iterator[TlsProxy]:
    folder.mkdir(mode=0o700, exist_ok=True)
    with closing(TlsProxy(certificate, folder, **ports, deadline_s=2.5)) as front:
        yield front


def post(port: int, authority: Authority, *, own: Path | None = None) -> dict[str, str]:
    trust = ssl.create_default_context(cafile=authority.path)
    if own is not None:
        trust.load_cert_chain(own)
    with httpx.Client(verify=trust, trust_env=False) as client:
        answer = client.post(
            f"https://127.0.0.1:{port}/variants/a.b/invocations", headers={"x-forwarded-for": "9.9.9.9"}
        )
        found: dict[str, str] = answer.json()
        return found


def shown(port: int) -> str:
    """Return the common name of the certificate that callers get."""
    text = ssl.get_server_certificate(("127.0.0.1", port))
    [name] = x509.load_pem_x509_certificate(text.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def test_http_and_grpc_are_answered_on_one_port(authority: Authority, behind: dict[str, int], tmp_path: Path) -> None:
    chain = authority.issue(tmp_path / "server.pem")
    with proxy(Certificate(chain, chain), tmp_path / "proxy", behind):
        heard = post(behind["port"], authority)
        assert heard["x-forwarded-for"] == "9.9.9.9, 127.0.0.1", "who calls comes last, after what it says itself"
        assert heard["x-forwarded-proto"] == "https"
        trust = grpc.ssl_channel_credentials(authority.path.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{behind['port']}", trust) as channel:
            assert channel.unary_unary(METHOD)(b"us", timeout=10) == b"heard us"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{behind['port']}/", trust_env=False).raise_for_status()
        for path in (tmp_path / "proxy").glob("tls.*"):
            assert path.stat().st_mode & 0o077 == 0


def test_callers_without_a_certificate_are_not_heard_where_they_need_one(
    authority: Authority, behind: dict[str, int], tmp_path: Path
) -> None:
    chain, own = authority.issue(tmp_path / "server.pem"), authority.issue(tmp_path / "caller.pem", "caller")
    stranger = Authority(tmp_path / "stranger.pem").issue(tmp_path / "stranger-caller.pem")
    with proxy(Certificate(chain, chain, authority.path), tmp_path / "proxy", behind):
        assert post(behind["port"], authority, own=own)["host"]
        for wrong in (None, stranger):
            with pytest.raises(httpx.HTTPError):
                post(behind["port"], authority, own=wrong)


def test_a_certificate_that_was_renewed_is_shown_and_one_that_is_none_is_not(
    authority: Authority, behind: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain = authority.issue(tmp_path / "server.pem", "first")
    with proxy(Certificate(chain, chain), tmp_path / "proxy", behind) as front:
        assert shown(behind["port"]) == "first"
        authority.issue(tmp_path / "new.pem", "second").replace(chain)
        front.look()
        assert shown(behind["port"]) == "second"
        chain.write_text("half a file")
        with caplog.at_level(logging.ERROR):
            front.look()
        assert "stays as it is" in caplog.text
        assert shown(behind["port"]) == "second"
        assert post(behind["port"], authority)


def test_a_proxy_that_was_killed_is_started_again(authority: Authority, behind: dict[str, int], tmp_path: Path) -> None:
    chain = authority.issue(tmp_path / "server.pem")
    with proxy(Certificate(chain, chain), tmp_path / "proxy", behind) as front:
        front._process.kill()
        front._process.wait()
        front.look()
        assert post(behind["port"], authority)


def test_who_leaves_takes_no_further_calls(authority: Authority, behind: dict[str, int], tmp_path: Path) -> None:
    chain = authority.issue(tmp_path / "server.pem")
    with proxy(Certificate(chain, chain), tmp_path / "proxy", behind) as front:
        assert post(behind["port"], authority)
        front.leave()
        front._process.wait(30)
        with pytest.raises(httpx.HTTPError):
            post(behind["port"], authority)


@pytest.mark.parametrize("content", [b"", b"no certificate"])
def test_a_file_that_is_no_certificate_is_named(content: bytes, tmp_path: Path) -> None:
    chain = tmp_path / "server.pem"
    chain.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"server\.pem cannot be used for TLS"):
        Certificate(chain, chain).check()
    missing = tmp_path / "missing.pem"
    with pytest.raises(InvalidRequest, match=r"missing\.pem cannot be read: No such file or directory\.") as refused:
        Certificate(chain, missing).check()
    assert [detail.field for detail in refused.value.details] == ["FACTORY_SERVE_TLS_KEY"]


def test_a_key_alone_is_refused(tmp_path: Path) -> None:
    assert Certificate.of(Settings(home=tmp_path)) is None
    with pytest.raises(InvalidRequest, match="no certificate"):
        Certificate.of(Settings(home=tmp_path, serve_tls_key=tmp_path / "key.pem"))
