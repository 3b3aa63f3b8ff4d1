"""The example feature repository is plain Feast and needs nothing of the factory."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parents[1] / "feature_repo"


@pytest.fixture(scope="module")
def build_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_under_test", REPOSITORY / "build_example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_repository_never_imports_the_factory() -> None:
    for path in REPOSITORY.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("factory", "serve")], path


def test_plain_feast_apply_works_in_a_fresh_copy(tmp_path: Path) -> None:
    copy = tmp_path / "feature_repo"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FACTORY_")}
    feast = Path(sys.executable).parent / "feast"
    done = subprocess.run(
        [str(feast), "apply"], cwd=copy, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("country_v1", "country_comparison_v1", "country_economy", "country_health", "country_standing"):
        assert name in done.stdout
    made = {str(path.relative_to(copy / "data")) for path in (copy / "data").rglob("*") if path.is_file()}
    assert made == {
        "registry.db",
        "online.db",
        "country_economy.parquet",
        "country_health.parquet",
        "country_standing.parquet",
        "entities/life_expectancy.parquet",
        "entities/above_median.parquet",
    }


def test_sources_have_microsecond_timestamps_and_only_first_growth_missing(
    build_example: ModuleType, tmp_path: Path
) -> None:
    assert len(build_example.build(tmp_path)) == 5
    assert build_example.build(tmp_path) == []
    economy = pd.read_parquet(tmp_path / "country_economy.parquet")
    assert str(economy["event_timestamp"].dtype) == "datetime64[us, UTC]"
    assert len(economy) == 142 * 12
    first = economy["event_timestamp"] == economy["event_timestamp"].min()
    assert economy.loc[first, "gdp_growth"].isna().all()
    assert economy.loc[~first].notna().all().all()


def test_demo_entities_ask_for_the_survey_five_years_on(build_example: ModuleType) -> None:
    from plotly.data import gapminder

    surveys = gapminder().set_index(["country", "year"])
    tables = build_example.build_demo_entities()
    assert {name: len(table) for name, table in tables.items()} == {"life_expectancy": 1562, "above_median": 1562}
    life, above = tables["life_expectancy"], tables["above_median"]
    assert list(life) == ["country", "event_timestamp", "continent", "life_expectancy_in_5_years"]
    asked = life[(life["country"] == "Japan") & (life["event_timestamp"] == "1973-01-01")].iloc[0]
    assert asked["life_expectancy_in_5_years"] == surveys.loc[("Japan", 1977), "lifeExp"]
    assert asked["continent"] == "Asia"
    medians = surveys.groupby("year")["lifeExp"].median()
    for row in above.sample(50, random_state=0).itertuples():
        survey = row.event_timestamp.year - 1 + 5
        exceeds = surveys.loc[(row.country, survey), "lifeExp"] > medians[survey]
        assert row.above_median_in_5_years == ("yes" if exceeds else "no")
