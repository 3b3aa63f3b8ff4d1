"""Functions of on-demand views, from the operator's repository and never from the registry.

The registry tells which text was applied, and the function with that text comes
from the repository, whose files are the operator's.  What the registry holds
of it is not run (:mod:`factory.data.feast_guard`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory.data.feature_store import repository_views
from factory.errors import Conflict, Detail
from factory.settings import Settings

_KNOWN: dict[tuple[Path, str, str], Callable[[Any], Any]] = {}
"""By repository, view and digest of what was applied: the repository is imported once for each change."""


def applied_function(settings: Settings, view: Any) -> tuple[Callable[[Any], Any], str]:
    """Return the function of an on-demand view and the digest of its text.

    Args:
        settings: Where the repository is.
        view: The view as the registry has it.

    Raises:
        Conflict: the repository does not have the view, or with another text than was applied.
        InvalidRequest: the repository cannot be imported.
    """
    text = _text(view)
    digest = hashlib.sha256(text.encode()).hexdigest()
    key = (settings.feature_repo_folder, view.name, f"{view.mode} {view.singleton} {digest}")
    if key not in _KNOWN:
        own = repository_views(settings).get(view.name)
        if not text or own is None:
            what = "is not in the repository" if own is None else "was applied without its text"
            raise _refused(settings, view.name, what)
        if (_text(own), own.mode, own.singleton) != (text, view.mode, view.singleton):
            raise _refused(settings, view.name, "differs from what was applied")
        _KNOWN[key] = own.feature_transformation.udf
    return _KNOWN[key], digest


def _text(view: Any) -> str:
    return str(getattr(view.feature_transformation, "udf_string", None) or "")


def _refused(settings: Settings, name: str, what: str) -> Conflict:
    folder = str(settings.feature_repo_folder)
    return Conflict(
        f"The on-demand feature view {name!r} {what}, so there is no function to compute it with.",
        hint=f"Its function is taken from {folder!r}, never from the registry: put the repository there as it was "
        "applied, or run `factory features apply`.",
        details=[Detail(name, f"The view {what} ({folder}).")],
    )
