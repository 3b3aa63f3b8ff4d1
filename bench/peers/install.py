"""Install the peers, each into a virtual environment of its own: ``python -m bench.peers.install [NAME ...]``.

The versions are those of ``bench/peers/pins/NAME.txt``, all of them, and pip's
own configuration decides where they come from.  An environment whose pins have
not changed is left as it is.  H2O needs a Java runtime as well.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv

from bench.peers import ENVIRONMENTS, PEERS, PINS, SERVERS, python_of

STAMP = "pins.txt"
"""Copy of the pins in an environment that was installed to the end."""


def main() -> int:
    """Install the environments of the named peers; return 1 where one failed."""
    known = {name: peer.environment for name, peer in PEERS.items()} | {name: name for name in SERVERS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(known)} (default: all)")
    chosen = parser.parse_args().names or list(known)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"no peer {', '.join(unknown)}; there are {', '.join(known)}")
    failed = [name for name in sorted({known[peer] for peer in chosen}) if not install(name)]
    if failed:
        print(f"Not installed: {', '.join(failed)}")
    if "h2o" in chosen and shutil.which("java") is None:
        print("h2o needs a Java runtime (17), and there is no java on the PATH.")
        return 1
    return 1 if failed else 0


def installed(environment: str) -> bool:
    """Return whether an environment was installed to the end, with the pins of today."""
    stamp, pins = ENVIRONMENTS / environment / STAMP, PINS / f"{environment}.txt"
    return stamp.exists() and stamp.read_text() == pins.read_text()


def install(environment: str) -> bool:
    """Make an environment and install its pins; return whether that worked."""
    if installed(environment):
        print(f"{environment}: is there")
        return True
    print(f"{environment}: installing", flush=True)
    pins = PINS / f"{environment}.txt"
    if not python_of(environment).exists():
        venv.create(ENVIRONMENTS / environment, with_pip=True)
    pip = [str(python_of(environment)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "-r", str(pins)], check=False).returncode:
        return False
    shutil.copyfile(pins, ENVIRONMENTS / environment / STAMP)
    return True


if __name__ == "__main__":
    sys.exit(main())
