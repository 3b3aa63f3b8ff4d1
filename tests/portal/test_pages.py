"""Pages as a browser gets them: who may see them, what they say, and that nothing typed by strangers becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from factory.errors import InvalidData
from factory.ledger import Served, ShadowCounts
from factory.spec import DeploymentWish, Trial
from serve.portal.pages.kit import POLICY
from tests.portal.conftest import SETUP, Client, World

HERE = "http://127.0.0.1:8080"
SCRIPT = "<script>alert(1)</script>"


@dataclass
class Page:
    """A page that was got."""

    response: httpx.Response

    @property
    def text(self) -> str:
        return self.response.text

    @property
    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="(\w+)"', self.text) or re.search(r'data-csrf="(\w+)"', self.text)
        assert found is not None
        return found.group(1)


@dataclass
class Visitor:
    """A browser without scripts, which keeps its cookies."""

    world: World
    language: str = "en"
    cookies: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, **arguments: Any) -> Page:
        headers = {
            "accept": "text/html",
            "accept-language": self.language,
            "cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
            **arguments.pop("headers", {}),
        }
        client = Client(self.world.app, None, headers=headers)
        response = client(method, f"http://127.0.0.1:{self.world.settings.portal_port}{path}", **arguments)
        for one in response.headers.get_list("set-cookie"):
            name, _, value = one.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        return Page(response)

    def get(self, path: str, **arguments: Any) -> Page:
        return self("GET", path, **arguments)

    def post(self, path: str, /, **form: str | list[str]) -> Page:
        return self("POST", path, data={name.replace("__", "."): value for name, value in form.items()})

    def signed_in(self, who: str = "growth/submit") -> Visitor:
        page = self.post("/sign-in", token=self.world.secrets[who], next="/")
        assert page.response.status_code == 303, page.text
        return self


class Markup(HTMLParser):
    """What a browser would make of a page: its elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))


@pytest.fixture
def visitor(world: World) -> Visitor:
    return Visitor(world).signed_in()


@pytest.fixture
def filled(world: World) -> dict[str, str]:
    """Paths of pages about something, in a ledger that holds something of everything."""
    request_id = world.submitted()
    trial = {"family": "linear", "parameters": {"alpha": 1}, "state": "succeeded", "folds": (0,), "fold_scores": (0.8,)}
    for number in range(3):
        world.ledger.record_trial(request_id, Trial(number=number, score=0.8 + number / 100, **trial))
    world.made()
    world.made()
    world.ledger.set_alias("growth.churn", "champion", 1, who="x", why="y", by=SETUP)
    return {
        "home": "/",
        "requests": "/requests",
        "request": f"/requests/{request_id}",
        "variants": "/variants",
        "variant": "/variants/growth.churn",
        "version": "/variants/growth.churn/versions/2",
        "compare": "/variants/growth.churn/compare?a=1&b=2",
        "new": "/new",
        "form": f"/new/form?dataset={world.upload()}",
        "account": "/account",
        "recipes": "/recipes",
        "recipe": "/recipes/tabular-fast",
        "datasets": "/datasets",
        "dataset": f"/datasets/{world.upload()}",
        "deployments": "/deployments",
        "deployment": "/deployments/growth.churn",
        "try": "/variants/growth.churn/versions/2/try",
        "queue": "/queue",
        "batches": "/batches",
        "team": "/team",
    }


# --- who may see what --------------------------------------------------------------


def test_who_has_not_signed_in_is_sent_there_and_comes_back(world: World) -> None:
    visitor = Visitor(world)
    page = visitor.get("/variants?like=churn")
    assert page.response.status_code == 303
    assert page.response.headers["location"] == "/sign-in?next=%2Fvariants%3Flike%3Dchurn"
    assert "mvf_" in visitor.get(page.response.headers["location"]).text
    page = visitor.post("/sign-in", token=world.secrets["growth/read"], next="/variants?like=churn")
    assert (page.response.status_code, page.response.headers["location"]) == (303, "/variants?like=churn")
    assert visitor.get("/variants?like=churn").response.status_code == 200
    assert visitor.get("/sign-in?next=/account").response.headers["location"] == "/account"


@pytest.mark.parametrize("elsewhere", ["//elsewhere.example", "https://elsewhere.example/", "/\\elsewhere.example"])
def test_a_sign_in_leads_to_no_other_host(world: World, elsewhere: str) -> None:
    page = Visitor(world).post("/sign-in", token=world.secrets["growth/read"], next=elsewhere)
    assert page.response.headers["location"] == "/"


def test_a_wrong_token_is_told_on_the_form(world: World) -> None:
    page = Visitor(world).post("/sign-in", token="mvf_no", next="/")
    assert page.response.status_code == 401
    assert "The token is not known." in page.text
    assert 'aria-invalid="true"' in page.text


def test_signing_out_ends_the_session(visitor: Visitor) -> None:
    csrf = visitor.get("/account").csrf
    assert visitor.post("/sign-out", csrf=csrf).response.headers["location"] == "/sign-in"
    assert visitor.get("/").response.status_code == 303


def test_another_teams_things_do_not_exist(world: World, filled: dict[str, str]) -> None:
    other = Visitor(world).signed_in("risk/admin")
    for name in ("request", "variant", "version", "compare", "form", "dataset", "deployment"):
        page = other.get(filled[name])
        assert page.response.status_code == 404, name
        assert "churned" not in page.text


def test_a_change_needs_the_pages_own_token(visitor: Visitor, filled: dict[str, str]) -> None:
    page = visitor.post(f"{filled['request']}/cancel", csrf="0" * 64)
    assert page.response.status_code == 403
    assert visitor.world.ledger.request(filled["request"].rpartition("/")[2]).cancel_requested_at is None


def test_what_the_token_may_not_do_is_not_offered(world: World, filled: dict[str, str]) -> None:
    reader = Visitor(world).signed_in("growth/read")
    assert 'href="/new"' not in reader.get("/").text
    assert "/cancel" not in reader.get(filled["request"]).text
    assert "/promote" not in reader.get(filled["version"]).text
    assert "/promote" in Visitor(world).signed_in("growth/deploy").get(filled["version"]).text


# --- every page ---------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_page_is_whole_and_safe(world: World, filled: dict[str, str], language: str) -> None:
    visitor = Visitor(world, language).signed_in("growth/admin")
    for name, path in filled.items():
        page = visitor.get(path)
        assert page.response.status_code == 200, (name, page.text[-800:])
        assert page.response.headers["content-security-policy"] == POLICY
        assert page.response.headers["cache-control"] == "no-store"
        assert page.response.headers["referrer-policy"] == "same-origin", "else its forms come from no origin"
        found = Markup(page.text).elements
        assert ("html", {"lang": language}) in found
        assert sum(tag == "h1" for tag, _ in found) == 1, name
        ids = [attributes["id"] for _, attributes in found if "id" in attributes]
        assert len(ids) == len(set(ids)), (name, sorted(one for one in ids if ids.count(one) > 1))
        for tag, attributes in found:
            assert not [one for one in attributes if one.startswith("on") or one == "style"], (name, tag, attributes)
            if tag == "script" and attributes.get("type") != "application/json":
                assert (attributes["src"] or "").startswith("/static/"), name
            for where in ("href", "src", "action", "formaction"):
                assert re.match(r"[/#?]|$", attributes.get(where) or ""), (name, attributes)
        labelled = {attributes["for"] for tag, attributes in found if tag == "label" and "for" in attributes}
        for tag, attributes in found:
            if tag in ("select", "textarea") or (
                tag == "input" and attributes.get("type") not in ("hidden", "radio", "checkbox")
            ):
                assert attributes.get("id") in labelled or "aria-label" in attributes, (name, attributes)


def test_no_page_leads_nowhere(world: World, filled: dict[str, str]) -> None:
    visitor = Visitor(world).signed_in("growth/admin")
    elements = [one for path in filled.values() for one in Markup(visitor.get(path).text).elements]
    targets = {attributes.get("href") or "" for tag, attributes in elements if tag == "a"}
    ours = {one for one in targets if one.startswith("/") and not one.startswith(("/auth/", "/api/"))}
    assert len(ours) > len(filled)
    for target in sorted(ours):
        assert visitor.get(target).response.status_code == 200, target


def test_strangers_text_is_shown_as_text_everywhere(world: World) -> None:
    request_id = world.submitted(dataset={"upload": world.upload(), "target": "churned", "drop": ["city"]})
    world.ledger.note(request_id, "search", SCRIPT)
    world.ledger.record_trial(
        request_id,
        Trial(number=0, family=SCRIPT, parameters={}, state="succeeded", score=0.5, folds=(0,), fold_scores=(0.5,)),
    )
    world.ledger.fail(request_id, InvalidData(SCRIPT, hint=SCRIPT))
    world.made(recipe=SCRIPT)
    world.ledger.set_alias("growth.churn", "champion", 1, who=SCRIPT, why=SCRIPT, by=SETUP)
    visitor = Visitor(world).signed_in("growth/admin")
    paths = (
        f"/requests/{request_id}",
        "/",
        "/requests?variant=" + SCRIPT,
        "/variants?like=" + SCRIPT,
        "/variants/growth.churn",
        "/variants/growth.churn/versions/1",
        "/" + SCRIPT,
        f"/sign-in?next=/{SCRIPT}",
    )
    for path in paths:
        page = visitor.get(path)
        assert SCRIPT not in page.text, path
        assert not [1 for tag, of in Markup(page.text).elements if tag == "script" and not of], path


def test_errors_are_pages_for_people_and_json_for_programs(visitor: Visitor, world: World) -> None:
    page = visitor.get("/requests/nobody")
    assert page.response.status_code == 404
    assert "<h1>Not found</h1>" in page.text
    part = visitor.get("/requests/nobody", headers={"hx-request": "true"})
    assert part.response.headers["hx-retarget"] == "#notices"
    assert "<html" not in part.text
    assert world().get("/nothing").headers["content-type"] == "application/json"


def test_files_are_packed_and_kept_and_nothing_else_is_given(visitor: Visitor) -> None:
    found = {of.get("href") or of.get("src") for _, of in Markup(visitor.get("/account").text).elements}
    files = sorted(one for one in found if one and one.startswith("/static/"))
    assert len(files) == 4
    n_bytes = 0
    for one in files:
        answer = visitor.get(one, headers={"accept-encoding": "gzip"}).response
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        n_bytes += answer.num_bytes_downloaded
    assert 0 < n_bytes < 60_000
    for name in ("../app.py", "%2e%2e/app.py", "vendor", "portal.css/x", "templates/base.html"):
        assert visitor.get(f"/static/0/{name}").response.status_code == 404


# --- ordering --------------------------------------------------------------------------


def test_a_table_becomes_a_request_in_a_few_steps(visitor: Visitor, world: World) -> None:
    csrf = visitor.get("/new").csrf
    rows = b"age,plan,churned\n" + b"".join(b"%d,%d,%s\n" % (i % 60, i % 3, (b"yes", b"no")[i % 2]) for i in range(80))
    page = visitor("POST", f"/new/upload?csrf={csrf}&team=growth", files={"file": ("Our customers.csv", rows)})
    assert page.response.status_code == 303, page.text
    form = visitor.get(page.response.headers["location"])
    assert 'value="our-customers"' in form.text
    assert "<option selected>churned</option>" in form.text
    digest = re.search(r'name="dataset.upload" value="(\w+)"', form.text)
    key = re.search(r'name="key" value="(\w+)"', form.text)
    assert digest is not None
    assert key is not None
    order = {
        "csrf": form.csrf,
        "key": key.group(1),
        "team": "growth",
        "recipe": "tabular-fast",
        "name": "customers",
        "dataset__upload": digest.group(1),
        "dataset__target": "churned",
        "dataset__types.plan": "categorical",
        "budget__time_s": "60",
        "deployment__as": "challenger",
        "validation__kind": "cross_validation",
        "validation__folds": "4",
        "validation__share": "0.3",
    }
    quote = visitor.post("/new/quote", **order)
    assert "80 rows, 3 columns" in quote.text, quote.text
    assert "order = " in quote.text
    sent = [visitor.post("/new", **order).response for _ in range(2)]
    assert sent[0].status_code == 303
    assert sent[0].headers["location"] == sent[1].headers["location"], "sent twice, it is made once"
    made = world.ledger.request(sent[0].headers["location"].rpartition("/")[2]).request
    assert made.validation is not None
    assert made.validation.model_dump() == {"kind": "cross_validation", "folds": 4}
    assert (made.deployment.as_, made.dataset.types) == ("challenger", {"plan": "categorical"})
    again = visitor.get(f"/new/form?like={sent[0].headers['location'].rpartition('/')[2]}")
    assert 'value="customers"' in again.text


def test_what_is_wrong_stands_beside_its_field_and_what_was_typed_stays(visitor: Visitor, world: World) -> None:
    form = visitor.get(f"/new/form?dataset={world.upload()}")
    order = {
        "csrf": form.csrf,
        "team": "growth",
        "recipe": "tabular-fast",
        "name": "Customers!",
        "dataset__upload": world.upload(),
        "dataset__target": "nothing",
        "budget__time_s": "soon",
    }
    quote = visitor.post("/new/quote", **order).text
    assert {"name", "budget.time_s"} <= set(re.findall(r'data-problem="([\w.]+)"', quote))
    page = visitor.post("/new", **order)
    assert page.response.status_code == 400
    assert 'value="Customers!"' in page.text
    assert 'value="soon"' in page.text
    assert re.search(r'data-wrong="name"\s*>', page.text)
    assert world.ledger.request_page().items == ()


def test_an_upload_that_is_no_table_is_told_on_the_page(visitor: Visitor) -> None:
    csrf = visitor.get("/new").csrf
    for name, content in (("empty.csv", b""), ("page.csv", b"<!doctype html><p>No</p>"), ("x.parquet", b"PAR1")):
        page = visitor("POST", f"/new/upload?csrf={csrf}&team=growth", files={"file": (name, content)})
        assert 400 <= page.response.status_code < 500, name
        assert 'role="alert"' in page.text


def test_operators_say_first_whose_variant_it_is(world: World) -> None:
    operator = Visitor(world).signed_in("operator")
    page = operator.get("/new")
    assert 'href="/new?team=growth"' in page.text
    assert 'data-team="growth"' in operator.get("/new?team=growth").text


# --- requests and variants ----------------------------------------------------------------


def test_a_request_is_cancelled_and_ordered_again(visitor: Visitor, filled: dict[str, str], world: World) -> None:
    page = visitor.get(filled["request"])
    assert page.response.status_code == 200
    assert visitor.post(f"{filled['request']}/cancel", csrf=page.csrf).response.status_code == 303
    page = visitor.get(filled["request"])
    assert "The request is asked to end." in page.text
    assert "The request is asked to end." not in visitor.get(filled["request"]).text, "it is said once"
    assert "Order again" in page.text
    again = visitor.post(f"{filled['request']}/retry", csrf=page.csrf, key="retry-1").response
    assert again.headers["location"] != filled["request"]
    assert world.ledger.request(again.headers["location"].rpartition("/")[2]).retry_of is not None


def test_a_version_is_promoted_and_rolled_back(world: World, filled: dict[str, str], mirror: list[Any]) -> None:
    visitor = Visitor(world).signed_in("growth/deploy")
    page = visitor.get(filled["version"])
    sent = visitor.post("/variants/growth.churn/promote", csrf=page.csrf, version="2", why="Better in the pilot.")
    assert sent.response.headers["location"] == "/variants/growth.churn/versions/2"
    assert world.ledger.aliases(["growth.churn"])["growth.churn"] == {"champion": 2}
    back = visitor.post("/variants/growth.churn/rollback", csrf=page.csrf, why="It is slower.")
    assert back.response.headers["location"] == "/variants/growth.churn"
    assert "Version 1 is champion again." in visitor.get("/variants/growth.churn").text


def test_lists_are_filtered(world: World, filled: dict[str, str]) -> None:
    visitor = Visitor(world).signed_in("growth/admin")
    world.made("growth.sales")
    assert "growth.churn" not in visitor.get("/variants?like=sal").text
    champions = visitor.get("/variants?alias=champion").text
    assert "growth.churn/1" in champions
    assert "growth.churn/2" not in champions
    assert "growth.churn" not in visitor.get("/requests?state=serving").text
    assert "growth.churn" in visitor.get("/requests?state=under_way").text


# --- data, deployments, teams -----------------------------------------------------------------


def test_a_table_is_shared_and_forgotten(visitor: Visitor, world: World) -> None:
    place = f"/datasets/{world.upload()}"
    page = visitor.get(place)
    shared = {"csrf": page.csrf, "team": "growth", "with_team": "risk"}
    assert visitor.post(f"{place}/share", **shared).response.status_code == 303
    assert ">risk<" in visitor.get(place).text
    assert Visitor(world).signed_in("risk/read").get(place).response.status_code == 200
    assert visitor.post(f"{place}/share", **shared, end="true").response.status_code == 303
    assert Visitor(world).signed_in("risk/read").get(place).response.status_code == 404
    assert visitor.post(f"{place}/forget", csrf=page.csrf, team="growth").response.headers["location"] == "/datasets"
    assert visitor.get(place).response.status_code == 404


def test_of_two_who_change_a_deployment_the_second_one_is_told(
    world: World, filled: dict[str, str], mirror: list[Any]
) -> None:
    first, second = Visitor(world).signed_in("growth/deploy"), Visitor(world).signed_in("growth/deploy")
    place = "/deployments/growth.churn"
    pages = [first.get(place), second.get(place)]
    tags = [re.search(r'name="tag" value="([^"]*)"', page.text) for page in pages]
    assert all(tags)
    wish = {"version": "2", "as": "canary", "percent": "12,5", "why": "A first look."}
    tag = tags[0].group(1).replace("&#34;", '"')  # type: ignore[union-attr]
    done = first.post(place, csrf=pages[0].csrf, tag=tag, **wish)
    assert done.response.status_code == 303, done.text
    assert [(one.as_, one.percent) for one in world.ledger.deployment("growth.churn")] == [("canary", 12.5)]
    assert "A first look." in first.get(place).text, "who has changed it, and why"
    late = second.post(place, csrf=pages[1].csrf, tag=tag, **wish)
    assert late.response.status_code == 412
    assert "was changed since it was read" in late.text


def test_a_page_tells_how_a_shadow_compares(world: World, filled: dict[str, str]) -> None:
    shadow = world.ledger.set_deployment("growth.churn", DeploymentWish(as_="shadow"), version=2)
    assert shadow is not None
    counts = ((1, ShadowCounts(calls=3, labelled=10, agreed=9)), (2, ShadowCounts(calls=1, measured=4, difference=2.0)))
    for against, one in counts:
        world.ledger.add_shadow("growth.churn", 2, shadow.updated, against, one)
    text = Visitor(world).signed_in("growth/read").get("/deployments/growth.churn").text
    assert "the same label as version 1 in 90" in text
    assert "0.5000 from version 2 in the mean of 4 rows" in text
    german = Visitor(world, language="de").signed_in("growth/read").get("/deployments/growth.churn").text
    assert "dieselbe Klasse wie Version 1" in german


def test_pages_tell_how_variants_are_called_and_that_one_fails(world: World, filled: dict[str, str]) -> None:
    visitor = Visitor(world).signed_in("growth/deploy")
    place = "/deployments/growth.churn"
    assert "Nobody has called it in this time." in visitor.get(place).text
    world.ledger.set_deployment("growth.churn", DeploymentWish(as_="champion"), version=1)
    began = datetime.now(UTC) - timedelta(minutes=1)
    latency = (0, 90, 10, *(0,) * 9)
    counted = Served(name="growth.churn", version=1, began=began, calls=100, failed=3, latency=latency)
    world.ledger.add_served([counted])
    for text in (visitor.get("/deployments").text, visitor.get(place).text):
        assert "3%" in text
        assert "Calls a minute" in text or "calls a minute" in text
    page = visitor.get(place).text
    figure = json.loads(re.search(r'id="calls-data">(.*?)</script>', page).group(1))  # type: ignore[union-attr]
    assert [trace["type"] for trace in figure["data"]] == ["bar", "scatter"]
    assert figure["data"][0]["y"] == [100.0]
    assert 'hx-get="/deployments/growth.churn?window=day"' in visitor.get(f"{place}?window=day").text
    assert visitor.get(f"{place}?window=year").response.status_code == 400
    home = visitor.get("/").text
    assert "fails in 3% of its calls" in home
    german = Visitor(world, language="de").signed_in("growth/deploy")
    assert "Aufrufe je Minute" in german.get("/deployments").text


def test_a_token_is_made_shown_once_and_revoked(world: World) -> None:
    admin = Visitor(world).signed_in("growth/admin")
    page = admin.get("/team")
    made = admin.post("/team/growth/tokens", csrf=page.csrf, name="nightly", scopes=["read", "submit"], days="30")
    secret = re.search(r'<code id="secret">(mvf_[\w-]+)</code>', made.text)
    assert secret is not None
    assert world().get("/me", headers={"authorization": f"Bearer {secret.group(1)}"}).status_code == 200
    assert secret.group(1) not in admin.get("/team").text
    (token,) = [one for one in world.ledger.tokens(team="growth") if one.name == "nightly"]
    assert token.expires is not None
    revoked = admin.post(f"/team/growth/tokens/{token.id}/revoke", csrf=page.csrf)
    assert revoked.response.status_code == 303
    assert world.ledger.token(token.id).revoked_at is not None
    assert "nightly" not in Visitor(world).signed_in("growth/read").get("/team").text


def test_a_person_is_put_into_the_team_and_leaves_it(world: World) -> None:
    admin = Visitor(world).signed_in("growth/admin")
    csrf = admin.get("/team").csrf
    person = {"subject": "oidc|7", "email": "ann@example.com"}
    assert admin.post("/team/growth/members", csrf=csrf, scopes=["read"], **person).response.status_code == 303
    assert [one.subject for one in world.ledger.members("growth")] == ["oidc|7"]
    assert admin.post("/team/growth/members", csrf=csrf, leaves="true", **person).response.status_code == 303
    assert world.ledger.members("growth") == []


def test_operators_see_all_teams_and_each_of_them(world: World) -> None:
    operator = Visitor(world).signed_in("operator")
    assert 'href="/team?name=risk"' in operator.get("/team").text
    assert "<h1>Risk</h1>" in operator.get("/team?name=risk").text
