"""A job has what its request needs and nothing else: no text of a request gets into its command or its environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from factory.errors import InvalidRequest
from factory.parsing import parse
from factory.settings import Settings
from factory.spec import Principal, VariantRequest
from factory.testing.controlled import SimulatedFactory

from .conftest import ANN, Plant

HOSTILE = ["$(touch owned)", "`touch owned`", "; touch owned", "a\nb", "--help", "${IFS}", "'\"", "../../owned"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_request_is_in_its_job(text: str, make: Callable[..., Plant]) -> None:
    plant = make()
    request = VariantRequest.model_validate(
        {
            "team": "growth",
            "name": "churn",
            "recipe": "tabular-auto",
            "dataset": {"path": f"customers{text}.csv", "target": text, "types": {text: "categorical"}},
            "segments": {"by": text},
            "validation": {"kind": "group", "column": text},
        }
    )
    plant.ledger.create_request(request, request_id="r-1", by=ANN, queued="It waits.")
    plant.controller().reconcile()
    spec = plant.jobs.specs["r-1-1"]
    assert text not in json.dumps(asdict(spec), default=str, ensure_ascii=False)
    assert spec.entrypoint[1:] == ("run", "r-1")
    assert Path(spec.folder or "").is_relative_to(plant.settings.root)


@pytest.mark.parametrize("text", [*HOSTILE, "Growth", "a b", "a/b", "", "é"])
def test_names_that_could_be_more_than_names_are_refused(text: str) -> None:
    for field in ("team", "name", "recipe"):
        order = {"team": "growth", "name": "churn", "recipe": "tabular-auto"} | {field: text}
        with pytest.raises(InvalidRequest, match=field):
            parse(VariantRequest, order | {"dataset": {"path": "a.csv", "target": "y"}}, what="request")


def test_no_job_gets_the_portals_secret_or_a_token_for_more_than_its_request(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path, oidc_client_secret="0idc-s3cr3t", session_hours=1)
    assert "0idc-s3cr3t" not in repr(settings) + str(settings.model_dump())
    with SimulatedFactory(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path) as plant:
        plant.ledger.create_team("growth", by=ANN)
        secret = plant.ledger.issue_token("ci", team="growth", scopes=["admin"], by=ANN).secret
        order = {
            "team": "growth",
            "name": "churn",
            "recipe": "tabular-auto",
            "dataset": {"path": "a.csv", "target": "y"},
        }
        plant.ledger.create_request(VariantRequest.model_validate(order), request_id="r-1", by=ANN, queued="It waits.")
        plant.controller().reconcile()
        spec = plant.jobs.specs["r-1-1"]
        principal = plant.ledger.authenticate(spec.env["FACTORY_TOKEN"])
        assert isinstance(principal, Principal)
        assert (principal.request_id, principal.scopes) == ("r-1", {"read"})
    secrets = {name for name in spec.env if "TOKEN" in name or "SECRET" in name or "OIDC" in name}
    assert secrets == {"FACTORY_TOKEN"}
    assert secret not in str(spec.env)
