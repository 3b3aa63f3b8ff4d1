"""Commands over HTTP against a running portal: what they print is what they print on the same ledger in-process."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.errors import InvalidData
from factory.ledger import Ledger
from factory.remote import Client
from factory.settings import Settings
from factory.spec import RequestState
from tests.serving import portal

from .conftest import customers, factory
from .orders import ORDER, both, done, write_order
from .remote import OPERATOR

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
    raised = done(factory("requests", "priority", record["id"], "high", "--why", "The board meets.", "--json")).json
    assert raised["priority"] == ledger.request(record["id"]).priority == "high"
    assert "waits with priority low" in done(factory("requests", "priority", record["id"], "low", "--local")).out
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
    as_canary = ["--as", "canary", "--percent", "12.5", "--why", "Look."]
    told = done(factory("deployments", "set", "growth.churn/2", *as_canary))
    assert "growth.churn/2 is served as canary to 12.5 % of the calls." in told.out
    canary = next(one for one in ledger.deployment("growth.churn") if one.as_ == "canary")
    assert (canary.version, canary.percent) == (2, 12.5)
    assert "is served as shadow" in done(factory("deployments", "set", "growth.churn/2", "--as", "shadow")).out
    for words, why in (
        (["--as", "canary"], "A canary needs"),
        (["--as", "shadow", "--percent", "5"], "not with --as shadow"),
        (["--as", "canary", "--percent", "100"], "100 is not above 0 and below 100"),
    ):
        wrong = factory("deployments", "set", "growth.churn/2", *words)
        assert (wrong.code, "--percent" in wrong.said, why in wrong.said) == (2, True, True), wrong.said
    done(factory("deployments", "set", "growth.churn/2", "--as", "none", "--why", "Enough."))
    assert {d.as_: d.version for d in ledger.deployment("growth.churn")} == {"champion": 1}
    assert ledger.alias("growth.churn", "challenger") is None
    assert [one.why for one in ledger.deployment_history("growth.churn", most=1)] == ["Enough."]
    there, here = both("variants", "list")
    assert there.out == here.out


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
