"""Definitions of the example: what is known about a country, and who may rely on it.

Everything here is plain Feast; the factory finds the services through the registry.
"""

from datetime import timedelta

from build_example import build, data_folder
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

# Long enough that the last survey (2007) can still be served, short enough that it ends.
SURVEY_TTL = timedelta(days=30 * 365)

DATA = data_folder()
build(DATA)

country = Entity(
    name="country",
    join_keys=["country"],
    value_type=ValueType.STRING,
    description="A country by its English name, as in Gapminder's data.",
)


def _source(name: str) -> FileSource:
    return FileSource(name=name, path=str(DATA / f"{name}.parquet"), timestamp_field="event_timestamp")


country_economy = FeatureView(
    name="country_economy",
    description="Income and population at the latest survey, and their growth since the one before.",
    entities=[country],
    ttl=SURVEY_TTL,
    schema=[
        Field(name="gdp_per_capita", dtype=Float64, description="GDP per person in international dollars of 2005."),
        Field(name="population", dtype=Int64, description="People."),
        Field(name="gdp_growth", dtype=Float64, description="Relative change of GDP per person in five years."),
        Field(name="population_growth", dtype=Float64, description="Relative change of population in five years."),
    ],
    source=_source("country_economy"),
    owner="data-platform@example.org",
    tags={"domain": "economy", "refresh": "every five years"},
)

country_health = FeatureView(
    name="country_health",
    description="Life expectancy at the latest survey, and its change since the one before.",
    entities=[country],
    ttl=SURVEY_TTL,
    schema=[
        Field(name="life_expectancy", dtype=Float64, description="Life expectancy at birth in years."),
        Field(name="life_expectancy_change", dtype=Float64, description="Years gained per year since the last survey."),
    ],
    source=_source("country_health"),
    owner="health-analytics@example.org",
    tags={"domain": "health", "refresh": "every five years"},
)

country_standing = FeatureView(
    name="country_standing",
    description="Where a country stands among those of its continent at the latest survey.",
    entities=[country],
    ttl=SURVEY_TTL,
    schema=[
        Field(name="life_expectancy_to_continent", dtype=Float64, description="Years above the continent's mean."),
        Field(
            name="gdp_rank_in_continent",
            dtype=Float64,
            description="Share of the continent's countries that are poorer or equal.",
        ),
    ],
    source=_source("country_standing"),
    owner="data-platform@example.org",
    tags={"domain": "comparison", "refresh": "every five years"},
)

country_v1 = FeatureService(
    name="country_v1",
    description="Economy and health of a country. Shared by the recipes tabular-auto and tabular-fast in the demo.",
    features=[country_economy, country_health],
    owner="data-platform@example.org",
    tags={"stage": "production", "recipes": "tabular-auto, tabular-fast"},
)

country_comparison_v1 = FeatureService(
    name="country_comparison_v1",
    description="A country's income and health, with its standing in the continent.",
    features=[country_economy[["gdp_per_capita", "gdp_growth"]], country_health, country_standing],
    owner="research@example.org",
    tags={"stage": "experimental"},
)
