"""Connecting to a cluster that is not there, and Ray that is not installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from larql_duck import cluster as clusters
from larql_duck.cluster import cluster_at
from larql_duck.errors import LarqlError


def test_without_an_address_there_is_no_cluster() -> None:
    with cluster_at(None) as cluster:
        assert cluster is None


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LarqlError, match=r"pip install 'larql-duck\[ray\]'"), cluster_at("auto"):
        pass


def test_where_nobody_answers_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_ray", lambda: SimpleNamespace(is_initialized=lambda: False))
    said = r"no Ray cluster answers at 127\.0\.0\.1:1 \(.*refused\); .*ray start --head"
    with pytest.raises(LarqlError, match=said), cluster_at("127.0.0.1:1"):
        pass
