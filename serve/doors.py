"""Who may call the predictor: tokens with their scope, their team and the variants that they are good for.

The check is in the replica, since its port is open beside the proxy's.  The
ledger is asked about a token once a second at most, so that a revocation counts
within a second; while it cannot be read, what was good a moment ago stays good
for a quarter of an hour, as the variants in memory do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from fnmatch import fnmatchcase
from typing import Protocol

from factory.errors import Detail
from factory.ledger import Refusal, ShareKind
from factory.spec import Principal, Scope, Variant
from serve import remembered
from serve.buckets import Buckets, digest_of
from serve.errors import Forbidden, TooManyRequests, Unauthorized
from serve.remembered import UNCHANGED_S, Changes, Remembered

WITHOUT_LEDGER_S = 900.0
REFUSALS_A_MINUTE = 30.0
"""Tokens that may be refused to an address in a minute; each is a question to the ledger. Who is known is let in."""
REFUSED_S = 60.0
"""For which a token stays refused without another question: hardly one becomes good again, as when its team does."""
Origin = Callable[[], str]
"""Returns where a call comes from; asked only of those whom nobody knows."""
_HINT = "Send the header 'Authorization: Bearer <token>'; `factory tokens create NAME --scope predict` makes one."


class Keys(Protocol):
    """What of the ledger is read here."""

    def authenticate(self, secret: str) -> Principal | Refusal:
        """Return who comes with a secret, or why it opens nothing."""

    def may_see(self, kind: ShareKind, subject: str, team: str) -> bool:
        """Return whether something is a team's own or shared with it."""

    def variant(self, name: str, version: int, *, seen_by: str | None = None) -> Variant:
        """Return one version, or raise NotFound that names what that team sees."""


class Doors:
    """Lets callers in, or says why not.

    Args:
        keys: The ledger.
        executor: Where it is read.
        a_minute: Predictions that a token may ask for in a minute.
        changes: Tell when something is shared with others.
    """

    def __init__(self, keys: Keys, executor: Executor, *, a_minute: float, changes: Changes) -> None:
        self._keys = keys
        self._buckets, self._refusals = Buckets(a_minute), Buckets(REFUSALS_A_MINUTE)
        self._a_minute = a_minute
        self._holders: Remembered[bytes, Principal | Refusal] = Remembered(executor, without_s=WITHOUT_LEDGER_S)
        self._refused: OrderedDict[bytes, tuple[Refusal, float]] = OrderedDict()
        self._seen: Remembered[tuple[str, str], bool] = Remembered(
            executor, max_age_s=UNCHANGED_S, without_s=WITHOUT_LEDGER_S, changes=changes
        )

    async def admit(
        self, authorization: str, name: str, *, origin: Origin, scopes: tuple[Scope, ...] = ("predict", "read")
    ) -> Principal:
        """Return who calls, if it may call a variant.

        Args:
            authorization: The header of that name.
            name: Of the variant.
            origin: Says where the call comes from.
            scopes: Of which the token needs one.

        Raises:
            Unauthorized: nobody known is calling.
            Forbidden: the token is not for that, or not for this variant.
            TooManyRequests: it asks for more than it may, or too much was refused to its address.
            NotFound: the variant is another team's, or does not exist.
            StorageFault: the ledger cannot be read, and the token was not known before.
        """
        holder = await self.known(authorization, origin)
        _require_use(holder, name, scopes)
        if wait_s := self._buckets.take(holder.token_id or holder.name):
            raise TooManyRequests.wait(
                wait_s,
                f"This is more than {self._a_minute:,.0f} calls a minute.",
                hint="Wait as long as Retry-After says, or send several rows at once.",
            )
        team = holder.team
        if team is not None:
            await self._seen.get((team, name), lambda: self._require_seen(team, name))
        return holder

    async def admit_owner(self, authorization: str, name: str, *, origin: Origin) -> Principal:
        """Return who calls, if it may say what came true of a variant: its own team, or an operator.

        Args:
            authorization: The header of that name, of a caller who was admitted to this variant.
            name: Of the variant.
            origin: Says where the call comes from.

        Raises:
            Forbidden: the variant is only shared with the caller's team, or the token may only read.
        """
        holder = await self.known(authorization, origin)
        if not (holder.may("predict") or holder.may("deploy")):
            raise Forbidden(
                "This token may only read.",
                hint="Outcomes are told with the scope predict, or deploy.",
                details=[Detail("scope", "predict")],
            )
        if not holder.sees(name.partition(".")[0]):
            raise Forbidden(
                f"{name!r} is another team's, and is shared with yours for reading.",
                hint="Outcomes are told by the team that the variant belongs to.",
                details=[Detail("name", f"{name!r} is another team's")],
            )
        return holder

    async def admit_operator(self, authorization: str, *, origin: Origin) -> Principal:
        """Return an operator who may look at what is of all teams; raises as :meth:`admit`."""
        holder = await self.known(authorization, origin)
        if holder.team is not None or holder.request_id is not None or not holder.may("read"):
            raise Forbidden(
                "This is of all teams.",
                hint="Use an operator's token with the scope read.",
                details=[Detail("scope", "read")],
            )
        return holder

    async def known(self, authorization: str, origin: Origin) -> Principal:
        """Return who calls, whatever it may do.

        Raises:
            Unauthorized: nobody known is calling.
            TooManyRequests: too much was refused to its address; who is known is let in all the same.
            StorageFault: the ledger cannot be read, and the token was not known before.
        """
        kind, _, secret = authorization.partition(" ")
        secret = secret.strip()
        if kind.lower() != "bearer" or not secret:
            raise Unauthorized("No token was sent.", hint=_HINT)
        digest = digest_of(secret)
        if isinstance(known := self._holders.fresh(digest), Principal):
            return known
        if (refused := self._refused.get(digest)) is not None and remembered.clock() < refused[1]:
            # Its client may try for ever: that is no reason to refuse others of its address.
            raise Unauthorized(refused[0].value, hint=_HINT)
        if not isinstance(self._holders.peek(digest), Principal) and (wait_s := self._refusals.wait_s(origin())):
            raise TooManyRequests.wait(
                wait_s, "Too many tokens from this address were refused.", hint="Wait, then try again with a good one."
            )
        holder = await self._holders.get(digest, lambda: self._keys.authenticate(secret))
        if isinstance(holder, Refusal):
            self._refusals.take(origin())
            self._refused[digest] = (holder, remembered.clock() + REFUSED_S)
            self._refused.move_to_end(digest)
            if len(self._refused) > remembered.MOST:
                self._refused.popitem(last=False)
            raise Unauthorized(holder.value, hint=_HINT)
        return holder

    def _require_seen(self, team: str, name: str) -> bool:
        if not self._keys.may_see("variant", name, team):
            # Raises as for a name that does not exist, and says what the team sees that is called nearly so.
            self._keys.variant(name, 1, seen_by=team)
        return True


def _require_use(holder: Principal, name: str, scopes: tuple[Scope, ...]) -> None:
    """Refuse a token that is for something else.

    Raises:
        Forbidden: it is.
    """
    if holder.request_id is not None or not any(holder.may(scope) for scope in scopes):
        raise Forbidden(
            f"This token is not for {'outcomes' if 'deploy' in scopes else 'predictions'}.",
            hint=f"Use one with the scope {', or '.join(scopes[:2])}.",
            details=[Detail("scope", scopes[0])],
        )
    if holder.variants is not None and not fnmatchcase(name, holder.variants):
        raise Forbidden(
            f"This token is for variants like {holder.variants!r} only.",
            hint="Use another token, or call one of these.",
            details=[Detail("name", f"{name[:130]!r} is not like {holder.variants!r}")],
        )
