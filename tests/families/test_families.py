"""Every family, found through the door, passes the conformance suite; so does a third party's in one file."""

import subprocess
import sys
from pathlib import Path

import pytest

from factory import plugins
from factory.families.base import Family
from factory.testing.families import FamilyConformance


class TestFamilies(FamilyConformance):
    @pytest.fixture(params=plugins.names("families"))
    def family(self, request: pytest.FixtureRequest) -> Family:
        family = plugins.load("families", request.param)
        assert isinstance(family, Family)
        assert family.name == request.param
        return family


TINY_FAMILY = '''
"""The mean target on each side of a linear cut: the smallest family that learns."""

import json

import numpy as np

from factory.families.base import Bet, Family, Model
from factory.space import FloatDimension
from factory.spec import Task


class Stump(Model):
    def __init__(self, cut, low, high):
        self.cut, self.low, self.high = cut, np.asarray(low), np.asarray(high)

    def predict(self, table):
        right = (table.numeric[:, 0] > self.cut) if table.numeric_names else np.zeros(len(table), bool)
        return np.array([self.low, self.high])[right.astype(int)]

    def save(self, folder):
        (folder / "stump.json").write_text(json.dumps([self.cut, self.low.tolist(), self.high.tolist()]))


class Stumps(Family):
    name = "stump"
    framework = "numpy"

    def space(self, task):
        return {"quantile": FloatDimension(low=0.1, high=0.9)}

    def portfolio(self, task, *, shape):
        return [Bet({"quantile": 0.5}, rank=10)]

    def fit(self, train, *, validation, parameters, context):
        x = train.table.numeric[:, 0] if train.table.numeric_names else np.zeros(len(train))
        cut = float(np.quantile(x, parameters["quantile"]))
        y = train.y if context.task is Task.REGRESSION else np.eye(context.n_classes)[train.y]
        sides = [y[x <= cut], y[x > cut]]
        return Stump(cut, *(side.mean(axis=0) if len(side) else y.mean(axis=0) for side in sides))

    def load(self, folder):
        return Stump(*json.loads((folder / "stump.json").read_text()))


PLUGIN = Stumps()
'''

TINY_TEST = """
import pytest
from factory import plugins
from factory.testing.families import FamilyConformance


class TestStump(FamilyConformance):
    @pytest.fixture
    def family(self):
        return plugins.load("families", "stump")
"""


def test_a_new_family_is_one_file_and_an_entry_point(tmp_path: Path) -> None:
    installed = tmp_path / "tiny-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[factory.families]\nstump = tiny_family:PLUGIN\n")
    (tmp_path / "tiny_family.py").write_text(TINY_FAMILY)
    (tmp_path / "test_tiny.py").write_text(TINY_TEST)
    paths = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path.cwd())!r}]"
    script = (
        f"{paths}; import pytest; raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(tmp_path)!r}]))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert " passed" in answer.stdout


def test_shared_code_is_not_a_family() -> None:
    assert not [name for name in plugins.names("families") if name.startswith("_")]
    assert "base" not in plugins.names("families")
