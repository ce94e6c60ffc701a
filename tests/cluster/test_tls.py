"""A cluster can be used over TLS: the certificate of every node is checked."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tallystream.client.connect import connect
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.service.server import serving
from tests.http_service import settings_for
from tests.integration.client.test_tls import certificates  # noqa: F401  # a fixture
from tests.local_cluster import LocalCluster, local_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def secured(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:  # noqa: F811
    """Provide a cluster of three primaries that use TLS between them, and for clients with a certificate."""
    folder = tmp_path_factory.mktemp("secured")
    with local_cluster("cluster-redis", folder, replicas=0, certificates=certificates) as cluster:
        yield cluster


def url_of(cluster: LocalCluster, certificates: Path, ca: str = "ca") -> str:  # noqa: F811
    """Return a TLS URL of the cluster, with one of its nodes."""
    own = f"&ssl_certfile={certificates}/client.crt&ssl_keyfile={certificates}/client.key"
    return f"rediss+cluster://127.0.0.1:{cluster.nodes[0].tls_port}?ssl_ca_certs={certificates}/{ca}.crt{own}"


def test_everything_works_by_tls(secured: LocalCluster, certificates: Path) -> None:  # noqa: F811
    """A producer, a worker, totals and the read service use TLS on every node; the URL names one node."""
    url = url_of(secured, certificates)
    with counting(settings_for(url), logs.configure(quiet=True)), serving(settings_for(url)) as service:
        with Producer(url) as producer:
            for number in range(40):
                producer.emit("view", f"article:{number}", 3)
            producer.flush(20, wait="counted")
        with Totals(url) as totals:
            found = totals.get_many((f"article:{number}", "view") for number in range(40)).values
            assert set(found.values()) == {3}
            nodes = {secured.owner(keys.stream).port for keys in totals.deployment.layout.keys}
        assert len(nodes) == 3
        assert httpx.get(f"{service}/v1/counters/article:1/view").json()["value"] == 3


def test_a_certificate_of_someone_else_is_refused(secured: LocalCluster, certificates: Path) -> None:  # noqa: F811
    """A connection to a node is refused if another authority signed its certificate."""
    with (
        closing(connect(url_of(secured, certificates, "other"))) as client,
        pytest.raises(RedisConnectionError, match="certificate verify failed"),
    ):
        client.get("anything")
