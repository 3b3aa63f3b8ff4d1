"""The factory against other AutoML systems: the same rows, two cores, seconds and seed for each.

``python -m bench.peers.install`` first, which gives each system an environment
of its own.  A run is a child process that is measured from outside and written
to ``bench/results/automl.jsonl`` when it has ended; what is there already is
not run again, so that a comparison that was stopped goes on, on another day too
where that file was committed.  ``--report`` runs nothing: it writes
``docs/benchmark.md`` and its charts from what is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from bench.automl_report import write_report
from bench.claim import bare_parser
from bench.factory_fit import LOG, Fit, limit_s
from bench.peers import OURS, PEERS, Peer, python_of
from bench.peers.install import installed
from bench.peers.job import META, PREDICTIONS, Job, Meta
from bench.record import RESULTS, ROOT, WORK, clean_environment, commit, hardware
from bench.runs import Key, Run, append, missing, read
from bench.sampler import Measurement, measure
from bench.sets import SETS, SOURCE_VARIABLE, BenchSet, score, source, write_split

FOLDER = WORK / "automl"
JOURNAL = RESULTS / "automl.jsonl"
CORES = 2
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "LOKY_MAX_CPU_COUNT")
"""Libraries that count the machine's cores rather than those the process may use."""
SLOW_STARTERS = {"autogluon-best": 300}
"""Systems that are asked for only from so many seconds on, where nobody names them: below they overrun twofold."""
MAX_ERROR = 200


def main() -> int:
    """Run what is missing, or write the report; return 1 where a run of ours failed or was late."""
    known = [OURS, *PEERS]
    parser = bare_parser(__doc__)
    parser.add_argument("--peers", nargs="+", choices=known, metavar="NAME", help=f"{', '.join(known)} (default: all)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of split and fit (default: 0)")
    parser.add_argument("--budget", type=int, default=60, metavar="SECONDS", help="of each fit (default: 60)")
    parser.add_argument("--again", action="store_true", help="run also what has been run")
    parser.add_argument("--report", action="store_true", help="run nothing; write docs/benchmark.md")
    chosen = parser.parse_args()
    if chosen.report:
        return write_report(read(JOURNAL), journal=JOURNAL)
    folder = source()
    if folder is None:
        print(f"Skipped: {SOURCE_VARIABLE} names no folder with the tables.")
        return 0
    peers = chosen.peers or [peer for peer in known if chosen.budget >= SLOW_STARTERS.get(peer, 0)]
    if absent := [peer for peer in peers if peer != OURS and not installed(PEERS[peer].environment)]:
        print(f"Not installed: {', '.join(absent)}; python -m bench.peers.install {' '.join(absent)}")
        return 1
    # Whole cells first: a comparison that is stopped can then be told of what it has.
    wanted = [Key(peer, data, seed, chosen.budget) for seed in chosen.seeds for data in chosen.sets for peer in peers]
    todo = wanted if chosen.again else missing(wanted, read(JOURNAL))
    print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are there; {len(todo)} to go", flush=True)
    met = True
    for number, key in enumerate(todo, 1):
        run = compete(key, source=folder)
        append(JOURNAL, run)
        print(f"[{number}/{len(todo)}] {told(run)}", flush=True)
        met &= key.peer != OURS or (run.score is not None and run.wall_s <= limit_s(key.budget_s))
    return 0 if met else 1


def compete(key: Key, *, source: Path) -> Run:
    """Run one system on one table, score it, and delete all that it made but its predictions and its log."""
    bench_set = SETS[key.data]
    folder = FOLDER / f"{key.budget_s}s" / f"{key.data}-{key.seed}" / key.peer
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    truth = write_split(bench_set, source, work, seed=key.seed)
    taken, meta = _ours(bench_set, key, work) if key.peer == OURS else _theirs(PEERS[key.peer], bench_set, key, work)
    result, error = None, None
    if taken.returncode == 0:
        try:
            result = score(bench_set, truth, pd.read_parquet(work / PREDICTIONS))
        except (KeyError, ValueError, OSError) as wrong:
            error = str(wrong)
    else:
        error = "out of time" if taken.timed_out else _last_line(work / LOG)
    for kept in (PREDICTIONS, META, Path(LOG)):
        if (work / kept).exists():
            (work / kept).rename(folder / kept)
    shutil.rmtree(work)
    return Run(
        **key._asdict(),
        score=result,
        loss=None if result is None else bench_set.loss(result),
        wall_s=round(taken.wall_s - (meta.timing_s if meta else 0), 2),
        fit_s=round(meta.fit_s, 2) if meta and key.peer != OURS else None,
        latency_ms=round(meta.latency_ms, 3) if meta else None,
        peak_pss_mb=round(taken.peak_pss_mb),
        cpu_s=round(taken.cpu_s, 1),
        others_cores=round(taken.others_cores, 2),
        returncode=taken.returncode,
        timed_out=taken.timed_out,
        error=error,
        versions=meta.versions if meta else {},
        commit=commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
    )


def _ours(bench_set: BenchSet, key: Key, work: Path) -> tuple[Measurement, Meta | None]:
    fit = Fit(
        train=work / "train.parquet",
        test=work / "test.parquet",
        target=bench_set.target,
        budget_s=key.budget_s,
        seed=key.seed,
        home=work / "home",
    )
    taken = fit.run(work / PREDICTIONS, timeout_s=patience_s(key.budget_s), prefix=pinned())
    if taken.returncode:
        return taken, None
    try:
        return taken, Meta(fit_s=0.0, latency_ms=fit.latency_ms(prefix=pinned()), timing_s=0.0, versions={})
    except subprocess.CalledProcessError as wrong:
        with (work / LOG).open("a") as log:
            log.write(str(wrong.stderr))
        return taken, None


def _theirs(peer: Peer, bench_set: BenchSet, key: Key, work: Path) -> tuple[Measurement, Meta | None]:
    job = Job(
        train=str(work / "train.parquet"),
        test=str(work / "test.parquet"),
        target=bench_set.target,
        task=bench_set.task,
        metric=bench_set.metric,
        budget_s=key.budget_s,
        seed=key.seed,
        cores=CORES,
        option=peer.option,
    )
    job.write(work / "job.json")
    threads = dict.fromkeys(THREADS, str(CORES))
    taken = measure(
        [*pinned(), str(python_of(peer.environment)), "-m", f"bench.peers.{peer.runner}", "job.json"],
        env=clean_environment(work / "home") | threads | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(key.seed)},
        cwd=work,
        log=work / LOG,
        timeout_s=patience_s(key.budget_s),
    )
    return taken, Meta.read(work / META) if taken.returncode == 0 else None


def pinned() -> tuple[str, ...]:
    """Return the command that holds what it starts to the first cores that this process may use."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    return ("taskset", "--cpu-list", ",".join(map(str, cores)))


def patience_s(budget_s: int) -> float:
    """Return the seconds after which a run is killed."""
    return budget_s * 3.0 + 120


def told(run: Run) -> str:
    """Return a line about a run for the terminal."""
    outcome = f"failed: {run.error}" if run.score is None else f"{SETS[run.data].metric} {run.score:g}"
    latency = "" if run.latency_ms is None else f", one row {run.latency_ms:.1f} ms"
    return (
        f"{run.data} seed {run.seed}, {run.peer}: {outcome}; {run.wall_s:.0f} s{latency}, {run.peak_pss_mb:.0f} MB, "
        f"others used {run.others_cores:.1f} cores"
    )


def _last_line(log: Path) -> str:
    """Return the last line of a failed process's output, without this machine's folders."""
    lines: Sequence[str] = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].replace(f"{ROOT}/", "")[:MAX_ERROR] if lines else "no output"


if __name__ == "__main__":
    sys.exit(main())
