"""``factory demo``, once installed, ends within three minutes on two cores and leaves no process behind."""

from __future__ import annotations

import argparse
import shutil
import sys

from bench.command import COLUMNS, NOTE, as_row
from bench.record import WORK, clean_environment, factory_command, save
from bench.sampler import measure

LIMIT_S = 180.0
STOPPED_AFTER_S = 600.0


def main() -> int:
    """Run the demo in a fresh FACTORY_HOME; return 1 where it failed, was late or left something running."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    folder = WORK / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "demo.log"
    taken = measure(
        [factory_command(), "demo"],
        env=clean_environment(folder / "home"),
        cwd=folder,
        log=log,
        timeout_s=STOPPED_AFTER_S,
    )
    row = {"command": "factory demo", **as_row(taken), "limit_s": LIMIT_S}
    columns = {**COLUMNS, "limit_s": "limit s"}
    save("demo", [row], columns=columns, note=f"In a fresh FACTORY_HOME, two cores. {NOTE}", documented=True)
    met = taken.returncode == 0 and taken.wall_s < LIMIT_S and not taken.left_behind
    if not met:
        print(f"Not met; the demo's output is in {log}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
