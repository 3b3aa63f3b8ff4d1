"""The unit file, the image and the composition name what there is; systemd's own check runs where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from factory import plugins
from factory.settings import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SETTINGS = {f"FACTORY_{name.upper()}" for name in Settings.model_fields}


def unit() -> RawConfigParser:
    """Return the unit file; of keys that come more than once, the last."""
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "factory.service")
    return parser


def composition() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def check_command(words: list[str]) -> None:
    """Check that a command and its options are there."""
    command = get_command(plugins.load("commands", words[0]))  # type: ignore[arg-type]
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(words[1:]) <= known


def test_systemd_starts_the_stack_in_the_foreground_and_waits_for_it() -> None:
    service = unit()["Service"]
    program, *words = service["ExecStart"].split()
    assert program == "/opt/model-variant-factory/.venv/bin/factory"
    check_command(words)
    assert words == ["up", "--foreground"]
    assert service["Type"] == "notify"
    variables = dict(word.split("=") for word in service["Environment"].split())
    assert set(variables) - {"HOME"} <= SETTINGS
    assert set(variables.values()) == {f"/var/lib/{service['StateDirectory']}"}
    assert service["OOMPolicy"] == "continue"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    program = shutil.which("true") or sys.executable
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={program}", (DEPLOY / "factory.service").read_text(), flags=re.M)
    (tmp_path / "factory.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "factory.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "factory.service" in line] == []


def test_the_composition_sets_what_there_is_and_publishes_the_portal_only() -> None:
    found = composition()
    factory, ledger = found["services"]["factory"], found["services"]["ledger"]
    assert set(factory["environment"]) <= SETTINGS
    assert factory["ports"] == [f"127.0.0.1:{(port := Settings.model_fields['portal_port'].default)}:{port}"]
    assert "ports" not in ledger
    assert factory["init"] is True
    assert factory["depends_on"]["ledger"]["condition"] == "service_healthy"
    mounted = {volume.partition(":")[0] for service in found["services"].values() for volume in service["volumes"]}
    assert mounted == set(found["volumes"])
    assert factory["environment"]["FACTORY_HOME"] in {v.partition(":")[2] for v in factory["volumes"]}
    url, password = factory["environment"]["FACTORY_LEDGER_URL"], ledger["environment"]["POSTGRES_PASSWORD"]
    assert re.findall(r"\$\{(\w+)", url) == re.findall(r"\$\{(\w+)", password) == ["FACTORY_LEDGER_PASSWORD"]
    assert ":?" in password, "without a password nothing is started"


def test_the_image_copies_what_there_is_and_runs_the_stack() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    context = DEPLOY / composition()["services"]["factory"]["build"]["context"]
    copied = [word for line in re.findall(r"^COPY (.+)$", text, flags=re.M) for word in line.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "factory", "serve", "recipes", "feature_repo"} <= set(copied)
    assert [name for name in copied if not (context / name).exists()] == []
    assert text.index("\nUSER factory") < text.index("\nENTRYPOINT")
    assert 'ENTRYPOINT ["factory"]\nCMD ["up", "--foreground"]' in text
    assert f"http://127.0.0.1:{Settings.model_fields['portal_port'].default}/readyz" in text
