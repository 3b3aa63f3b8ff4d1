"""Bodies that came from anywhere: read within limits, refused with one clear error, never half understood."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import InvalidRequest
from factory.spec.texts import MOST_DEPTH, MOST_VALUES, YAML_KB, read_json, read_yaml
from serve.portal import bodies
from serve.portal.bodies import pointer
from tests.answers import error_of
from tests.portal.conftest import MakeWorld, World, fields_of

YAML = {"content-type": "application/yaml"}
JSON = {"content-type": "application/json"}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 123456789012345678901234567890}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"a": "\\u0000"}',
        b'{"\\ud800": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" * 30 + b"]" * 30,
        json.dumps(list(range(MOST_VALUES))).encode(),
    ],
)
def test_json_that_is_refused(text: bytes, world: World) -> None:
    assert error_of(world().post("/requests", content=text, headers=JSON), 400)["code"] == "invalid_request"


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &x 1\nb: *x",
        "a: &x {b: 1}",
        "<<: {a: 1}\n" + "a: &y {}",
        "a: !!python/object/apply:os.system [id]",
        "a: !!binary aGVsbG8=",
        "a: !!set {x, y}",
        "a: !custom 1",
        "a: 1\na: 2",
        "1: x",
        "? [a]\n: b",
        "a: .inf",
        "a: {",
        "a: 1\n---\nb: 2",
        "\t- x",
        "[" * 200 + "]" * 200,
        "[" * (MOST_DEPTH + 2) + "]" * (MOST_DEPTH + 2),
        "#" * (1000 * YAML_KB + 1),
    ],
)
def test_yaml_that_is_refused(text: str, world: World) -> None:
    assert error_of(world().post("/requests", content=text.encode(), headers=YAML), 400)["code"] == "invalid_request"


def test_yaml_is_what_json_of_the_same_content_is() -> None:
    text = "a: {b: [1, 2.5, true, null, x], 'yes': no}\nday: 2026-11-27\nwhen: 2026-11-27T10:00:00Z\nkey: =\n"
    assert read_yaml(text.encode()) == {
        "a": {"b": [1, 2.5, True, None, "x"], "yes": False},
        "day": "2026-11-27",
        "when": "2026-11-27T10:00:00Z",
        "key": "=",
    }


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc é.~/", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_json_comes_back_as_it_was(value: object) -> None:
    assert read_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_whatever_comes_is_read_or_refused(text: bytes) -> None:
    for read in (read_json, read_yaml):
        with suppress(InvalidRequest):
            read(text)


def test_a_body_that_is_no_object(world: World) -> None:
    for content in (b"[]", b'"x"', b"1", b"null"):
        error_of(world().post("/requests", content=content, headers=JSON), 400)
        error_of(world("operator").post("/teams", content=content, headers=JSON), 400)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "image/png"])
def test_a_content_type_that_is_not_read(kind: str, world: World) -> None:
    error = error_of(world().post("/requests", content=b"{}", headers={"content-type": kind}), 415)
    assert "application/json" in error["hint"]


def test_a_compressed_body_is_refused(world: World) -> None:
    headers = JSON | {"content-encoding": "gzip"}
    error_of(world().post("/requests", content=gzip.compress(b"{}"), headers=headers), 415)


def test_a_body_without_a_content_type_is_json(world: World) -> None:
    order = json.dumps(world.order()).encode()
    assert world().post("/requests", content=order).status_code == 202


def test_a_body_that_is_too_large_is_refused_before_and_while_it_is_read(make_world: MakeWorld) -> None:
    world = make_world(max_body_kb=2)
    text = json.dumps({"name": "x" * 3000}).encode()
    assert "FACTORY_MAX_BODY_KB" in error_of(world().post("/requests", content=text, headers=JSON), 413)["hint"]

    async def chunked() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    error_of(world().post("/requests", content=chunked(), headers=JSON), 413)


def test_a_body_that_does_not_come(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(bodies, "BODY_S", 0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    error_of(world().post("/requests", content=slow(), headers=JSON), 408)


def test_pointers_lead_to_what_is_meant() -> None:
    document = {"dataset": {"types": {"a.b": 1, "a": {"b": 2}}, "drop": ["x", "y"]}, "a/b": {"~": 1}}
    assert pointer("dataset.types.a.b", document) == "/dataset/types/a.b"
    assert pointer("dataset.drop.1", document) == "/dataset/drop/1"
    assert pointer("dataset.drop.y", document) == "/dataset/drop/1"
    assert pointer("a/b.~", document) == "/a~1b/~0"
    assert pointer("not.there", document) == "/not/there"
    assert pointer("(document)", document) == ""


def test_problems_of_a_small_document_are_told_together(world: World) -> None:
    error = error_of(world("operator").post("/teams", json={"name": "A", "quota": {"cpus": "4", "disk": 1}}), 400)
    assert fields_of(error) == {"/name", "/quota/cpus", "/quota/disk"}
