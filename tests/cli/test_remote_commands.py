"""Commands over HTTP against a running portal: what they print is what they print on the same ledger in-process."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.errors import InvalidData, TrainingFault
from factory.ledger import Ledger
from factory.remote import Client, read_login
from factory.settings import Settings
from factory.spec import Actor, RequestState, Scope, Trial, TrialState, Variant
from tests.serving import portal

from .conftest import Answer, customers, factory

OPERATOR = Actor(who="operator")
ORDER: dict[str, Any] = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-fast",
    "dataset": {"path": "customers.csv", "target": "left"},
    "families": ["linear"],
    "budget": {"time_s": 4, "trials": 1},
}


def done(answer: Answer, code: int = 0) -> Answer:
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err
    return answer


def write_order(path: str, **changes: Any) -> Path:
    Path(path).write_text(yaml.safe_dump(ORDER | changes))
    return Path(path)


@pytest.fixture(scope="module")
def settings(home: Path) -> Settings:
    customers().to_csv("customers.csv", index=False)
    return Settings(home=home)


@pytest.fixture(scope="module")
def ledger(settings: Settings) -> Iterator[Ledger]:
    with Ledger.open(settings.ledger) as opened:
        opened.create_team("growth", by=OPERATOR)
        opened.create_team("risk", by=OPERATOR)
        yield opened


@pytest.fixture(scope="module")
def url(settings: Settings, ledger: Ledger) -> Iterator[str]:
    """A portal on the ledger of the home."""
    with portal(settings) as address:
        yield address


def secret(ledger: Ledger, *scopes: Scope, team: str | None) -> str:
    return ledger.issue_token("tests", team=team, scopes=scopes, by=OPERATOR).secret


@pytest.fixture
def anonymous(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody is logged in, and nothing names the portal."""
    monkeypatch.delenv("FACTORY_URL", raising=False)
    monkeypatch.delenv("FACTORY_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return monkeypatch


@pytest.fixture
def operator(anonymous: pytest.MonkeyPatch, url: str, ledger: Ledger) -> None:
    """Commands speak to the portal as an operator, who may name files by their paths."""
    anonymous.setenv("FACTORY_URL", url)
    anonymous.setenv("FACTORY_TOKEN", secret(ledger, "admin", team=None))


@pytest.fixture
def requester(anonymous: pytest.MonkeyPatch, url: str, ledger: Ledger) -> None:
    """Commands speak to the portal as a member of a team."""
    anonymous.setenv("FACTORY_URL", url)
    anonymous.setenv("FACTORY_TOKEN", secret(ledger, "read", "submit", team="growth"))


def both(*words: str | Path) -> tuple[Answer, Answer]:
    """Return what a command says over HTTP, and on the ledger of the home."""
    return factory(*words), factory(*words, "--local")


# --- the same, whichever way ------------------------------------------------------------


@pytest.fixture(scope="module")
def made(settings: Settings, ledger: Ledger) -> dict[str, str]:
    """Two versions of a variant, and requests that ended otherwise; made in-process."""
    words = ["--recipe", "tabular-fast", "--name", "growth.churn", "--budget", "4s"]
    done(factory("fit", "--train", "customers.csv", "--target", "left", *words))
    second = write_order("second.yaml", gates={"baseline": "constant"}, deployment={"as": "none"})
    assert factory("run", second).code in (0, 3)
    first, later = ledger.variants("growth.churn")
    failed = ledger.create_request(ledger.request(later.request_id).request, request_id="failed-1", by=OPERATOR)
    ledger.fail(failed.id, InvalidData("No rows in 'x.csv'.", hint="Give some."))
    return {"first": first.request_id, "second": later.request_id, "failed": failed.id}


READ = [
    ["requests", "list"],
    ["requests", "list", "--json"],
    ["requests", "list", "--state", "failed", "--team", "growth", "--limit", "1", "--json"],
    ["requests", "show", "{second}"],
    ["requests", "show", "{failed}"],
    ["requests", "show", "fail", "--json"],
    ["requests", "logs", "{first}"],
    ["requests", "logs", "{first}", "--json"],
    ["recipes", "list"],
    ["recipes", "list", "--json"],
    ["recipes", "show", "tabular-fast"],
    ["recipes", "show", "tabular-fast", "--json"],
    ["variants", "list"],
    ["variants", "list", "--json"],
    ["variants", "lineage", "growth.churn"],
    ["variants", "lineage", "growth.churn@champion", "--json"],
    ["variants", "compare", "growth.churn/1", "growth.churn/2"],
    ["variants", "compare", "growth.churn/1", "growth.churn/2", "--json"],
    ["deployments", "list"],
    ["deployments", "list", "--json"],
    ["teams", "list"],
    ["teams", "list", "--json"],
    ["teams", "show", "growth"],
    ["teams", "show", "growth", "--json"],
    ["teams", "usage"],
    ["teams", "usage", "--json"],
    ["tokens", "list", "--team", "risk"],
    ["tokens", "list", "--team", "risk", "--revoked", "--json"],
]


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_what_is_read_over_http_is_what_is_read_here(words: list[str], made: dict[str, str]) -> None:
    there, here = both(*(word.format(**made) for word in words))
    assert (done(there).out, there.err) == (done(here).out, here.err)
    assert there.out.strip()


@pytest.mark.usefixtures("operator")
def test_trials_are_the_same_but_for_folders_of_the_factorys_disk(made: dict[str, str]) -> None:
    there, here = both("requests", "show", made["first"], "--json")
    documents = [done(answer).json for answer in (there, here)]
    for document in documents:
        assert document["trials"]
        for trial in document["trials"]:
            del trial["artifacts"]
    assert documents[0] == documents[1]


@pytest.mark.usefixtures("operator")
def test_a_variant_is_shown_with_the_address_of_its_card(made: dict[str, str], url: str) -> None:
    there = done(factory("variants", "show", "growth.churn")).out
    assert f"Model card: {url}/api/v1/variants/growth.churn/versions/1/report" in " ".join(there.split())
    assert "roc_auc" in there
    document = done(factory("variants", "show", "growth.churn", "--json")).json
    assert (document["name"], document["version"], document["alias_history"][0]["alias"]) == (
        "growth.churn",
        1,
        "champion",
    )


REFUSED: list[tuple[list[str], list[str]]] = [
    (["requests", "show", "nowhere"], ["There is no request 'nowhere'"]),
    (["requests", "cancel", "{first}"], ["is registered", "cannot be cancelled"]),
    (["requests", "retry", "{first}"], ["is registered", "rejected, failed or cancelled"]),
    (["recipes", "show", "tabular-fats"], ["There is no recipe 'tabular-fats'", "Did you mean 'tabular-fast'?"]),
    (["variants", "lineage", "growth.chrun"], ["There is no variant 'growth.chrun'"]),
    (["variants", "promote", "growth.churn/9", "--why", "x"], ["growth.churn has no version 9", "Versions: 1, 2"]),
    (["variants", "promote", "growth.churn@best", "--why", "x"], ["There is no alias 'best'", "challenger, champion"]),
    (["variants", "promote", "growth.churn/x", "--why", "x"], ["'x' is not a version number"]),
    (["variants", "rollback", "growth.churn", "--why", "x"], ["no earlier champion"]),
    (["teams", "show", "growht"], ["There is no team 'growht'"]),
    (["teams", "create", "growth"], ["There is a team 'growth' already"]),
    (["tokens", "revoke", "t-0"], ["There is no token 't-0'"]),
    (["submit", "wrong.yaml"], ["lightgmb", "budget.trials", "recipe's ceiling"]),
    (["submit", "nothing.yaml"], ["dataset", "This field is required"]),
    (["submit", "absent.yaml"], ["dataset.path", "'none.csv' does not exist"]),
]


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_is_refused_over_http_is_refused_here_with_the_same_words(
    words: list[str], said: list[str], made: dict[str, str], ledger: Ledger
) -> None:
    write_order("wrong.yaml", families=["lightgmb"], budget={"trials": 10**9})
    Path("nothing.yaml").write_text("{team: growth, name: churn, recipe: tabular-fast}")
    write_order("absent.yaml", dataset={"path": "none.csv", "target": "left"})
    before = len(ledger.requests(limit=1000))
    for answer in both(*(word.format(**made) for word in words)):
        assert answer.code == 2, answer.err
        assert [part for part in said if part not in answer.said] == [], answer.err
        assert answer.out == ""
    assert len(ledger.requests(limit=1000)) == before


@pytest.mark.usefixtures("operator")
def test_errors_as_json_have_the_same_code_and_fields() -> None:
    write_order("wrong.yaml", seed=-1, metric="roc_auk")
    there, here = (answer.json["error"] for answer in both("submit", "wrong.yaml", "--json"))
    assert there["code"] == here["code"] == "invalid_request"
    assert {detail["field"] for detail in there["details"]} == {detail["field"] for detail in here["details"]}
    assert len(there["details"]) == 2


# --- ordering ---------------------------------------------------------------------------


@pytest.mark.usefixtures("operator")
def test_a_request_is_quoted_submitted_cancelled_and_retried(ledger: Ledger) -> None:
    order = write_order("order.yaml")
    there, here = both("submit", order, "--quote", "--json")
    assert there.json["problems"] == here.json["problems"] == []
    assert there.json["wall_s"]["expected"] > 0
    shown = done(factory("submit", order, "--quote")).out
    for part in ("wall time", "cost, USD", "80%", "Whatever happens"):
        assert part in shown
    before = len(ledger.requests(limit=1000))
    record = done(factory("submit", order, "--json")).json
    stored = ledger.request(record["id"])
    assert (stored.door, stored.state, len(ledger.requests(limit=1000))) == ("api", RequestState.QUEUED, before + 1)
    assert f"{record['id']} is cancelled" in done(factory("requests", "cancel", record["id"], "--why", "Wrong.")).out
    assert ledger.events(record["id"])[-1].message.endswith("Wrong.")
    retried = done(factory("requests", "retry", record["id"], "--json")).json
    assert retried["retry_of"] == record["id"]
    said = done(factory("submit", order)).out
    assert "is queued" in said
    assert "Next: factory requests show" in said


@pytest.mark.usefixtures("operator")
def test_a_quote_of_what_would_be_refused_ends_with_2() -> None:
    answer = done(factory("submit", write_order("none.yaml", dataset={"path": "no.csv", "target": "y"}), "--quote"), 2)
    assert "What would stop it" in answer.out
    assert "dataset.path" in answer.out
    assert answer.err == ""


@pytest.mark.usefixtures("requester")
def test_a_table_of_this_machine_is_sent_first_where_asked(ledger: Ledger) -> None:
    order = write_order("mine.yaml", name="mine")
    refused = factory("submit", order)
    assert refused.code == 2
    assert "only as an upload" in refused.said
    record = done(factory("submit", order, "--upload", "--json")).json
    kept = ledger.upload(record["request"]["dataset"]["upload"], "growth")
    assert (kept.name, kept.rows) == ("customers.csv", 120)


@pytest.mark.usefixtures("requester")
def test_what_a_token_may_not_is_said_and_another_teams_does_not_exist(ledger: Ledger) -> None:
    refused = factory("tokens", "list", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (2, "forbidden")
    assert "'admin'" in refused.said
    theirs = ledger.create_request(ledger.requests(limit=1)[0].request.model_copy(update={"team": "risk"}))
    hidden = factory("requests", "show", theirs.id)
    assert (hidden.code, "There is no request" in hidden.said) == (2, True)
    shown = done(factory("teams", "show", "growth")).out
    assert "shown to its admins" in shown


# --- following ------------------------------------------------------------------------


def drive(ledger: Ledger, team_name: str, end: Callable[[str], None]) -> threading.Thread:
    """Act on the next request of a name as a job's driver does; only its making is left out, which others test."""

    def act() -> None:
        while not (found := [r for r in ledger.requests(limit=50) if r.request.variant == team_name and not r.ended]):
            time.sleep(0.02)
        request_id = found[0].id
        ledger.reach(request_id, RequestState.PREPARING, "Reading and screening the data.")
        ledger.reach(request_id, RequestState.SEARCHING, "Searching [1] family.")
        trial = Trial(number=0, family="linear", parameters={"penalty": 1.0}, state=TrialState.SUCCEEDED)
        scored = {"score": 0.9, "folds": (0, 1), "fold_scores": (0.8, 1.0)}
        ledger.record_trial(request_id, trial.model_copy(update=scored))
        end(request_id)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def variant_of(request_id: str, name: str, state: str) -> Variant:
    scores = {"metric": "roc_auc", "score": 0.9, "score_low": 0.8, "score_high": 0.95}
    digests = {f"{what}_digest": "a" * 64 for what in ("recipe", "dataset", "bundle")}
    return Variant.model_validate(
        {"name": name, "version": 1, "request_id": request_id, "state": state, "task": "binary"}
        | {"recipe": "tabular-fast", "blend": {0: 1.0}, **scores, **digests}
    )


@pytest.mark.usefixtures("operator")
def test_a_request_that_is_waited_for_is_followed_to_its_end(ledger: Ledger) -> None:
    def made(request_id: str) -> None:
        ledger.reach(request_id, RequestState.EVALUATING, "Scoring.")
        ledger.record_variant(variant_of(request_id, "growth.followed", "registered"))
        ledger.reach(request_id, RequestState.REGISTERED, "Registered growth.followed/1.")

    driver = drive(ledger, "growth.followed", made)
    answer = done(factory("submit", write_order("followed.yaml", name="followed"), "--wait"))
    driver.join()
    lines = [line.split()[0] for line in answer.err.splitlines() if line[:1].isupper()]
    assert lines == ["RECEIVED", "QUEUED", "PREPARING", "SEARCHING", "EVALUATING", "REGISTERED"]
    assert "Searching [1] family." in answer.err
    for part in ("Leaderboard: 1 trial (1 succeeded)", "linear", "100%", "growth.followed/1", "Next: factory variants"):
        assert part in answer.out


@pytest.mark.usefixtures("operator")
def test_a_gates_no_is_exit_code_3(ledger: Ledger) -> None:
    def rejected(request_id: str) -> None:
        ledger.record_variant(variant_of(request_id, "growth.weak", "rejected"))
        ledger.advance(request_id, RequestState.REJECTED, "No variant passed its gate.")

    driver = drive(ledger, "growth.weak", rejected)
    answer = done(factory("submit", write_order("weak.yaml", name="weak"), "--wait", "--json"), 3)
    driver.join()
    assert answer.json["state"] == "rejected"
    assert [(v["name"], v["version"], v["state"]) for v in answer.json["variants"]] == [("growth.weak", 1, "rejected")]
    assert "aliases" not in answer.json["variant"]
    assert [(row["number"], row["weight"]) for row in answer.json["leaderboard"]] == [(0, 1.0)]


ENDS: dict[str, tuple[Callable[[Ledger, str], object], int, str]] = {
    "user": (lambda ledger, id_: ledger.fail(id_, InvalidData("One class only.", hint="Give two.")), 2, "One class"),
    "system": (lambda ledger, id_: ledger.fail(id_, TrainingFault("No trial succeeded.")), 1, "No trial succeeded."),
    "cancelled": (lambda ledger, id_: ledger.request_cancel(id_, by=OPERATOR), 2, "was cancelled by operator"),
}


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("how", ENDS)
def test_a_request_that_ends_otherwise_ends_the_command_as_in_process(how: str, ledger: Ledger) -> None:
    end, code, said = ENDS[how]
    driver = drive(ledger, f"growth.{how}", lambda request_id: end(ledger, request_id))
    answer = done(factory("submit", write_order(f"{how}.yaml", name=how), "--wait"), code)
    driver.join()
    assert said in answer.said


@pytest.mark.usefixtures("operator")
def test_why_a_request_waits_is_told_while_it_does(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.cli import _following

    class Why:
        rule, sentence, eta_s = "share", "waiting for 2 CPUs: team growth holds 4 of 4; about 6 minutes", 360.0

    told = threading.Event()
    monkeypatch.setattr(_following, "LOOK_S", 0.05)
    show = _following.Watcher._show

    def showing(watcher: Any, message: str, trial: Trial | None = None) -> None:
        show(watcher, message, trial)
        if message == Why.sentence:
            told.set()

    monkeypatch.setattr(_following.Watcher, "_show", showing)

    def held(request_id: str) -> None:
        ledger.hold({request_id: Why()})
        assert told.wait(30)
        ledger.request_cancel(request_id, by=OPERATOR)

    def act() -> None:
        while not (found := [r for r in ledger.requests(limit=50) if r.request.variant == "growth.held"]):
            time.sleep(0.02)
        held(found[0].id)

    driver = threading.Thread(target=act, daemon=True)
    driver.start()
    answer = done(factory("submit", write_order("held.yaml", name="held"), "--wait"), 2)
    driver.join()
    assert answer.said.count(Why.sentence) == 1


# --- variants and deployments ------------------------------------------------------------


@pytest.mark.usefixtures("operator")
def test_promote_deploy_and_roll_back(made: dict[str, str], ledger: Ledger) -> None:
    assert (
        "is champion now"
        in done(factory("variants", "promote", "growth.churn/2", "--why", "Smaller.", "--override")).out
    )
    assert ledger.alias("growth.churn", "champion") == 2
    assert "is champion again" in done(factory("variants", "rollback", "growth.churn", "--why", "Slow.")).out
    done(factory("deployments", "set", "growth.churn/2", "--as", "challenger", "--why", "Try it."))
    assert {d.as_: d.version for d in ledger.deployment("growth.churn")} == {"champion": 1, "challenger": 2}
    change = ledger.alias_history("growth.churn")[-1]
    assert (change.alias, change.version, change.why) == ("challenger", 2, "Try it.")
    assert change.who.startswith("token:tests/")
    there, here = both("variants", "list")
    assert there.out == here.out


# --- teams and tokens --------------------------------------------------------------------


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("local", [[], ["--local"]], ids=["over HTTP", "in-process"])
def test_a_team_its_people_and_its_tokens(local: list[str], ledger: Ledger) -> None:
    name = "pricing" if local else "fraud"
    done(factory("teams", "create", name, "--cpus", "4", "--requests", "2", *local))
    done(factory("teams", "set", name, "--title", "The team", "--requests", "3", "--clear", "cpus", *local))
    team = ledger.team(name)
    assert (team.title, team.quota.cpus, team.quota.requests) == ("The team", None, 3)
    done(factory("teams", "add", name, "sub-1", "--email", "ann@example.com", "--scope", "read", *local))
    assert [m.subject for m in ledger.members(name)] == ["sub-1"]
    assert "ann@example.com" in done(factory("teams", "show", name, *local)).out
    done(factory("teams", "remove", name, "sub-1", *local))
    assert ledger.members(name) == []

    words = ["tokens", "create", "ci", "--team", name, "--scope", "read", "--scope", "submit"]
    issued = done(factory(*words, "--expires", "12h", "--json", *local)).json
    principal = ledger.authenticate(issued["secret"])
    assert (principal.team, principal.scopes) == (name, frozenset({"read", "submit"}))  # type: ignore[union-attr]
    assert issued["token"]["expires"] is not None
    shown = done(factory("tokens", "list", "--team", name, *local)).out
    assert issued["token"]["id"] in shown
    assert issued["secret"] not in shown
    rotated = done(factory("tokens", "rotate", issued["token"]["id"], *local)).out
    new_secret = rotated.strip().splitlines()[-1]
    assert ledger.authenticate(issued["secret"]) == "The token was revoked."
    (token,) = ledger.tokens(team=name)
    assert ledger.authenticate(new_secret).token_id == token.id  # type: ignore[union-attr]
    done(factory("tokens", "revoke", token.id, *local))
    assert ledger.authenticate(new_secret) == "The token was revoked."
    done(factory("teams", "archive", name, *local))
    assert ledger.team(name).archived_at is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tokens", "create", "x", "--scope", "read"], "--team"),
        (["tokens", "create", "x", "--scope", "raed", "--team", "growth"], "Did you mean 'read'?"),
        (["tokens", "create", "x", "--scope", "read", "--team", "growth", "--expires", "soon"], "'soon' is no time"),
        (["teams", "set", "growth", "--clear", "cpu"], "Did you mean 'cpus'?"),
        (["teams", "set", "growth", "--cpus", "-1"], "greater than or equal to 0"),
    ],
)
@pytest.mark.usefixtures("operator")
def test_options_that_mean_nothing(words: list[str], said: str) -> None:
    answer = done(factory(*words), 2)
    assert said in answer.said


# --- logging in --------------------------------------------------------------------------


def test_a_login_is_tried_kept_used_and_forgotten(
    anonymous: pytest.MonkeyPatch, url: str, ledger: Ledger, settings: Settings
) -> None:
    token = secret(ledger, "read", team="growth")
    anonymous.setattr(sys, "stdin", io.StringIO(f"{token}\n"))
    answer = done(factory("login", f"{url}/"))
    assert ": team growth, read." in answer.out
    assert token not in answer.out + answer.err
    login = read_login()
    assert login is not None
    assert (login.url, login.token) == (url, token)
    # What a stored login cannot do shows that it is used.
    assert factory("tokens", "list").code == 2
    assert done(factory("tokens", "list", "--local")).code == 0
    with Client() as client:
        assert client.whoami().team == "growth"
    assert url in done(factory("logout")).out
    assert read_login() is None
    assert "Nobody was logged in" in done(factory("logout")).out


def test_a_token_that_opens_nothing_is_not_kept(anonymous: pytest.MonkeyPatch, url: str) -> None:
    anonymous.setattr(sys, "stdin", io.StringIO("mvf_wrong\n"))
    answer = done(factory("login", url), 2)
    assert "The token is not known." in answer.said
    assert "mvf_wrong" not in answer.err
    assert read_login() is None


def test_a_portal_that_is_not_there_is_our_fault_and_quickly_told(
    anonymous: pytest.MonkeyPatch, settings: Settings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    anonymous.setenv("FACTORY_URL", f"http://127.0.0.1:{port}")
    anonymous.setattr("factory.remote.calls.FIRST_PAUSE_S", 0.001)
    answer = done(factory("requests", "list", "--json"), 1)
    assert json.loads(answer.out)["error"]["code"] == "service_fault"
    assert "cannot be reached" in answer.said
    done(factory("requests", "list", "--local"))


# --- the client itself against the portal --------------------------------------------------


@pytest.mark.usefixtures("operator")
def test_the_client_does_what_no_command_does(made: dict[str, str], ledger: Ledger) -> None:
    with Client() as client:
        frame = customers(60)
        sent: list[int] = []
        kept = client.upload(frame, team="growth", name="rows.parquet", progress=lambda n, _total: sent.append(n))
        assert (kept.kind, kept.rows, kept.bytes) == ("parquet", 60, sent[-1])
        assert client.upload(frame, team="growth", name="rows.parquet").digest == kept.digest
        assert kept.digest in [one.digest for one in client.datasets(team="growth")]
        assert client.dataset(kept.digest).columns == tuple(frame.columns)
        client.share("dataset", kept.digest, team="growth", with_team="risk")
        assert [one.with_team for one in client.shares("dataset", kept.digest, team="growth")] == ["risk"]
        client.unshare("dataset", kept.digest, team="growth", with_team="risk")
        client.forget_dataset(kept.digest, team="growth")
        assert "growth.churn" in client.report("growth.churn/1")
        assert client.attempts(made["first"]) == ledger.attempts(made["first"])
        assert [row.action for row in client.audit(subject=kept.digest, most=1)] == ["dataset.forget"]
        one = client.submit(ORDER, key="once")
        assert client.submit(ORDER, key="once").id == one.id
        ledger.request_cancel(one.id, by=OPERATOR)
        assert client.wait(one.id, timeout_s=30).state is RequestState.CANCELLED
        seen = [event.sequence for event in client.events(one.id, after=1, follow=True)]
        assert seen == [event.sequence for event in client.events(one.id)][1:]


@pytest.mark.usefixtures("operator")
def test_an_upload_that_is_too_large_is_refused_while_it_is_sent(settings: Settings, url: str) -> None:
    Path("large.csv").write_bytes(b"a,b\n" + b"1,2\n" * 2_000_000)
    strict = settings.model_copy(update={"max_upload_mb": 0.5})
    with portal(strict) as address, Client(address) as client, pytest.raises(InvalidData, match="more than"):
        client.upload("large.csv", team="growth")
    assert list(settings.uploads.glob(".*")) == []


@pytest.mark.usefixtures("operator")
def test_a_wait_that_is_broken_off_leaves_the_request(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "wait", interrupted)
    answer = done(factory("submit", write_order("left.yaml", name="left"), "--wait"), 130)
    (record,) = [r for r in ledger.requests(limit=5) if r.request.name == "left"]
    assert f"the request goes on. See: factory requests show {record.id}" in answer.said
    assert record.state is RequestState.QUEUED
