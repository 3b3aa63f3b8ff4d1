"""Teams, their people and tokens, what is shared and what was done, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from pydantic import BaseModel, Field

from factory.ledger import AuditRecord, IssuedToken, Share, ShareKind, Usage
from factory.remote.calls import Calls, part
from factory.spec import Member, Principal, Quota, Scope, Team, TokenRecord


class _NewSecret(BaseModel):
    secret: str = Field(repr=False)
    token: TokenRecord


class TeamCalls(Calls):
    """The part of the client that knows teams and tokens."""

    def whoami(self) -> Principal:
        """Return whom the token is of, and what it may do."""
        return self._read(Principal, self._get("me"))

    # --- teams -------------------------------------------------------------------

    def teams(self, *, archived: bool = False) -> list[Team]:
        """Return the teams that the token sees, by name; those that are archived too where asked for."""
        return self._items(Team, "teams", query={"archived": archived})

    def team(self, name: str) -> Team:
        """Return a team.

        Raises:
            NotFound: there is none, or the token does not see it.
        """
        return self._read(Team, self._get(f"teams/{part(name)}"))

    def create_team(self, name: str, *, title: str = "", quota: Quota | None = None) -> Team:
        """Store a new team; without a quota it has no guarantee and no limit.

        Raises:
            Conflict: there is a team of that name.
        """
        body = {"name": name, "title": title, "quota": (quota or Quota()).model_dump(mode="json")}
        return self._read(Team, self._json(self._call("POST", "teams", body=body)))

    def change_team(self, team: Team, *, title: str | None = None, quota: Quota | None = None) -> Team:
        """Give a team another title or quota.

        Args:
            team: As it was read; nothing is changed where it is another by now.
            title: The new one, if any.
            quota: The whole new one, if any.

        Raises:
            Conflict: it was changed meanwhile, or is archived.
        """
        body = {
            **({"title": title} if title is not None else {}),
            **({"quota": quota.model_dump(mode="json")} if quota is not None else {}),
        }
        headers = {"if-match": f'"{team.digest}"'}
        return self._read(Team, self._json(self._call("PATCH", f"teams/{part(team.name)}", body=body, headers=headers)))

    def archive_team(self, name: str) -> Team:
        """Take nothing new from a team: its tokens are refused from now on; what it made stays."""
        return self._read(Team, self._json(self._call("POST", f"teams/{part(name)}/archive")))

    def members(self, team: str) -> list[Member]:
        """Return the people of a team."""
        return self._items(Member, f"teams/{part(team)}/members")

    def add_member(self, team: str, subject: str, *, email: str = "", scopes: Sequence[Scope]) -> Member:
        """Add a person to a team; one who is in it gets the new scopes and address."""
        path = f"teams/{part(team)}/members/{part(subject)}"
        body = {"email": email, "scopes": list(scopes)}
        return self._read(Member, self._json(self._call("PUT", path, body=body, repeatable=True)))

    def remove_member(self, team: str, subject: str) -> None:
        """Take a person out of a team.

        Raises:
            NotFound: the person is not in it.
        """
        self._call("DELETE", f"teams/{part(team)}/members/{part(subject)}")

    def end_sessions(self, subject: str) -> None:
        """Sign a person out in all browsers; operators may."""
        self._call("DELETE", f"people/{part(subject)}/sessions", repeatable=True)

    def usage(self, month: str | None = None) -> list[Usage]:
        """Return what each team that the token sees used in a month; the present one where not given."""
        return self._items(Usage, "usage", query={"month": month})

    # --- tokens --------------------------------------------------------------------

    def tokens(self, *, team: str | None = None, revoked: bool = False) -> list[TokenRecord]:
        """Return tokens without their secrets, the newest first: of one team where given, with the revoked ones too."""
        return self._items(TokenRecord, "tokens", query={"team": team, "revoked": revoked})

    def issue_token(
        self,
        name: str,
        *,
        team: str | None,
        scopes: Sequence[Scope],
        expires: datetime | None = None,
        variants: str | None = None,
    ) -> IssuedToken:
        """Make a token; its secret is in the answer and nowhere else.

        Args:
            name: For people to know it by.
            team: Whose it is; None makes an operator's, which sees all teams.
            scopes: What it may do.
            expires: From when it is refused, with its time zone; never where not given.
            variants: Pattern of the variants that it may call, as ``growth.churn*``; with the scope predict alone.
        """
        body: dict[str, object] = {"name": name, "scopes": list(scopes), "variants": variants}
        body |= {"expires": None if expires is None else expires.isoformat()}
        body |= {"all_teams": True} if team is None else {"team": team}
        return self._issued(self._json(self._call("POST", "tokens", body=body)))

    def rotate_token(self, token_id: str, *, expires: datetime | None = None) -> IssuedToken:
        """Make a token that may do the same as another one, which is refused from now on.

        Raises:
            Conflict: the old one is revoked.
        """
        body = {"expires": None if expires is None else expires.isoformat()}
        return self._issued(self._json(self._call("POST", f"tokens/{part(token_id)}/rotate", body=body)))

    def revoke_token(self, token_id: str) -> TokenRecord:
        """Refuse a token from now on.

        Raises:
            Conflict: it is revoked already.
        """
        return self._read(TokenRecord, self._json(self._call("DELETE", f"tokens/{part(token_id)}")))

    def _issued(self, document: object) -> IssuedToken:
        new = self._read(_NewSecret, document)
        return IssuedToken(new.secret, new.token)

    # --- shares and the audit log --------------------------------------------------

    def shares(self, kind: ShareKind, subject: str, *, team: str) -> list[Share]:
        """Return whom a team lets see a dataset (by digest), a variant (by name) or a request (by id)."""
        return self._items(Share, "shares", query={"kind": kind, "subject": subject, "team": team})

    def share(self, kind: ShareKind, subject: str, *, team: str, with_team: str) -> Share:
        """Let another team see something; sharing it again changes nothing.

        Args:
            kind: ``dataset``, ``variant`` (all versions of a name) or ``request``.
            subject: Digest, name or id.
            team: Whose it is.
            with_team: Who may see it; ``*`` for every team.
        """
        body = {"kind": kind, "subject": subject, "team": team, "with_team": with_team}
        answer = self._call("POST", "shares", body=body, repeatable=True)
        return self._read(Share, self._json(answer))

    def unshare(self, kind: ShareKind, subject: str, *, team: str, with_team: str) -> None:
        """Let another team see something no more; does nothing where it was not shared."""
        query = {"kind": kind, "subject": subject, "team": team, "with_team": with_team}
        self._call("DELETE", "shares", query=query, repeatable=True)

    def audit(
        self,
        *,
        team: str | None = None,
        who: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        most: int | None = None,
    ) -> Iterator[AuditRecord]:
        """Yield rows of the audit log, the newest first."""
        query = {"team": team, "who": who, "action": action, "subject": subject}
        return self._pages(AuditRecord, "audit", query=query, most=most)
