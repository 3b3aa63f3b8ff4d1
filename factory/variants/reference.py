"""How people name a variant: ``team.name``, ``team.name@alias``, ``team.name/version``."""

from __future__ import annotations

from typing import get_args

from factory.errors import Detail, InvalidRequest, NotFound, listing, suggest
from factory.ledger import Ledger
from factory.spec import ALIAS, Variant


def resolve(reference: str, *, ledger: Ledger) -> Variant:
    """Return the variant that a reference names; without alias or version, the champion.

    Raises:
        InvalidRequest: the version is no number, or there is no such alias.
        NotFound: there is no variant of that name, no such version, or nothing has the alias.
    """
    name, _, alias = reference.partition("@")
    name, _, number = name.partition("/")
    if number:
        if not number.isdigit():
            raise InvalidRequest(f"{number!r} is not a version number.", hint="Write team.name/3, for example.")
        return ledger.variant(name, int(number))
    alias = alias or "champion"
    if alias not in get_args(ALIAS):
        raise InvalidRequest(
            f"There is no alias {alias!r}.{suggest(alias, get_args(ALIAS))}",
            hint=f"Allowed: {listing(get_args(ALIAS))}.",
        )
    version = ledger.alias(name, alias)
    if version is None:
        known = sorted({v.name for v in ledger.variants()})
        if name not in known:
            raise NotFound(
                f"There is no variant {name!r}.{suggest(name, known)}",
                hint=f"Variants: {listing(known)}.",
                details=[Detail("name", f"{name!r} does not exist")],
            )
        raise NotFound(
            f"{name} has no {alias}.", hint=f"Name a version, as {name}/1, or promote one: factory variants promote."
        )
    return ledger.variant(name, version)
