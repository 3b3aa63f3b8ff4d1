"""Build the example's Parquet files from data that an installed package carries.

The data is Gapminder's survey of 142 countries, every five years from 1952 to
2007, as bundled with plotly.  ``python build_example.py [FOLDER]`` writes

    country_economy.parquet, country_health.parquet, country_standing.parquet
        the sources of the feature views: one row for each country and survey
    entities/life_expectancy.parquet, entities/above_median.parquet
        entity tables for the demo: country, event_timestamp, continent, target

``features.py`` runs it when the files are missing, so a fresh ``feast apply`` works.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SOURCES = ("country_economy", "country_health", "country_standing")
ENTITY_TABLES = ("life_expectancy", "above_median")
SURVEY_YEARS = 5


def data_folder() -> Path:
    """Return the folder of the example's data: FACTORY_FEATURE_STORE/data, or ``data`` beside this file."""
    if store := os.environ.get("FACTORY_FEATURE_STORE"):
        return Path(store).expanduser().resolve() / "data"
    return Path(__file__).resolve().parent / "data"


def build(folder: Path) -> list[Path]:
    """Write every file that is missing and return the files that were written."""
    wanted = {folder / f"{name}.parquet" for name in SOURCES}
    wanted |= {folder / "entities" / f"{name}.parquet" for name in ENTITY_TABLES}
    missing = sorted(path for path in wanted if not path.exists())
    if missing:
        surveys = _surveys()
        (folder / "entities").mkdir(parents=True, exist_ok=True)
        frames = _sources(surveys) | build_demo_entities(surveys)
        for path in missing:
            _write(frames[path.stem], path)
    return missing


def build_demo_entities(surveys: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    """Return the demo's entity tables: what is known of a country on New Year's Day after a survey.

    ``life_expectancy`` asks for life expectancy at birth, in years, at the next survey five years on;
    ``above_median`` asks whether it will then exceed the median over all countries.
    Both have the columns country, event_timestamp, continent and the target, (1562, 4).
    """
    if surveys is None:
        surveys = _surveys()
    following = surveys.groupby("country")["lifeExp"].shift(-1)
    median = surveys.groupby("year")["lifeExp"].transform("median").groupby(surveys["country"]).shift(-1)
    known = following.notna()
    # Surveys are stamped 31 December; the question is asked on the day after.
    base = surveys.loc[known, ["country", "event_timestamp", "continent"]].reset_index(drop=True)
    base["event_timestamp"] += _days(1)
    above = (following > median)[known].map({True: "yes", False: "no"})
    return {
        "life_expectancy": base.assign(life_expectancy_in_5_years=following[known].to_numpy()),
        "above_median": base.assign(above_median_in_5_years=above.to_numpy()),
    }


def _surveys() -> pd.DataFrame:
    """Return Gapminder's rows by country and year, each with the moment at which it is known."""
    import pandas as pd
    from plotly.data import gapminder

    surveys = gapminder().sort_values(["country", "year"], ignore_index=True)
    # Microseconds: DuckDB 2 cannot materialize nanosecond timestamps.
    moment = pd.to_datetime(surveys["year"].astype(str) + "-12-31", utc=True)
    return surveys.assign(event_timestamp=moment.astype("datetime64[us, UTC]"))


def _sources(surveys: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each feature view. The first survey of a country has no growth: it is missing."""
    by_country = surveys.groupby("country")
    keys = surveys[["country", "event_timestamp"]]
    peers = surveys.groupby(["continent", "year"])
    return {
        "country_economy": keys.assign(
            gdp_per_capita=surveys["gdpPercap"],
            population=surveys["pop"].astype("int64"),
            gdp_growth=by_country["gdpPercap"].pct_change(),
            population_growth=by_country["pop"].pct_change(),
        ),
        "country_health": keys.assign(
            life_expectancy=surveys["lifeExp"],
            life_expectancy_change=by_country["lifeExp"].diff() / SURVEY_YEARS,
        ),
        "country_standing": keys.assign(
            life_expectancy_to_continent=surveys["lifeExp"] - peers["lifeExp"].transform("mean"),
            gdp_rank_in_continent=peers["gdpPercap"].rank(pct=True),
        ),
    }


def _days(count: int) -> pd.Timedelta:
    import pandas as pd

    return pd.Timedelta(days=count)


def _write(frame: pd.DataFrame, path: Path) -> None:
    """Write through a temporary file, so that a reader or a second builder never sees half a file."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    frame.to_parquet(draft, index=False)
    draft.replace(path)


if __name__ == "__main__":
    for written in build(Path(sys.argv[1]) if len(sys.argv) > 1 else data_folder()):
        print(written)  # noqa: T201
