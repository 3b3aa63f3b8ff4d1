"""What a replica keeps in memory: the least recently used goes first, and champions of pinned names stay."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from factory.errors import UntrustedBundle
from factory.spec import Task, Variant
from serve import loaded as loaded_module
from serve.loaded import LEAST_MB, Loaded, Stock
from serve.store import BundleCache

from .conftest import variant_of


@dataclass(frozen=True)
class Parts:
    """What the cache sees of a loaded variant."""

    sizes: dict[str, float]


def test_the_least_recently_used_goes_first(own_shelf, churn, spend, make_caller):
    for name in ("growth.a", "growth.b", "growth.c"):
        own_shelf.put(name, spend)
    loads = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.name)
        return own_shelf.load(variant)

    caller = make_caller(own_shelf, load=load, bundles=2)
    row = {"json": {"dataframe_records": [{"age": 1, "income": 1}]}}
    for name in ("a", "b", "a", "c", "a", "b"):
        assert caller.post(f"/variants/growth.{name}/invocations", **row).status_code == 200
    assert loads == ["growth.a", "growth.b", "growth.c", "growth.b"]
    tight = make_caller(own_shelf, load=load, bundles_mb=1e-9)
    for name in ("a", "b"):
        assert tight.post(f"/variants/growth.{name}/invocations", **row).status_code == 200
    assert loads[-2:] == ["growth.a", "growth.b"]


def test_what_is_pinned_stays_while_others_can_go(own_shelf, spend, make_caller):
    for name in ("growth.a", "growth.b", "growth.c"):
        own_shelf.put(name, spend)
    loads = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.name)
        return own_shelf.load(variant)

    caller = make_caller(own_shelf, load=load, bundles=2, pinned=("growth.a",))
    row = {"json": {"dataframe_records": [{"age": 1, "income": 1}]}}
    for name in ("a", "b", "c", "a", "b", "a"):
        assert caller.post(f"/variants/growth.{name}/invocations", **row).status_code == 200
    assert loads == ["growth.a", "growth.b", "growth.c", "growth.b"]


def test_of_a_pinned_name_the_champion_stays_and_what_it_took_over_from_goes_first():
    champions = {"growth.a": 1}

    async def kept() -> list[list[tuple[str, int]]]:
        with ThreadPoolExecutor(1) as threads:
            cache = BundleCache(
                lambda variant: Parts({f"{variant.name}/{variant.version}": 1.0}),
                threads,
                most=3,
                most_mb=100.0,
                pinned=lambda name: name == "growth.a",
                champion=champions.get,
            )
            found = []
            for name, version in (("a", 1), ("b", 1), ("a", 2), ("c", 1), ("a", 2), ("d", 1), ("a", 3), ("e", 1)):
                if (name, version) == ("a", 2):
                    champions["growth.a"] = 2
                await cache.get(variant_of(f"growth.{name}", version, request_id="r", task=Task.BINARY, digest="0"))
                found.append([(key[0][-1], key[1]) for key in cache._loaded])
            return found

    *_, promoted, again, other, canary, last = asyncio.run(kept())
    assert promoted == [("b", 1), ("a", 2), ("c", 1)], (
        "not growth.b, which was used less recently than the first version"
    )
    assert again == [("b", 1), ("c", 1), ("a", 2)]
    assert other == [("c", 1), ("a", 2), ("d", 1)]
    assert canary == [("a", 2), ("d", 1), ("a", 3)], "no champion yet"
    assert last == [("a", 2), ("a", 3), ("e", 1)], "the champion stays, the canary goes when its turn comes"


def test_a_variant_counts_at_least_with_its_files(own_shelf, spend):
    variant = own_shelf.put("growth.a", spend)
    loaded = Loaded.read(variant, own_shelf.path("growth.a", 1), Stock())
    assert sum(loaded.sizes.values()) >= max(sum(loaded.bundle.parts.values()), LEAST_MB * len(loaded.sizes))
    assert loaded.sizes.keys() == {*loaded.bundle.parts, "growth.a/1"}
    (own_shelf.path("growth.a", 1) / "variant.json").write_text("{}")
    with pytest.raises(UntrustedBundle):
        Loaded.read(variant, own_shelf.path("growth.a", 1), Stock())


def test_the_same_parts_are_warmed_up_and_timed_once(own_shelf, spend, monkeypatch):
    timed = []
    monkeypatch.setattr(loaded_module, "_call_ms", lambda *_: timed.append(1) or 0.5)
    stock, other = Stock(), replace(spend, metadata={"segment": "b"})
    own_shelf.put("growth.a", spend)
    own_shelf.put("growth.b", other)

    def load(name):
        variant = own_shelf.ledger.variant(name, 1)
        return Loaded.read(variant, own_shelf.path(name, 1), stock)

    first = load("growth.a")
    n = len(timed)
    second = load("growth.b")
    assert second.times == first.times
    assert second.bundle.metadata == {"segment": "b"}
    assert len(timed) == n > 0
    # Once nobody holds them they are read again, and have to be warmed up.
    del first, second
    load("growth.a")
    assert len(timed) == 2 * n


def test_a_part_that_several_hold_counts_once_and_as_long_as_one_holds_it():
    holds = {
        "growth.a": {"common": 10.0, "a": 1.0},
        "growth.b": {"common": 10.0, "b": 2.0},
        "growth.c": {"c": 4.0},
        "growth.d": {"d": 8.0},
    }

    async def sizes() -> list[float]:
        with ThreadPoolExecutor(1) as threads:
            cache = BundleCache(lambda variant: Parts(holds[variant.name]), threads, most=10, most_mb=20.0)
            found = []
            for name in holds:
                await cache.get(variant_of(name, 1, request_id="r", task=Task.BINARY, digest="0"))
                found.append(cache.size_mb)
            return found

    # The third leaves room for all; for the fourth the first goes, and then the second with what both held.
    assert asyncio.run(sizes()) == [11.0, 13.0, 17.0, 12.0]
