"""The measurement of the controller measures what it says: a full cluster, on which jobs end and others start."""

from __future__ import annotations

from bench import controller_scale


def test_the_measured_controller_fills_the_cluster_and_keeps_it_full() -> None:
    with controller_scale.ledger_url("SQLite") as url:
        assert url is not None
        row = controller_scale.measured(url, 300, seed=0)
    assert row["n_queued"] > 0
    assert row["n_running"] > 100
    assert row["n_started"] > 5
    assert row.keys() >= controller_scale.COLUMNS.keys() - {"database", "limit_ms", "met"}
