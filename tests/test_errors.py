"""The error tree: what an error carries, that all of it survives a process boundary, and whose fault it is."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from factory.errors import Detail, FactoryError, SystemFault, UserFault, counted, listing, suggest


def tree(kind: type[FactoryError] = FactoryError) -> Iterator[type[FactoryError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


KINDS = sorted({kind for kind in tree() if kind.__module__ == "factory.errors"}, key=lambda kind: kind.__name__)


def fail(kind: type[FactoryError]) -> None:
    raise kind("'x' is wrong.", hint="Mend it.", details=[Detail("a.b", "is wrong"), Detail("c", "too")])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_survives_pickling_whole(kind: type[FactoryError], protocol: int) -> None:
    error = kind("'x' is wrong.", hint="Mend it.", details=[Detail("a.b", "is wrong")])
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is kind
    assert (str(back), back.message, back.hint, back.details) == (str(error), error.message, error.hint, error.details)
    assert back.as_dict() == error.as_dict()


def test_errors_cross_processes() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for kind in KINDS:
            caught = pool.submit(fail, kind).exception()
            assert type(caught) is kind
            assert caught.details == (Detail("a.b", "is wrong"), Detail("c", "too"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_code_says_whose_fault_it_is(kind: type[FactoryError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, UserFault) else 1)
    assert kind is FactoryError or issubclass(kind, UserFault) != issubclass(kind, SystemFault)


def test_the_one_error_shape_is_json() -> None:
    error = UserFault("No.", details=[Detail("a", "b")])
    assert json.loads(json.dumps(error.as_dict())) == {
        "error": {"code": "user_fault", "message": "No.", "hint": "", "details": [{"field": "a", "message": "b"}]}
    }


def test_every_class_is_drawn_in_the_module() -> None:
    import factory.errors

    assert [kind.__name__ for kind in KINDS if kind.__name__ not in (factory.errors.__doc__ or "")] == []


def test_names_for_sentences() -> None:
    assert suggest("lightgmb", ["lightgbm", "xgboost"]) == " Did you mean 'lightgbm'?"
    assert suggest("zzz", ["lightgbm"]) == suggest("x", []) == ""
    assert listing(["b", "a"]) == "a, b"
    assert [counted(n, "trial") for n in (0, 1, 2, 1200)] == ["0 trials", "1 trial", "2 trials", "1,200 trials"]
    assert [counted(n, "search", "searches") for n in (1, 2)] == ["1 search", "2 searches"]
    assert listing([]) == "(none)"
    assert listing([f"{i:02}" for i in range(14)], most=2) == "00, 01 and 12 more"
