"""Replaces the server fixtures by a cluster, so that the tests of a single server also run on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.local_cluster import KINDS, ClusterServer, LocalCluster, local_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", params=KINDS)
def server_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    """Provide a cluster of three primaries and three replicas, once per kind of server, for the whole run."""
    with local_cluster(request.param, tmp_path_factory.mktemp(request.param)) as cluster:
        server = ClusterServer(request.param, cluster)
        yield server
        server.close_clients()


@pytest.fixture
def cluster(server: ClusterServer) -> LocalCluster:
    """Provide the nodes of the cluster, which is empty."""
    return server.cluster
