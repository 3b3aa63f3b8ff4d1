"""The predictor as a process of its own: Ray, Serve, HAProxy, MLflow and the ledger, started once for all tests."""

from __future__ import annotations

import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from mlflow.deployments import get_deploy_client
from tritonclient.utils import InferenceServerException

from factory.errors import Conflict
from factory.ledger import Ledger
from factory.operate.deployments import MARK, RunningPredictor, running_predictor, start_predictor, stop_predictor
from factory.operate.ports import free_ports
from factory.settings import Settings
from factory.variants.bundle import Bundle
from tests.serve.conftest import SETUP

from .authority import Authority

pytestmark = pytest.mark.slow

ROW = {"age": 41, "income": 52_000.5, "city": "Bern", "member": True, "since": "2021-03-04"}
INVOCATIONS = "/variants/growth.churn/invocations"


@dataclass(frozen=True)
class Running:
    settings: Settings
    predictor: RunningPredictor
    client: httpx.Client
    secret: str
    authority: Authority


@pytest.fixture(scope="module")
def running(registered_home: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder / "authority.pem")
    over_tls = {"serve_tls_cert": authority.issue(folder / "server.pem"), "serve_tls_port": free_ports(1)[0]}
    settings = registered_home.model_copy(update=over_tls)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        with Ledger.open(registered_home.ledger) as ledger:
            ledger.create_team("growth", by=SETUP)
            secret = ledger.issue_token("tests", team="growth", scopes=["predict"], by=SETUP).secret
        predictor = start_predictor(settings)
        try:
            headers = {"authorization": f"Bearer {secret}"}
            with httpx.Client(base_url=predictor.url, timeout=60, trust_env=False, headers=headers) as client:
                yield Running(settings, predictor, client, secret, authority)
        finally:
            stop_predictor(settings)


def marked(predictor: RunningPredictor) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == predictor.mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def probabilities(bundle: Bundle) -> dict[str, object]:
    row: dict[str, object] = bundle.predict({k: np.array([v], dtype=object) for k, v in ROW.items()}).iloc[0].to_dict()
    return row


def test_it_predicts_over_http(running, churn):
    answer = running.client.post(INVOCATIONS, json={"dataframe_records": [ROW]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"predictions": [probabilities(churn)]}
    assert answer.headers["x-variant"] == "growth.churn/1"


def tensors_of_grpc() -> list[triton_grpc.InferInput]:
    tensors = []
    kinds = {"age": "FP64", "income": "FP64", "city": "BYTES", "member": "BOOL", "since": "BYTES"}
    for name, kind in kinds.items():
        values = np.array([ROW[name]], dtype=object if kind == "BYTES" else bool if kind == "BOOL" else np.float64)
        tensor = triton_grpc.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(values)
        tensors.append(tensor)
    return tensors


def test_grpc_reaches_the_same_variant_through_the_proxy(running: Running, churn: Bundle) -> None:
    tensors = tensors_of_grpc()
    with triton_grpc.InferenceServerClient(running.predictor.grpc) as client:
        assert client.is_server_ready()
        token = {"authorization": f"Bearer {running.secret}"}
        answer = client.infer("growth.churn", tensors, headers=token)
        assert answer.as_numpy("probability_yes")[0] == pytest.approx(probabilities(churn)["probability_yes"], abs=1e-9)
        with pytest.raises(InferenceServerException, match="No token was sent") as found:
            client.infer("growth.churn", tensors)
        assert found.value.status() == "StatusCode.UNAUTHENTICATED"


def test_http_and_grpc_are_answered_over_tls(running: Running, churn: Bundle) -> None:
    address = f"127.0.0.1:{running.settings.serve_tls_port}"
    expected = probabilities(churn)
    trust = ssl.create_default_context(cafile=running.authority.path)
    with httpx.Client(verify=trust, trust_env=False, headers=running.client.headers) as client:
        answer = client.post(f"https://{address}{INVOCATIONS}", json={"dataframe_records": [ROW]})
        assert answer.json() == {"predictions": [expected]}
    credentials = grpc.ssl_channel_credentials(running.authority.path.read_bytes())
    with triton_grpc.InferenceServerClient(address, ssl=True, creds=credentials) as client:
        token = {"authorization": f"Bearer {running.secret}"}
        answer = client.infer("growth.churn", tensors_of_grpc(), headers=token)
        assert answer.as_numpy("probability_yes")[0] == pytest.approx(expected["probability_yes"], abs=1e-9)


def test_an_answer_says_how_long_it_took(running):
    answer = running.client.post(INVOCATIONS, json={"dataframe_records": [ROW]})
    assert float(answer.headers["server-timing"].removeprefix("predict;dur=")) > 0


def test_tritonclient_works_untouched(running, churn):
    with triton.InferenceServerClient(running.predictor.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        held = {"headers": {"authorization": f"Bearer {running.secret}"}}
        assert client.is_model_ready("growth.churn", **held)
        assert client.is_model_ready("growth.churn", "1", **held)
        assert not client.is_model_ready("growth.chrun", **held)
        assert not client.is_model_ready("growth.churn")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata("growth.churn", "1", **held)["versions"] == ["1"]
        inputs = []
        for name, values, datatype in (
            ("age", np.array([41], dtype=np.int64), "INT64"),
            ("income", np.array([52_000.5]), "FP64"),
            ("city", np.array(["Bern"], dtype=object), "BYTES"),
            ("member", np.array([True]), "BOOL"),
            ("since", np.array(["2021-03-04"], dtype=object), "BYTES"),
        ):
            inputs.append(triton.InferInput(name, [1], datatype))
            inputs[-1].set_data_from_numpy(values)
        expected = probabilities(churn)
        answer = client.infer("growth.churn", inputs, **held)
        assert answer.as_numpy("prediction").tolist() == [str(expected["prediction"]).encode()]
        assert answer.as_numpy("probability_yes").tolist() == [expected["probability_yes"]]
        for tensor, values in ((inputs[0], [41]), (inputs[1], [52_000.5])):
            tensor.set_data_from_numpy(np.array(values, dtype=type(values[0])), binary_data=False)
        wanted = [triton.InferRequestedOutput("probability_no", binary_data=False)]
        plain = client.infer("growth.churn", inputs, model_version="1", outputs=wanted, **held)
        assert plain.as_numpy("probability_no").tolist() == [expected["probability_no"]]
        with pytest.raises(InferenceServerException, match=r"Did you mean 'growth\.churn'") as error:
            client.infer("growth.chrun", inputs, **held)
        assert error.value.status() == "404"
        with pytest.raises(InferenceServerException, match="No token was sent") as error:
            client.infer("growth.churn", inputs)
        assert error.value.status() == "401"


def test_mlflows_client_works_untouched(running: Running, churn: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    client = get_deploy_client(running.predictor.url)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", running.secret)
    answer = client.predict(endpoint="growth.churn", inputs={"dataframe_records": [ROW]})
    assert answer == {"predictions": [probabilities(churn)]}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "nothing")
    with pytest.raises(requests.HTTPError, match="401"):
        client.predict(endpoint="growth.churn", inputs={"dataframe_records": [ROW]})


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", INVOCATIONS, b'{"dataframe_records": [{"age": 1}]}', 422),
        ("POST", INVOCATIONS, b"{", 400),
        ("POST", INVOCATIONS, b" " * 8_000_000, 413),
        ("POST", "/variants/growth.other/invocations", b"{}", 404),
        ("GET", "/nothing", b"", 404),
        ("PUT", INVOCATIONS, b"", 405),
    ],
)
def test_errors_pass_the_proxy_in_the_one_shape(running, method, path, content, status):
    answer = running.client.request(method, path, content=content)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "hint", "details"}
    assert running.client.get("/v2/health/ready").json() == {"ready": True}


def test_a_running_predictor_is_found_and_not_started_twice(running):
    assert running_predictor(running.settings) == running.predictor
    assert start_predictor(running.settings) == running.predictor
    assert start_predictor(running.settings, port=running.predictor.port) == running.predictor
    with pytest.raises(Conflict, match="runs on port"):
        start_predictor(running.settings, port=running.predictor.port % 60_000 + 1)


def test_it_listens_on_the_loopback_address_and_its_sockets_are_private(running):
    proxies = [process for process in marked(running.predictor) if process.name() == "haproxy"]
    listening = [c.laddr for proxy in proxies for c in proxy.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if address.port == running.predictor.port} == {"127.0.0.1"}
    config = next(part for proxy in proxies for part in proxy.cmdline() if part.endswith("haproxy.cfg"))
    folder = Path(config).parents[1]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_stop_leaves_nothing_behind(running):
    processes = marked(running.predictor)
    assert {"raylet", "gcs_server", "haproxy"} <= {process.name() for process in processes}
    started = time.monotonic()
    assert stop_predictor(running.settings)
    assert time.monotonic() - started < 20
    assert not marked(running.predictor)
    assert not any(process.is_running() for process in processes)
    assert running_predictor(running.settings) is None
    assert not stop_predictor(running.settings)
    with pytest.raises(httpx.ConnectError):
        running.client.get("/v2/health/live")
