"""While a node is frozen, each read over HTTP is answered in a bounded time, in part or with an error."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import structlog

from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import Layout
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.http_service import http_service
from tests.local_cluster import KINDS, local_cluster

if TYPE_CHECKING:
    from pathlib import Path

RULES = Rules({"view": Metric("", ("hour",), top=10, ids=None), "hot": Metric("", spread=True, ids=None)})
SUBJECTS = [f"s{number}" for number in range(40)]
BOUND = 4.0
"""Seconds in which each read must be answered: less than the 5 seconds after which other connections count as dead."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["another node", "node of meta"])
def test_reads_do_not_wait_for_a_frozen_node(kind, which, tmp_path: Path):
    """Each read is answered in 4 seconds, also many at once, and also when the description is read again."""
    with ExitStack() as stack:
        cluster = stack.enter_context(local_cluster(kind, tmp_path, replicas=0))
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        layout = Layout()
        settings = Settings(redis=RedisSettings(url=cluster.url), rules=RULES)
        with counting(settings, structlog.get_logger()), Producer(cluster.url) as producer:
            for subject in SUBJECTS:
                producer.emit("view", subject)
                producer.emit("hot", "all")
            producer.flush(20, wait="counted")
        http = stack.enter_context(http_service(cluster.url))
        meta = cluster.owner(layout.root)
        owners = {subject: cluster.owner(layout.keys_of(subject).stream) for subject in SUBJECTS}
        gone = meta if which == "node of meta" else next(each for each in owners.values() if each is not meta)
        lost = next(subject for subject, owner in owners.items() if owner is gone)
        kept = next(subject for subject, owner in owners.items() if owner is not gone)
        wanted = {
            f"/v1/counters/{kept}/view": 200,
            f"/v1/counters/{lost}/view": 503,
            f"/v1/counters?subject={kept}&subject={lost}&metric=view": 200,
            "/v1/counters/all/hot": 200,
            "/v1/top/view": 200,
            "/v1/overview": 200,
            "/readyz": 200,
            "/metrics": 200,
        }
        for path in wanted:
            assert http.get(path).status_code == 200
        gone.freeze()
        stack.callback(gone.thaw)
        threads = stack.enter_context(ThreadPoolExecutor(len(wanted)))

        def read(path: str) -> tuple[int, float]:
            began = time.monotonic()
            return http.get(path, timeout=30).status_code, time.monotonic() - began

        answers = {}
        for turn in range(3):
            answers |= {(path, turn): found for path, found in zip(wanted, threads.map(read, wanted), strict=True)}
        answers |= {(path, 3): read(path) for path in wanted}
        assert {key: status for key, (status, _) in answers.items()} == {
            (path, turn): status for turn in range(4) for path, status in wanted.items()
        }
        warnings = http.get("/readyz", timeout=30).json()["warnings"]
        assert any("its node" in each for each in warnings)
        slow = {key: round(seconds, 1) for key, (_, seconds) in answers.items() if seconds > BOUND}
        assert not slow
