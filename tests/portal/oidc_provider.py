"""A small OpenID Connect provider, a process of its own: ``python tests/portal/oidc_provider.py``.

Authlib's authorization server with discovery, keys, RS256 and PKCE, in Flask.
It prints its address. ``POST /control`` says who signs in next, and what it
does wrong: the claims of its ID tokens, and which key signs them.
"""

from __future__ import annotations

import json
import sys
import time
from base64 import urlsafe_b64decode
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import UserInfo
from authlib.oidc.core.grants import OpenIDCode
from authlib.oidc.core.models import AuthorizationCodeMixin
from flask import Flask, jsonify, request
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from werkzeug.serving import make_server

CLIENT, SECRET = "portal", "secret-of-the-portal"


@dataclass
class Control:
    """What the next sign-in is.

    Attributes:
        person: Claims about the person.
        claims: In place of those of the ID token; null leaves one out.
        key: Which key signs: ``first``, ``second`` (both are published), ``foreign``, or ``shared``, the client's
            secret.
        published: Which keys are published.
        answer: Of the endpoint with a name, in place of its own: a status and a text.
        issuer: By which it calls itself.
        redirect_uris: Further addresses that people may be sent back to.
    """

    person: dict[str, Any] = field(default_factory=lambda: {"sub": "oidc|7", "email": "ann@example.com"})
    claims: dict[str, Any] = field(default_factory=dict)
    key: str = "first"
    published: tuple[str, ...] = ("first",)
    answer: dict[str, tuple[int, str]] = field(default_factory=dict)
    issuer: str | None = None
    redirect_uris: tuple[str, ...] = ()


class Client(ClientMixin):  # type: ignore[misc]
    """The portal."""

    client_id = CLIENT

    def __init__(self, redirect_uris: list[str]) -> None:
        self.redirect_uris = redirect_uris

    def get_client_id(self) -> str:
        return CLIENT

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri in (*self.redirect_uris, *control.redirect_uris)

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "authorization_code"


@dataclass
class Code(AuthorizationCodeMixin):  # type: ignore[misc]
    """A code that was given out."""

    code: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    code_challenge_method: str
    person: dict[str, Any]

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> int:
        return int(time.time())


app = Flask("provider")
control, codes, clients = Control(), dict[str, Code](), dict[str, Client]()
keys = {name: RSAKey.generate_key(2048, {"kid": name}) for name in ("first", "second", "foreign")}


class CodeGrant(AuthorizationCodeGrant):  # type: ignore[misc]
    """The authorization code flow."""

    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

    def save_authorization_code(self, code: str, request: Any) -> None:
        data = request.payload.data
        codes[code] = Code(
            code,
            request.payload.redirect_uri,
            request.scope,
            data.get("nonce"),
            data["code_challenge"],
            data["code_challenge_method"],
            request.user.claims,
        )

    def query_authorization_code(self, code: str, client: Any) -> Code | None:
        return codes.get(code)

    def delete_authorization_code(self, authorization_code: Code) -> None:
        del codes[authorization_code.code]

    def authenticate_user(self, authorization_code: Code) -> Any:
        return SimpleNamespace(claims=authorization_code.person)


class IdToken(OpenIDCode):  # type: ignore[misc]
    """ID tokens, with what they are to have wrong."""

    def exists_nonce(self, nonce: str, request: Any) -> bool:
        return False

    def get_client_algorithm(self, client: Any) -> str:
        return "HS256" if control.key == "shared" else "RS256"

    def get_encode_header(self, client: Any) -> dict[str, str]:
        kid = "first" if control.key == "foreign" else control.key
        return {"alg": self.get_client_algorithm(client), "kid": kid}

    def resolve_client_private_key(self, client: Any) -> Any:
        return OctKey.import_key(SECRET) if control.key == "shared" else keys[control.key]

    def get_client_claims(self, client: Any) -> dict[str, Any]:
        return {"iss": request.host_url.rstrip("/"), "aud": CLIENT}

    def generate_user_info(self, user: Any, scope: str) -> Any:
        # Comes last, and so over what Authlib has put in.
        return UserInfo(user.claims | control.claims)

    def encode_id_token(self, token: dict[str, Any], request: Any) -> str:
        text = super().encode_id_token(token, request)
        if None not in control.claims.values():
            return str(text)
        payload = json.loads(urlsafe_b64decode(text.split(".")[1] + "=="))
        kept = {name: value for name, value in payload.items() if value is not None}
        header = self.get_encode_header(request.client)
        return jwt.encode(header, kept, self.resolve_client_private_key(request.client), [header["alg"]])


server = AuthorizationServer(app, query_client=clients.get, save_token=lambda *_: None)
server.register_grant(CodeGrant, [IdToken(require_nonce=True), CodeChallenge(required=True)])


@app.before_request
def play() -> Any:
    """Answer what the control says in place of the endpoint."""
    status, text = control.answer.get(request.path, (0, ""))
    return (text, status) if status else None


@app.get("/.well-known/openid-configuration")
def discover() -> Any:
    """Say what the provider is."""
    issuer = request.host_url.rstrip("/")
    return jsonify(
        issuer=control.issuer or issuer,
        authorization_endpoint=f"{issuer}/authorize",
        token_endpoint=f"{issuer}/token",
        jwks_uri=f"{issuer}/keys",
        response_types_supported=["code"],
        subject_types_supported=["public"],
        id_token_signing_alg_values_supported=["RS256", "HS256", "none"],
        code_challenge_methods_supported=["S256"],
    )


@app.get("/keys")
def show_keys() -> Any:
    """Publish keys."""
    return jsonify(keys=[keys[name].as_dict(private=False) for name in control.published])


@app.get("/authorize")
def authorize() -> Any:
    """Sign in whom the control names, without a page."""
    person = SimpleNamespace(claims=dict(control.person))
    grant = server.get_consent_grant(end_user=person)
    return server.create_authorization_response(grant_user=person, grant=grant)


@app.post("/token")
def give_token() -> Any:
    """Give tokens for a code."""
    return server.create_token_response()


@app.post("/control")
def set_control() -> Any:
    """Change what the next sign-in is; what is not named is as at the start."""
    vars(control).update(vars(Control(**request.get_json())))
    return "", 204


def main() -> None:
    """Serve on a free port; the arguments are addresses that people may be sent back to."""
    clients[CLIENT] = Client(sys.argv[1:])
    serving = make_server("127.0.0.1", 0, app, threaded=True)
    print(json.dumps({"issuer": f"http://127.0.0.1:{serving.server_port}"}), flush=True)
    serving.serve_forever()


if __name__ == "__main__":
    main()
