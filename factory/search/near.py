"""Workers on this machine that need no Ray: forks of one process that has imported the frameworks.

Ray takes 5 to 12 s to start on two cores, and each of its workers 6 to 8 s more
to import what all of them import.  For a search of a minute that is a third of
its processor time.  Here one process, the nursery, imports the boosters while
the driver still reads the data, and forks a worker whenever one is wanted; a
worker so is there within milliseconds, and shares the memory of what was
imported.  The nursery itself fits nothing: it has one thread, and stays small.

``python -m factory.search.near FD`` is the nursery; FD is its end of a socket.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Self

import psutil

from factory import plugins
from factory.search.jobs import FitJob, FitResult, Jobs, TrialData
from factory.search.plan import family
from factory.search.trial import TrialRunner
from factory.search.tune import RECYCLE_SHARE
from factory.search.watchdog import death_of, ending_this_process_after

GROWN = b"grown"
"""What a worker says that is to be replaced."""
POOL = "trees"
"""Families of this pool share a worker: their frameworks are imported once."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")
"""A worker is one thread of work; and what has threads must not be forked."""
_WAIT_S = 0.02
"""Between two looks of an idle worker at whether there is a job."""
_END_S = 3.0
"""For which the nursery may take to end once it is let go, and a worker beyond its search's time to be there."""
_LONGEST_S = 120.0
"""For which a worker is waited for at most, however long its search: its nursery has to import the frameworks."""


class NearWorkers:
    """The nursery and its workers; closing it ends them all."""

    def __init__(self) -> None:
        self._nursery: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Start the nursery, which takes its time beside whatever is done meanwhile."""
        if self._nursery is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **dict.fromkeys(_THREADS, "1")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._control = ours

    def run(self, jobs: Jobs, data: TrialData, *, memory_limit_mb: float) -> bool:
        """Work through jobs, ``jobs.parallel`` at a time; return False where workers ran out before jobs did.

        Args:
            jobs: Where they come from.
            data: What they work on.
            memory_limit_mb: Resident memory that one worker may reach.
        """
        self.start()
        crew = [_Attendant(self, jobs, data, memory_limit_mb) for _ in range(jobs.parallel)]
        threads = [threading.Thread(target=one.attend, name=f"near-{i}", daemon=True) for i, one in enumerate(crew)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in crew:
            if one.error is not None:
                raise one.error
        return jobs.exhausted

    def worker(self) -> Connection:
        """Return a connection to a new worker.

        Raises:
            OSError: the nursery has ended.
        """
        if self._control is None:
            raise OSError("the workers' nursery was not started")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(self._control, [b"w"], [theirs.fileno()])
            return Connection(ours.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the nursery and, since their connections end with it, its workers."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._nursery is not None:
            try:
                self._nursery.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._nursery.kill()  # it is still importing
                self._nursery.wait()
            self._nursery = None


class _Attendant:
    """Hands jobs to one worker after the other has ended; runs in a thread."""

    def __init__(self, near: NearWorkers, jobs: Jobs, data: TrialData, memory_limit_mb: float) -> None:
        self._near, self._jobs, self._data, self._limit_mb = near, jobs, data, memory_limit_mb
        self.error: BaseException | None = None

    def attend(self) -> None:
        """Work until there is no further job, or no further worker."""
        try:
            while not self._jobs.exhausted:
                with contextlib.closing(self._near.worker()) as worker:
                    worker.send((self._data, self._limit_mb))
                    if not self._serve(worker):
                        return
        except (OSError, EOFError):
            return  # the nursery has ended; what it would have done is left to others
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self.error = error

    def _serve(self, worker: Connection) -> bool:
        """Hand jobs to a worker until there are none, or it has to be replaced; return whether another one is wanted.

        Raises:
            OSError, EOFError: it never came up.
        """
        if not worker.poll(min(max(self._jobs.deadline.left_s, 0.0) + _END_S, _LONGEST_S)):
            raise EOFError  # its nursery hangs
        worker.recv_bytes()  # it is there
        while not self._jobs.exhausted:
            job = self._jobs.next()
            if job is None:
                time.sleep(_WAIT_S)
                continue
            handed_at = time.time()
            try:
                worker.send_bytes(job.model_dump_json().encode())
                result = FitResult.model_validate_json(worker.recv_bytes())
                grown = worker.recv_bytes() == GROWN
            except (OSError, EOFError):
                self._jobs.lost(job, death_of(job, handed_at=handed_at))
                return True
            self._jobs.done(job, result)
            if grown:
                return True
        return False


# --- the nursery's side ----------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Import the frameworks, and fork a worker for each connection that the driver sends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends, and with it the connection
    with socket.socket(fileno=int(arguments[0])) as control:
        for module in frameworks():
            importlib.import_module(module)
        while True:
            descriptor = _received(control)
            if descriptor is None:
                os._exit(0)  # at once: what an interpreter does at its end takes a second after so many imports
            if os.fork() == 0:
                control.close()
                _work(descriptor)
                os._exit(0)
            os.close(descriptor)


def frameworks() -> list[str]:
    """Return the modules that families of the pool import."""
    found: dict[str, None] = {}
    for name in plugins.names("families"):
        kind = family(name)
        if kind.pool == POOL:
            found |= dict.fromkeys(kind.modules)
    return list(found)


def _received(control: socket.socket) -> int | None:
    """Return the next worker's end of its connection; None when the driver has let go."""
    try:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    except OSError:
        return None
    return descriptors[0] if descriptors else None


def _work(descriptor: int) -> None:
    """Run jobs until the driver lets go of the connection."""
    with contextlib.suppress(EOFError, OSError), Connection(descriptor) as driver:
        data, limit_mb = driver.recv()
        runner = TrialRunner(data, threads=1, memory_limit_mb=limit_mb)
        driver.send_bytes(b"ready")
        while True:
            job = FitJob.model_validate_json(driver.recv_bytes())
            with ending_this_process_after(job):
                result = runner.run(job)
            driver.send_bytes(result.model_dump_json().encode())
            grown = psutil.Process().memory_info().rss / 1e6 > RECYCLE_SHARE * limit_mb
            driver.send_bytes(GROWN if grown else b"")


if __name__ == "__main__":
    main(sys.argv[1:])
