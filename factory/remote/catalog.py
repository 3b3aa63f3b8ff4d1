"""Recipes, variants and deployments over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel

from factory.errors import Detail, InvalidRequest, NotFound, listing, suggest
from factory.ledger import AliasChange, Deployment, Proposal, ProposalState
from factory.operate.answers import InputColumn, ListedVariant, MemberShare, RecipeDetail, Serving, VariantDetail
from factory.remote.calls import Calls, part
from factory.spec import ALIAS, DeploymentWish, Recipe, Variant


class _Form(BaseModel):
    recipe: dict[str, Any]
    family_spaces: dict[str, dict[str, dict[str, Any]]]


class _Name(BaseModel):
    aliases: dict[str, int]
    versions: tuple[ListedVariant, ...]
    alias_history: tuple[AliasChange, ...]


class _Inside(BaseModel):
    columns: tuple[InputColumn, ...] = ()
    members: tuple[MemberShare, ...] = ()


class _Served(BaseModel):
    served: tuple[Deployment, ...]


class _Deployments(BaseModel):
    items: tuple[_Served, ...]
    predictor: str | None = None


class CatalogCalls(Calls):
    """The part of the client that knows what can be ordered, what was made and what is served."""

    # --- recipes -----------------------------------------------------------------

    def recipes(self) -> list[RecipeDetail]:
        """Return the recipes that can be ordered."""
        return [self._recipe(item, {}) for item in self._page("recipes", {})[0]]

    def recipe(self, name: str) -> RecipeDetail:
        """Return a recipe by its name, or name and digest, with the spaces of its families.

        Raises:
            NotFound: there is none of that name, or not with that digest.
        """
        form = self._read(_Form, self._get(f"recipes/{part(name)}"))
        return self._recipe(form.recipe, form.family_spaces)

    def publish_recipe(self, document: object) -> RecipeDetail:
        """Publish a recipe for all teams, in place of the one of the same name if that is the team's own.

        Args:
            document: Of the recipe: plain values, or a ``Recipe``.

        Raises:
            Conflict: a recipe of that name is another team's.
            InvalidRequest: it is no valid recipe; all problems are reported.
        """
        plain = document.model_dump(mode="json", by_alias=True) if isinstance(document, BaseModel) else document
        name = plain.get("name") if isinstance(plain, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest(
                "name: the recipe has none.",
                hint="Give it one of lower-case letters, digits, '_' and '-'.",
                details=[Detail("name", "This is required.")],
            )
        answer = self._call("PUT", f"recipes/{part(name)}", body=plain, repeatable=True)
        return self._recipe(self._json(answer), {})

    def withdraw_recipe(self, name: str) -> None:
        """Take a published recipe back; what was made by it stays.

        Raises:
            Conflict: it is another team's, or was not published.
            NotFound: there is none of that name.
        """
        self._call("DELETE", f"recipes/{part(name)}")

    def _recipe(self, document: Any, spaces: dict[str, dict[str, dict[str, Any]]]) -> RecipeDetail:
        recipe = self._read(Recipe, document)
        return self._read(RecipeDetail, {"recipe": recipe, "digest": document.get("digest"), "family_spaces": spaces})

    # --- variants ----------------------------------------------------------------

    def variants(
        self,
        name: str | None = None,
        *,
        team: str | None = None,
        request_id: str | None = None,
        state: Literal["registered", "rejected"] | None = None,
    ) -> Iterator[ListedVariant]:
        """Yield versions of variants by name and number, each with the aliases that point at it.

        Args:
            name: Of one name only, ``team.name``.
            team: Of one team only.
            request_id: Made for one request only.
            state: That its gate let pass, or turned down.
        """
        query = {"name": name, "team": team, "request_id": request_id, "state": state, "sort": "name"}
        return self._pages(ListedVariant, "variants", query=query)

    def variant(self, reference: str) -> Variant:
        """Return the version that a reference names; a bare name without a champion is its newest version.

        Args:
            reference: ``team.name``, ``team.name@alias`` or ``team.name/version``.

        Raises:
            InvalidRequest: the version is no number, or there is no such alias.
            NotFound: there is no variant of that name, no such version, or nothing has the alias.
        """
        name, version = self._named(reference)
        return self._read(Variant, self._get(f"variants/{part(name)}/versions/{version}"))

    def variant_detail(self, reference: str) -> VariantDetail:
        """Return the version that a reference names, with what is in it; errors as of :meth:`variant`."""
        name, version = self._named(reference)
        path = f"variants/{part(name)}/versions/{version}"
        found = self._get(path)
        inside = self._read(_Inside, found)
        return VariantDetail(
            variant=self._read(Variant, found),
            columns=inside.columns,
            members=inside.members,
            alias_history=tuple(self.alias_history(name)),
            cards=(str(self._http.base_url.join(f"{path}/report")),),
        )

    def alias_history(self, name: str) -> list[AliasChange]:
        """Return every change of a name's aliases, the oldest first."""
        return list(self._read(_Name, self._get(f"variants/{part(name)}")).alias_history)

    def report(self, reference: str) -> str:
        """Return the model card of a version: one HTML page that needs nothing else."""
        name, version = self._named(reference)
        return self._call(
            "GET", f"variants/{part(name)}/versions/{version}/report", headers={"accept": "text/html"}
        ).text

    def promote(
        self, reference: str, *, why: str, override: bool = False, instead_of: int | None = None
    ) -> Variant | Proposal:
        """Make a version the champion, or propose it where its recipe asks for a second person.

        Args:
            reference: The version.
            why: The reason; it is kept in the alias ledger.
            override: Also where its gate turned it down, or (admins) where nobody has approved it; that is recorded.
            instead_of: Version that is champion as the caller knows it, 0 for none; None where any will do.

        Returns:
            The version, or the proposal that waits for an approval.

        Raises:
            Conflict: its gate turned it down, or another version is champion by now.
            NotFound: there is no such version.
        """
        name, version = self._named(reference)
        body = {"version": version, "why": why, "override": override} | _instead_of(instead_of)
        answer = self._call("POST", f"variants/{part(name)}/promote", body=body)
        if answer.status_code == 202:
            return self._read(Proposal, self._json(answer))
        return self._read(Variant, self._json(answer))

    def proposals(
        self, *, name: str | None = None, team: str | None = None, state: ProposalState | None = None
    ) -> Iterator[Proposal]:
        """Yield what waits for a second person and what became of it, the newest first.

        Args:
            name: Of one variant only, ``team.name``.
            team: Of one team only.
            state: ``open`` waits for a decision.
        """
        return self._pages(Proposal, "proposals", query={"name": name, "team": team, "state": state})

    def proposal(self, proposal_id: str) -> Proposal:
        """Return a proposal.

        Raises:
            NotFound: there is none.
        """
        return self._read(Proposal, self._get(f"proposals/{part(proposal_id)}"))

    def approve(self, proposal_id: str, *, why: str) -> Proposal:
        """Approve a proposal that somebody else has made, which serves the version.

        Raises:
            Conflict: it is decided already, or the caller had a hand in proposing it.
            NotFound: there is no such proposal.
        """
        return self._decide(proposal_id, "approve", why)

    def reject(self, proposal_id: str, *, why: str) -> Proposal:
        """Reject a proposal, or take one's own back; errors as of :meth:`approve`."""
        return self._decide(proposal_id, "reject", why)

    def _decide(self, proposal_id: str, verdict: str, why: str) -> Proposal:
        answer = self._call("POST", f"proposals/{part(proposal_id)}/{verdict}", body={"why": why})
        return self._read(Proposal, self._json(answer))

    def rollback(self, name: str, *, why: str, instead_of: int | None = None) -> Variant:
        """Make the version champion that was it before the present one; ``instead_of`` as of :meth:`promote`.

        Raises:
            Conflict: another version is champion by now.
            NotFound: there was none before.
        """
        body = {"why": why} | _instead_of(instead_of)
        answer = self._call("POST", f"variants/{part(name)}/rollback", body=body)
        return self._read(Variant, self._json(answer))

    def _named(self, reference: str) -> tuple[str, int]:
        """Return the name and the version of a reference."""
        name, _, alias = reference.partition("@")
        name, _, number = name.partition("/")
        if number:
            if not (number.isascii() and number.isdigit()):
                raise InvalidRequest(f"{number!r} is not a version number.", hint="Write team.name/3, for example.")
            return name, int(number)
        if alias and alias not in get_args(ALIAS):
            raise InvalidRequest(
                f"There is no alias {alias!r}.{suggest(alias, get_args(ALIAS))}",
                hint=f"Allowed: {listing(get_args(ALIAS))}.",
                details=[Detail("alias", f"{alias!r} is not allowed")],
            )
        found = self._read(_Name, self._get(f"variants/{part(name)}"))
        version = found.aliases.get(alias or "champion")
        if version is None and not alias and found.versions:
            version = max(one.version for one in found.versions)
        if version is None:
            raise NotFound(
                f"{name} has no {alias or 'version'}.",
                hint=f"Name a version, as {name}/1, or promote one: factory variants promote.",
                details=[Detail("alias", f"{alias or 'champion'} is not set")],
            )
        return name, version

    # --- deployments ---------------------------------------------------------------

    def deployments(self) -> Serving:
        """Return what is served, and where."""
        found = self._read(_Deployments, self._get("deployments"))
        served = tuple(deployment for name in found.items for deployment in name.served)
        return Serving(predictor=found.predictor, deployments=served)

    def deploy(self, reference: str, wish: DeploymentWish, *, why: str = "Set by hand.") -> Variant:
        """Serve a version as wished; ``none`` takes it out of traffic.

        Raises:
            Conflict: its gate turned it down, and it would become champion.
            NotFound: there is no such version.
        """
        variant = self.variant(reference)
        body = {**wish.model_dump(mode="json", by_alias=True), "version": variant.version, "why": why}
        self._call("PUT", f"deployments/{part(variant.name)}", body=body, repeatable=True)
        return variant


def _instead_of(version: int | None) -> dict[str, Any]:
    """Return the part of a body that names the champion as the caller knows it; an older portal does not know it."""
    return {} if version is None else {"instead_of": version}
