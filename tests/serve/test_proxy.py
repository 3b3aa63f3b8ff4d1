"""The proxy's folder and environment."""

from __future__ import annotations

import stat
from pathlib import Path

from serve.proxy import LONGEST_PATH, proxy_environment, proxy_folder


def test_the_proxys_folder_is_private_short_and_gone_afterwards(tmp_path):
    deep = tmp_path / ("x" * LONGEST_PATH)
    deep.mkdir()
    with proxy_folder(deep) as folder:
        assert len(str(folder)) <= LONGEST_PATH
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        variables = proxy_environment(folder)
        assert variables["RAY_SERVE_HAPROXY_STATS_PORT"] != variables["RAY_SERVE_HAPROXY_METRICS_PORT"]
        assert Path(variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent == folder
    assert not folder.exists()


def test_a_short_home_holds_the_folder_itself(monkeypatch, tmp_path):
    monkeypatch.setattr("serve.proxy.LONGEST_PATH", 1000)
    with proxy_folder(tmp_path) as folder:
        assert folder == tmp_path / "proxy"
        (folder / "left over").touch()
    assert not folder.exists()
