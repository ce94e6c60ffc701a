"""Watches the clocks of the servers: logs and publishes steps, and logs stream IDs that are ahead of the clock.

Stream IDs never go back, so after a server's clock was ahead, the IDs stay ahead until the clock reaches them. The
scripts then state the clock's time in each entry, so lateness is still measured exactly. Three things are affected, and
so are shown: entries that other clients append with XADD, which have only their ID; entries of the time during which
the clock was wrong; and, if it was ahead for over an hour, keys that were removed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.reading.clocks import ClockStep, write_step
from tallystream.storage.deployment_hash import CLOCK_STEP
from tallystream.storage.scripts import Script
from tallystream_worker.maintenance.partitions import INTERVAL, for_each_partition, maintenance_service
from tallystream_worker.process.description import note
from tallystream_worker.process.state_log import StreamStates

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.process.periodic import PeriodicService
    from tallystream_worker.settings.settings import Settings

TOLERANCE: Final = 1.0
"""Seconds by which a clock may differ from its expected time before this counts as a step.

An ID that is more than this ahead of the clock is logged."""

_RATE: Final = 0.01
"""By how much two clocks may differ in speed. A clock that is adjusted slowly is not a clock that steps."""

_CLOCK: Final = Script("tallystream_worker.maintenance", "clock")


def seconds_since_boot() -> float:
    """Return the seconds of a clock that is never set, and that also runs during sleep if the system has such a clock.

    They are not the time since 1970: only differences mean something.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class SteppingClock:
    """Finds the steps of one server's clock by comparing it with a monotonic clock of this process.

    Call `step` with each reading of the clock; it returns the step since the reading before.
    """

    def __init__(self) -> None:
        self._offset: float | None = None
        self._read = 0.0

    def step(self, server: float, before: float, after: float) -> float:
        """Return by how many seconds the server's clock has stepped, negative if it was set back; 0 at the first call.

        Also 0 if it is at most 1 second, plus the time of reading, off the expected time. The next call still has this
        difference, reduced by up to 1 % of the time between the calls; so small steps soon after one another add up.

        Args:
            server: The time by the server's clock, in seconds since 1970.
            before: The monotonic second before that clock was read; all calls must take it from the same clock.
            after: The monotonic second after it was read.
        """
        offset, elapsed = server - (before + after) / 2, after - self._read
        self._read = after
        if self._offset is None:
            self._offset = offset
            return 0.0
        found = offset - self._offset
        if abs(found) > TOLERANCE + (after - before):
            self._offset = offset
            return found
        leeway = _RATE * elapsed
        self._offset += max(-leeway, min(leeway, found))
        return 0.0


class ClockWatch:
    """Finds steps of the servers' clocks, and streams whose IDs are ahead of the clock.

    `run_once` makes one pass, which logs both; the service calls it about every 2 seconds. Only the largest step of a
    pass is logged; it is also written into the field `clock-step` of the topic's hash. A failover to a server with
    another clock looks like a step.

    Args:
        client: The connection to the partitions.
        deployment: The deployment that the worker started with.
        log: The logger of `clock.stepped`, `stream.ids_ahead` and `stream.ids_in_time`.
        monotonic: Returns the seconds of a clock that is never set.
    """

    def __init__(
        self,
        client: redis.Redis,
        deployment: Deployment,
        log: FilteringBoundLogger,
        monotonic: Callable[[], float] = seconds_since_boot,
    ) -> None:
        self._client = client
        self._deployment = deployment
        self._log = log
        self._monotonic = monotonic
        self._clocks: dict[str, SteppingClock] = {}
        self._found = deployment
        self._steps: list[ClockStep] = []
        self._ahead = StreamStates(log, "stream.ids_ahead", "stream.ids_in_time")

    def run_once(self) -> None:
        """Read the clock of each partition's server; log and publish the largest step, and log IDs that are ahead.

        Without a step, nothing is published; the first pass finds none. IDs that are more than 1 second ahead are
        logged when this begins and when it ends. Do nothing if the data was deleted or replaced, or a restore has not
        finished.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command; see `for_each_partition`.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost, DamagedValue: the description of the deployment is lost in part, or damaged.
            DeploymentChanged: the data was deleted or replaced meanwhile; a step was logged, not published.

        Before an error is raised, the largest step that was found is logged, and published if possible.
        """
        self._steps = []
        try:
            for_each_partition(self._client, self._deployment, self._partition)
        finally:
            if self._steps:
                self._publish(max(self._steps, key=lambda step: abs(step.seconds)))

    def _partition(self, _number: int, keys: PartitionKeys, found: Deployment) -> None:
        self._found = found
        before = self._monotonic()
        _, server, newest = _CLOCK(self._client, [keys.stream], [])
        now = int(server) / 1000
        step = self._clocks.setdefault(keys.stream, SteppingClock()).step(now, before, self._monotonic())
        if step:
            self._steps.append(ClockStep(now, step))
        ahead, state = int(newest) / 1000 - now, self._ahead[keys.stream]
        if ahead > TOLERANCE:
            state.failed("new stream IDs are later than the server's clock, which was set back", seconds=round(ahead))
        else:
            state.works()

    def _publish(self, step: ClockStep) -> None:
        self._log.warning(
            "clock.stepped", seconds=round(step.seconds, 3), partitions=len(self._steps),
            problem="events that were appended while the clock was wrong may count as late",
        )  # fmt: skip
        note(self._client, self._found, {CLOCK_STEP: write_step(step)})


def clock_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service, not started, that watches the servers' clocks about every 2 seconds; see `ClockWatch`.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """
    client = connect(settings.redis.url)
    return maintenance_service("clock", INTERVAL, ClockWatch(client, deployment, log).run_once, client, log)
