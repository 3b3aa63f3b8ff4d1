"""The sampler sees daemons and shared memory as they are, and leaves nothing running."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.sampler import Measurement, measure

BLOCK_MB = 120

DAEMON = f"""
import os, subprocess, sys
code = "import os, time; print(os.getpid(), flush=True); block = bytearray(b'1') * ({BLOCK_MB} << 20); time.sleep({{}})"
# Double fork and a session of its own: how Ray's processes leave their parent.
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", code.format(sys.argv[1])])
    os._exit(0)
os.wait()
import time; time.sleep(2)
"""

FORKS = f"""
import os, time
block = bytearray(b'1') * ({BLOCK_MB} << 20)
children = [pid for _ in range(3) if (pid := os.fork()) or time.sleep(1.5) or os._exit(0)]
for _ in children: os.wait()
"""

BUSY = """
import sys, time
print("said")
while time.process_time() < 1: pass
sys.exit(3)
"""


def python(code: str, *arguments: str, log: Path, timeout_s: float | None = None) -> Measurement:
    return measure([sys.executable, "-c", code, *arguments], log=log, timeout_s=timeout_s)


def test_a_daemon_counts_and_is_no_leftover_when_it_ends(tmp_path: Path) -> None:
    taken = python(DAEMON, "1.5", log=tmp_path / "log")
    assert taken.returncode == 0
    assert BLOCK_MB < taken.peak_pss_mb < 2 * BLOCK_MB
    assert taken.peak[0].pss_mb > BLOCK_MB
    assert taken.left_behind == ()
    assert 2 < taken.wall_s < 6


def test_what_outlives_the_command_is_named_and_killed(tmp_path: Path) -> None:
    taken = python(DAEMON, "60", log=tmp_path / "log")
    assert [p.name.split()[1:2] for p in taken.left_behind] == [["-c"]]
    assert not psutil.pid_exists(int((tmp_path / "log").read_text()))


def test_memory_that_forks_share_counts_once(tmp_path: Path) -> None:
    taken = python(FORKS, log=tmp_path / "log")
    assert len(taken.peak) == 4
    assert BLOCK_MB < taken.peak_pss_mb < 1.5 * BLOCK_MB


def test_a_late_command_is_killed_with_all_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    taken = python("import os, time; os.fork(); time.sleep(60)", log=tmp_path / "log", timeout_s=1.0)
    assert taken.timed_out
    assert taken.returncode < 0
    assert time.monotonic() - started < 20
    assert len(taken.left_behind) == 1


def test_exit_code_output_and_processor_time(tmp_path: Path) -> None:
    taken = python(BUSY, log=tmp_path / "log")
    assert taken.returncode == 3
    assert (tmp_path / "log").read_text() == "said\n"
    assert 0.4 < taken.cpu_s < 1.5


def test_own_children_from_before_are_left_alone(tmp_path: Path) -> None:
    with psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as mine:
        taken = python("pass", log=tmp_path / "log")
        assert taken.left_behind == ()
        assert mine.is_running()
        mine.kill()


def test_a_command_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        measure(["there-is-no-such-command"])
