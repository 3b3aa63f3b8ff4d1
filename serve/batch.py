"""``python -m serve.batch NAME --data ROWS --out FOLDER``: predictions of any number of rows, part by part.

Each part of the input becomes one Parquet file, which is there whole or not at
all; a run that was ended goes on with the parts that are missing.  Ray Data
spreads the parts over the cluster; few rows are predicted in this process,
before a Ray would be up.  ``factory predict`` starts it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from factory.errors import Conflict, Detail, FactoryError, InvalidData, InvalidRequest, StorageFault, error_of
from factory.ledger import Ledger
from factory.search.cluster import local_cpus, session
from factory.settings import Settings, load_settings
from factory.spec import ColumnType, Variant
from factory.variants.bundle import Bundle
from factory.variants.reference import resolve
from factory.variants.registry import Registry
from serve.batch_source import Part, files_of, parts_of
from serve.batch_worker import Done, Job, predict_part, put_whole
from serve.progress import Bar

PLAN, MANIFEST, UNPACKED = "_plan.json", "_manifest.json", ".unpacked"
"""Names that whoever reads the folder as one table leaves out."""
_EARLIER_PLAN, _EARLIER_MANIFEST = "plan.json", "manifest.json"
FEW_BYTES = 200_000_000
"""Of input that is predicted in this process: a Ray takes 5 to 12 s to start."""
PATIENCE_S = 120.0
"""For parts that are under way when one of them cannot be predicted."""
PARKED = "Prefetcher"
"""Ray Data's thread that fetches ahead: it waits for ever, and asks for nothing."""


@dataclass(frozen=True)
class Plan:
    """What is predicted, by what, and into which files; kept beside the predictions.

    Attributes:
        variant: ``name/version``.
        bundle_digest: Of its bundle.
        keep: Columns of the input that the output has as well.
        sources: Path, size and time of change of each file.
        parts: Of the files.
    """

    variant: str
    bundle_digest: str
    keep: tuple[str, ...]
    sources: tuple[tuple[str, int, int], ...]
    parts: tuple[Part, ...]

    def text(self) -> str:
        """Return it as it is stored."""
        return json.dumps(asdict(self), indent=1)


def main(arguments: list[str] | None = None) -> int:
    """Predict, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serve.batch", description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="team.name, team.name@alias or team.name/version")
    parser.add_argument("--data", required=True, help="Parquet, CSV or Arrow: a file, a folder or a pattern")
    parser.add_argument("--out", required=True, help="folder for the predictions")
    parser.add_argument("--keep", action="append", default=[], help="column that the predictions have as well")
    options = parser.parse_args(arguments)
    try:
        done = predict(options.name, options.data, Path(options.out), keep=options.keep, settings=load_settings())
    except FactoryError as error:
        sys.stderr.write(f"{error.message} {error.hint}".strip() + "\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Ended; the same command goes on with the parts that are missing.\n")
        return 130
    sys.stdout.write(f"{done}\n")
    return 0


def predict(name: str, data: str | Sequence[Path], out: Path, *, keep: Sequence[str], settings: Settings) -> str:
    """Predict all rows, and return a sentence of what was done.

    Args:
        name: Of the variant, as people write it.
        data: Files of rows, as a path or as :func:`~serve.batch_source.files_of` has found them.
        out: Folder for the predictions; made where there is none.
        keep: Columns of the input that the output has as well.
        settings: Of this process.

    Raises:
        NotFound: there is no such variant.
        InvalidData: rows cannot be read or predicted; what was predicted before is kept.
        Conflict: the folder holds something else.
        StorageFault: the folder cannot be written, or the variant's files are gone.
    """
    settings.prepare_home()
    with Ledger.open(settings.ledger) as ledger:
        variant = resolve(name, ledger=ledger)
    folder = Registry(settings).bundle_folder(variant)
    bundle = Bundle.load(folder, digest=variant.bundle_digest)
    if taken := sorted({*bundle.output_names, "version"} & set(keep)):
        raise InvalidRequest(
            f"keep: {taken[0]!r} is a column of the predictions.",
            hint="Rename it in the input, or leave it out.",
            details=[Detail("keep", f"{name!r} is taken") for name in taken],
        )
    files = files_of(data) if isinstance(data, str) else data
    plan = _planned(variant, files, out, keep=tuple(keep))
    job = Job(
        folder=str(folder),
        digest=variant.bundle_digest,
        variant=variant.name,
        version=variant.version,
        feature_service=variant.feature_service,
        keep=plan.keep,
        text_columns=tuple(
            c.name for c in bundle.columns if c.type in (ColumnType.CATEGORICAL, ColumnType.TEXT, ColumnType.IDENTIFIER)
        ),
        out=str(out.resolve()),
        settings=settings,
    )
    known = {part.number: done for part in plan.parts if (done := job.done(part)) is not None}
    left = [part for part in plan.parts if part.number not in known]
    if any(not Path(part.path).exists() for part in left):
        parts_of(files, unpacked=out.resolve() / UNPACKED)  # compressed CSV, as an earlier run had unpacked it
    began = time.monotonic()
    with Bar(f"{plan.variant}", total=sum(part.n_bytes for part in plan.parts), unit="rows") as bar:
        bar.advance(sum(part.n_bytes for part in plan.parts if part.number in known), 0)
        with closing(_made(left, job, bundle, settings)) as made:
            for part, done in made:
                known[part.number] = done
                bar.advance(part.n_bytes, done.n_rows)
    took_s = time.monotonic() - began
    total = _finished(plan, [known[part.number] for part in plan.parts], out)
    made_rows = sum(known[part.number].n_rows for part in left)
    earlier = f", {total - made_rows:,} of them earlier" if len(left) < len(plan.parts) else ""
    pace = f" in {took_s:,.0f} s ({made_rows / took_s:,.0f} a second)" if left else ""
    return f"{total:,} predictions of {plan.variant} are in {str(out)!r}{earlier}{pace}."


def made_rows(out: Path) -> int:
    """Return how many predictions a folder has, whose manifest is there.

    Raises:
        StorageFault: it is not.
    """
    try:
        return int(json.loads((out / MANIFEST).read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError) as error:
        raise StorageFault(
            f"{str(out / MANIFEST)!r} cannot be read: {error}.", hint="Predict the rows again."
        ) from error


def _planned(variant: Variant, files: Sequence[Path], out: Path, *, keep: tuple[str, ...]) -> Plan:
    """Return the plan of these predictions: the one of the folder where that is of the same."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        stats = [path.stat() for path in files]
        sources = tuple((str(p), s.st_size, s.st_mtime_ns) for p, s in zip(files, stats, strict=True))
        wanted = Plan(f"{variant.name}/{variant.version}", variant.bundle_digest, keep, sources, ())
        begun = _begun(out)
        if begun is not None:
            _require_same(begun, wanted, out)
            return begun
        if any(one.name != UNPACKED for one in out.iterdir()):
            raise Conflict(
                f"{str(out)!r} is not empty, and was not made by this command.",
                hint="Name another folder.",
                details=[Detail("out", "is not empty")],
            )
        plan = replace(wanted, parts=tuple(parts_of(files, unpacked=out.resolve() / UNPACKED)))
        if not plan.parts:
            raise InvalidData(
                f"There are no rows in {str(files[0])!r}.",
                hint="Give a table with rows.",
                details=[Detail("data", "no rows")],
            )
        put_whole(out / PLAN, plan.text())
    except OSError as error:
        raise StorageFault(
            f"The folder {str(out)!r} cannot be used: {error.strerror or error}.",
            hint="Name a folder that this user may write, with room for the predictions.",
            details=[Detail("out", str(error))],
        ) from error
    return plan


def _begun(out: Path) -> Plan | None:
    """Return the plan by which a folder was begun, also under the name that it had in earlier releases.

    Raises:
        Conflict: nobody can go on with it.
    """
    earlier = out / _EARLIER_PLAN
    path = out / PLAN if (out / PLAN).exists() or not earlier.exists() else earlier
    if not path.exists():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        parts = tuple(Part(**one) for one in read.pop("parts"))
        sources = tuple((str(place), int(size), int(moment)) for place, size, moment in read.pop("sources"))
        plan = Plan(keep=tuple(read.pop("keep")), sources=sources, parts=parts, **read)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Conflict(
            f"{str(path)!r} cannot be read: {error}.",
            hint="Remove the folder and begin anew, or name another one.",
            details=[Detail("out", f"{path.name} is damaged, or another program's")],
        ) from error
    if path == earlier:
        if any(UNPACKED in Path(part.path).parts for part in plan.parts):
            raise Conflict(
                f"{str(out)!r} was begun by an earlier release, with compressed CSV that it may have mixed up.",
                hint="Remove the folder and begin anew, or name another one.",
                details=[Detail("out", "was begun by an earlier release")],
            )
        earlier.rename(out / PLAN)
        if (out / _EARLIER_MANIFEST).exists():
            (out / _EARLIER_MANIFEST).rename(out / MANIFEST)
    return plan


def _require_same(begun: Plan, wanted: Plan, out: Path) -> None:
    """Refuse to go on with predictions of something else.

    Raises:
        Conflict: the folder holds them.
    """
    if begun.variant != wanted.variant:
        why = f"predictions by {begun.variant}, and {wanted.variant} was asked for"
        hint = f"Go on with {begun.variant!r}, or name another folder."
    elif begun.bundle_digest != wanted.bundle_digest:
        why, hint = f"predictions by other files of {begun.variant}", "Name another folder, or remove this one."
    elif begun.keep != wanted.keep:
        kept = " ".join(f"--keep {name}" for name in begun.keep) or "no --keep"
        why, hint = "predictions with other columns kept", f"Go on with {kept}, or name another folder."
    elif begun.sources != wanted.sources:
        why, hint = f"predictions of other rows by {begun.variant}", "Name another folder, or remove this one."
    else:
        return
    raise Conflict(f"{str(out)!r} holds {why}.", hint=hint, details=[Detail("out", f"holds {why}")])


def _made(parts: Sequence[Part], job: Job, bundle: Bundle, settings: Settings) -> Generator[tuple[Part, Done]]:
    """Predict parts here where they are few, over the cluster where they are many; yield each as it is there."""
    if sum(part.n_bytes for part in parts) <= FEW_BYTES or len(parts) == 1 or local_cpus(settings) == 1:
        for part in parts:
            yield part, predict_part(part, job, bundle)
        return
    import ray.data

    by_number = {part.number: part for part in parts}
    with session(settings) as cluster, _threads_ended():
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = ray.data.from_items([{"part": asdict(part)} for part in parts], override_num_blocks=len(parts))
        workers = min(cluster.cpus, len(parts))
        made = rows.map(
            _Worker,
            fn_constructor_args=(job,),
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        with closing(cast("Generator[dict[str, Any]]", iter(made.iter_rows()))) as told:
            for row in told:
                if row["error"]:
                    raise error_of(**json.loads(row["error"]))
                yield by_number[row["number"]], Done(row["file"], row["n_rows"], row["digest"])


@contextmanager
def _threads_ended() -> Iterator[None]:
    """Wait at the end for the threads that were begun meanwhile.

    Ray Data works in threads, and Ray ends the process, without a word, in which one of them still asks for something
    once Ray is shut down.
    """
    before = set(threading.enumerate())
    try:
        yield
    finally:
        until = time.monotonic() + PATIENCE_S
        begun = [t for t in threading.enumerate() if t not in before and t.name != PARKED]
        for thread in begun:
            thread.join(max(0.0, until - time.monotonic()))


class _Worker:
    """Ray Data's actor: predicts one part after the other, with the bundle in memory."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._bundle = Bundle.load(Path(job.folder), digest=job.digest)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = Part(**row["part"])
        try:
            done = predict_part(part, self._job, self._bundle)
        except FactoryError as error:
            # As a value: Ray would wrap it, and run the part again.
            told = {"code": error.code, "message": error.message, "hint": error.hint}
            return {"number": part.number, "error": json.dumps(told), "file": "", "n_rows": 0, "digest": ""}
        return {"number": part.number, "error": "", **asdict(done)}


def _finished(plan: Plan, done: Sequence[Done], out: Path) -> int:
    """Write the manifest, and return the number of rows."""
    total = sum(one.n_rows for one in done)
    manifest = {
        "variant": plan.variant,
        "bundle_digest": plan.bundle_digest,
        "rows": total,
        "files": [asdict(one) for one in done],
        "sources": [{"path": path, "bytes": size} for path, size, _ in plan.sources],
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    put_whole(out / MANIFEST, json.dumps(manifest, indent=1))
    shutil.rmtree(out / UNPACKED, ignore_errors=True)
    return total


if __name__ == "__main__":
    sys.exit(main())
