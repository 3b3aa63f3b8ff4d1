"""``python -m factory.operate.stack HOME``: the supervisor, as ``factory up`` leaves it behind."""

import os
import sys
from pathlib import Path

from factory.operate.stack.supervisor import supervise

os.umask(0o077)
sys.exit(supervise(Path(sys.argv[1])))
