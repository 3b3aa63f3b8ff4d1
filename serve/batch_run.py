"""``python -m serve.batch_run ID``: one run of a declared batch, as a job that the controller has started.

The version is looked up when the run begins, and what the team may read is
looked at again: an alias, or a share, may have changed since it was declared.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from factory.errors import FactoryError
from factory.ledger import BatchRun, Ledger
from factory.operate.batches import allowed, require_named, run_folder
from factory.settings import Settings, load_settings
from factory.variants.reference import resolve
from serve.batch import MANIFEST, made_rows, predict
from serve.batch_source import files_of

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Make a run, tell the ledger what it came to, and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    [run_id] = sys.argv[1:] if arguments is None else arguments
    settings = load_settings()
    with Ledger.open(settings.ledger) as ledger:
        run = ledger.batch_run(run_id)
        if run.ended_at is not None:
            logger.info("Run %d of %s has ended before.", run.number, run.batch)
            return 0
        try:
            said, rows = _predicted(run, ledger=ledger, settings=settings)
        except FactoryError as error:
            logger.error("%s %s", error.message, error.hint)
            ledger.end_batch_run(run_id, "failed", f"{error.message} {error.hint}".strip())
            return error.exit_code
        except Exception as error:
            logger.exception("the run failed")
            ledger.end_batch_run(run_id, "failed", f"It failed unexpectedly: {type(error).__name__}: {error}.")
            return 1
        ledger.end_batch_run(run_id, "done", said, rows=rows, manifest=f"{run.folder}/{MANIFEST}")
    logger.info("%s", said)
    return 0


def _predicted(run: BatchRun, *, ledger: Ledger, settings: Settings) -> tuple[str, int]:
    batch = ledger.batch(run.batch)
    wish = batch.required()
    # Looked up once: what is checked is what is read, whatever links lead to by then.
    files = files_of(allowed(wish, anywhere=batch.anywhere, ledger=ledger, settings=settings))
    if wish.path is not None:
        require_named([str(path) for path in files], anywhere=batch.anywhere, settings=settings)
    variant = resolve(wish.variant, ledger=ledger)
    name = f"{variant.name}/{variant.version}"
    ledger.mark_batch_run(run.id, variant=name)
    out: Path = run_folder(run, settings)
    said = predict(name, files, out, keep=wish.keep, settings=settings)
    return said, made_rows(out)


if __name__ == "__main__":
    sys.exit(main())
