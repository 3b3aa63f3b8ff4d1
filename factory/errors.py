"""The one error tree of the factory.

    FactoryError
    ├── UserFault              exit code 2: the person who asked can mend it
    │   ├── InvalidRequest     a document (request, recipe, setting) is wrong
    │   ├── InvalidData        a dataset cannot be trained or predicted on
    │   ├── NotFound           a named thing does not exist
    │   └── Conflict           the thing exists but its state forbids this
    └── SystemFault            exit code 1: ours or the platform's to mend
        ├── StorageFault       FACTORY_HOME, ledger or artifacts not usable
        ├── ServiceFault       Ray, MLflow, Feast or Serve did not do its part
        ├── TrainingFault      no trial produced a usable model
        ├── Preempted          a running request made room for another; it goes on later
        └── UntrustedBundle    a stored variant is not what the ledger says

Every error carries a sentence, a hint that says what to do, and the fields it
is about.  All of them survive pickling, since they cross Ray's processes.
HTTP codes are mapped in ``serve/`` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass(frozen=True)
class Detail:
    """One problem: where it is and what is wrong, in a sentence."""

    field: str
    message: str


class FactoryError(Exception):
    """Root of everything the factory raises on purpose.

    Args:
        message: What went wrong, naming the value received.
        hint: What the reader can do about it.
        details: Each single problem with the field it is about.
    """

    code: ClassVar[str] = "factory_error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", details: Sequence[Detail] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    def __reduce__(self) -> tuple[object, ...]:
        # What :func:`error_of` has put on this one error goes along.
        return (_rebuild, (type(self), self.message, self.hint, self.details), vars(self))

    def as_dict(self) -> dict[str, object]:
        """Return the one error shape that every door answers with."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "hint": self.hint,
                "details": [{"field": d.field, "message": d.message} for d in self.details],
            }
        }


def _rebuild(kind: type[FactoryError], message: str, hint: str, details: tuple[Detail, ...]) -> FactoryError:
    return kind(message, hint=hint, details=details)


class UserFault(FactoryError):
    """Something the person who asked can mend."""

    code = "user_fault"
    exit_code = 2


class InvalidRequest(UserFault):
    """A document or an argument is not acceptable."""

    code = "invalid_request"


class InvalidData(UserFault):
    """A dataset cannot be read, trained on or predicted."""

    code = "invalid_data"


class NotFound(UserFault):
    """A named thing does not exist."""

    code = "not_found"


class Conflict(UserFault):
    """The thing exists, but its state forbids what was asked."""

    code = "conflict"


class SystemFault(FactoryError):
    """Something that we or the platform have to mend."""

    code = "system_fault"


class StorageFault(SystemFault):
    """FACTORY_HOME, the ledger or the artifact store cannot be used."""

    code = "storage_fault"


class ServiceFault(SystemFault):
    """Ray, MLflow, Feast or Serve did not do its part."""

    code = "service_fault"


class TrainingFault(SystemFault):
    """No trial produced a usable model."""

    code = "training_fault"


class Preempted(SystemFault):
    """A running request made room for another one; it goes on later with all finished trials."""

    code = "preempted"


class UntrustedBundle(SystemFault):
    """A stored variant is not what the ledger says it is; it was not loaded."""

    code = "untrusted_bundle"


def error_of(
    code: str,
    message: str,
    *,
    hint: str = "",
    details: Sequence[Detail] = (),
    otherwise: type[FactoryError] = SystemFault,
) -> FactoryError:
    """Return an error that another process has told of, as the class of its code.

    Args:
        code: Of the error.
        message: Its sentence; ``hint`` and ``details`` likewise.
        otherwise: Class where the code is of none that is known here; the code itself is kept.

    >>> error_of("not_found", "There is no recipe 'x'.")
    NotFound("There is no recipe 'x'.")
    >>> error = error_of("too_many_requests", "Wait.", otherwise=UserFault)
    >>> type(error).__name__, error.code
    ('UserFault', 'too_many_requests')
    """
    ours = (kind for kind in _tree(FactoryError) if kind.__module__.startswith("factory."))
    known = next((kind for kind in ours if kind.code == code), None)
    error = (known or otherwise)(message, hint=hint, details=details)
    if known is None:
        vars(error)["code"] = code
    return error


def _tree(kind: type[FactoryError]) -> Iterator[type[FactoryError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest allowed name, or nothing.

    >>> suggest("lightgmb", ["lightgbm", "xgboost"])
    " Did you mean 'lightgbm'?"
    >>> suggest("zzz", ["lightgbm"])
    ''
    """
    near = get_close_matches(name, list(allowed), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


MOST_DETAILS = 20
"""Problems of one input that are told; whoever mends them comes again with the rest."""


def first_of(details: Sequence[Detail], *, n: int | None = None) -> tuple[Detail, ...]:
    """Return the first :data:`MOST_DETAILS` problems, and how many more there are, of ``n`` if not of those given.

    >>> [d.message for d in first_of([Detail("age", "no number")] * 23)][19:]
    ['no number', '3 more problems are not listed.']
    """
    more = (len(details) if n is None else n) - MOST_DETAILS
    if more <= 0:
        return tuple(details)
    one = "1 more problem is" if more == 1 else f"{more:,} more problems are"
    return (*details[:MOST_DETAILS], Detail("details", f"{one} not listed."))


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun for a sentence; ``plural`` where it is not the noun with an s.

    >>> counted(1, "trial"), counted(1200, "trial"), counted(2, "search", "searches")
    ('1 trial', '1,200 trials', '2 searches')
    """
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def listing(names: Iterable[str], *, most: int = 12) -> str:
    """Return names for a sentence, cut after ``most`` of them.

    >>> listing(["b", "a"])
    'a, b'
    """
    ordered = sorted(names)
    shown = ", ".join(ordered[:most])
    return shown + (f" and {len(ordered) - most} more" if len(ordered) > most else "") if ordered else "(none)"
