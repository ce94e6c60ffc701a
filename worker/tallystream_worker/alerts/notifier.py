"""Delivers notifications from the outboxes (one stream in each partition), at least once.

Each worker posts its notifications to a URL in the order in which it has read them. Those that different workers post
may arrive out of order. A notification whose delivery still fails after a day is abandoned.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import RedisError, ResponseError

from tallystream.client.backoff import Backoff
from tallystream.client.replies import is_group_missing, is_group_there, is_unreachable
from tallystream.errors import KeyLost
from tallystream_worker.alerts import webhook
from tallystream_worker.process.in_reach import for_each_in_reach
from tallystream_worker.process.state_log import StateLog
from tallystream_worker.process.unless_lost import write_unless_lost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.settings.alerts import Hook

GROUP: Final = "notify"
"""The name of the consumer group of the outboxes."""

CLAIM_IDLE: Final = 120.0
"""Idle time in seconds after which a worker claims a notification that another worker has read and not delivered.

A running worker resets the idle time of its undelivered notifications about every 30 seconds, but not while it posts.
During a pass that posts for longer than this, another worker may claim them: then both may deliver them.
"""

KEPT: Final = 86_400.0
"""The age in seconds from which a notification is abandoned and logged if its delivery fails."""

FIRST_PAUSE: Final = 1.0
"""Most seconds to wait after the first failed delivery to a URL."""

LONGEST_PAUSE: Final = 60.0
"""The longest back-off between failed deliveries to a URL, in seconds."""

_SAY_SO: Final = 30.0
_COUNT: Final = 100


class _Receiver:
    """The undelivered notifications for one URL, in order, and the monotonic second before which none is posted.

    The URL `""` has the notifications of all alerts without a webhook.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self.queue: deque[Notification] = deque()
        self.due = 0.0
        self.backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        self.state = StateLog(log, failed="notification.failed", works="notification.recovered")


@dataclass(frozen=True)
class Notification:
    """A notification: one change of the state of an alert, for one subject.

    Attributes:
        keys: The keys of the partition whose outbox has the notification.
        entry: The notification's stream ID in the outbox.
        fields: The fields in the outbox: `alert`, `state`, `metric`, `subject`, `value`, `bucket`, `fired`. `bucket` is
            the label, `""` without a window. `fired` is the stream ID of the notification that the alert began to fire,
            `""` in that notification itself.
    """

    keys: PartitionKeys
    entry: str
    fields: Mapping[str, str]

    @property
    def id(self) -> str:
        """The notification's id, `<hash tag of the partition>-<stream ID>`, the same in every attempt to deliver."""
        return f"{self.keys.prefix.split('{')[1].split('}')[0]}-{self.entry}"

    @property
    def at(self) -> float:
        """The time of the change, in seconds since 1970."""
        return int(self.entry.partition("-")[0]) / 1000

    def body(self) -> bytes:
        """Return the JSON body that is posted to the webhook: an object with `type`, `timestamp` and `data`."""
        fields = self.fields
        data: dict[str, Any] = {
            "id": self.id,
            "alert": fields["alert"],
            "state": fields["state"],
            "metric": fields["metric"],
            "subject": fields["subject"],
            "value": float(fields["value"]),
            "bucket": fields["bucket"] or None,
            # When the alert began to fire: the same in the notifications of its firing and of its end.
            "since": _time(int(fields["fired"].partition("-")[0]) / 1000 if fields["fired"] else self.at),
        }
        return msgspec.json.encode({"type": f"alert.{fields['state']}", "timestamp": _time(self.at), "data": data})


class Notifier:
    """Delivers the notifications in the outboxes of one topic; several workers share them as one consumer group.

    Each call of `run_once` is one pass.

    Args:
        client: The connection to the outboxes.
        layout: The keys of the outboxes.
        consumer: The name of the worker in the consumer group.
        hooks: The webhook of each alert, by name. Notifications of an alert without a webhook are only logged, and
            removed from the outbox, so all workers need the same webhooks.
        log: Logs each notification when it is read, each one that is abandoned, and when the deliveries to a URL begin
            to fail and work again.
        delivered: Called after each attempt, with the name of the alert and `delivered`, `failed` or `abandoned`. A
            notification without a webhook counts as delivered.
    """

    def __init__(
        self,
        client: redis.Redis,
        layout: Layout,
        consumer: str,
        hooks: Mapping[str, Hook],
        log: FilteringBoundLogger,
        delivered: Callable[[str, str], None] | None = None,
    ) -> None:
        self._client = client
        self._layout = layout
        self._consumer = consumer
        self._hooks = hooks
        self._log = log
        self._delivered = delivered or (lambda _alert, _outcome: None)
        self._receivers: dict[str, _Receiver] = {}
        self._held: set[tuple[str, str]] = set()
        self._begun: set[str] = set()  # outboxes whose group this object has created or found
        self._delivered_only: list[Notification] = []  # delivered, but still in their outbox
        self._say_so_at = 0.0

    def run_once(self) -> int:
        """Read new notifications, and deliver those whose URL has no back-off at present.

        If the node of a partition does not answer, the notifications of the others are delivered all the same. Before
        this object first reads a partition, it checks its sentinels (see `storage.sentinels.lost_key`); while one is
        lost, the notifications of the partition are not read.

        Blocks while it posts. A URL that does not reply takes 10 seconds or more (see `webhook.TIMEOUT`), and as long
        again for each notification older than a day, which is abandoned. While this object has 1,000 undelivered
        notifications or more, whatever their URL, it reads no new ones. About every 30 seconds, it also takes over
        those that another worker has read and left undelivered (see `CLAIM_IDLE`). The first call that reaches a
        partition creates the consumer group of its outbox if it is missing, and also reads notifications (at most 100)
        that an earlier process of the same consumer name left undelivered. A call that finds a group lost raises the
        error; the next call creates the group again.

        Returns:
            How many notifications were delivered or abandoned; those without a webhook are included. They are removed
            from the outbox, or, if its node does not answer, by a later call.

        Raises:
            NodeUnreachable: the node of a partition does not answer; raised after everything else is done.
            redis.RedisError: the server rejects a command, or does not reply and is no cluster; raised after the
                delivery of the notifications that were read.

        A failed delivery raises no error.
        """
        says_so = time.monotonic() >= self._say_so_at
        if says_so:
            self._say_so_at = time.monotonic() + _SAY_SO * random.uniform(0.75, 1.25)  # noqa: S311
        try:
            for_each_in_reach(self._client, self._layout, lambda _, keys: self._collect(keys, says_so=says_so))
        finally:
            settled = sum(map(self._deliver, self._receivers.values()))
        return settled

    def _collect(self, keys: PartitionKeys, *, says_so: bool) -> None:
        """Read new notifications of a partition; first remove those that an earlier pass delivered and left in it.

        If this object has not read the partition before, first create the group if it is missing, and read what this
        consumer name left undelivered; if the partition has lost a sentinel, read nothing. In this case, or if
        `says_so`, also claim the notifications of this object again, and those that other workers left undelivered.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command; also if the group was lost.
        """
        try:
            self._settle_delivered(keys)
            if is_new := keys.outbox not in self._begun:
                self._ensure_group(keys)
                self._take(keys, self._read(keys, "0"))
            if says_so or is_new:
                self._say_that_we_hold(keys)
                _, claimed, *_ = self._client.execute_command(
                    "XAUTOCLAIM", keys.outbox, GROUP, self._consumer, int(CLAIM_IDLE * 1000), "0-0", "COUNT", _COUNT
                )
                self._take(keys, claimed)
            if len(self._held) < _COUNT * 10:
                self._take(keys, self._read(keys, ">"))
            self._begun.add(keys.outbox)
        except KeyLost:
            self._begun.discard(keys.outbox)  # the worker that counts the partition reports it
        except ResponseError as error:
            if is_group_missing(error):
                self._begun.discard(keys.outbox)  # the server was emptied, and perhaps restored
            raise

    def _ensure_group(self, keys: PartitionKeys) -> None:
        try:
            write_unless_lost(self._client, keys, "XGROUP CREATE", keys.outbox, GROUP, "0", "MKSTREAM")
        except ResponseError as error:
            if not is_group_there(error):
                raise

    def _read(self, keys: PartitionKeys, start: str) -> list[Any]:
        reply = self._client.execute_command(
            "XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", _COUNT, "STREAMS", keys.outbox, start
        )
        found: list[Any] = reply.get(keys.outbox.encode(), []) if reply else []
        return found

    def _take(self, keys: PartitionKeys, entries: list[Any]) -> None:
        for id_, fields in entries:
            place = (keys.outbox, id_.decode())
            if not fields or place in self._held:
                continue
            notice = Notification(keys, place[1], {name.decode(): value.decode() for name, value in fields.items()})
            self._held.add(place)
            hook = self._hooks.get(notice.fields["alert"])
            self._log.warning(
                "alert.changed", alert=notice.fields["alert"], state=notice.fields["state"],
                metric=notice.fields["metric"], subject=notice.fields["subject"],
                value=notice.fields["value"], id=notice.id,
            )  # fmt: skip
            self._receivers.setdefault(hook.url if hook else "", _Receiver(self._log)).queue.append(notice)

    def _say_that_we_hold(self, keys: PartitionKeys) -> None:
        """Claim the undelivered notifications of a partition for this worker again, which resets their idle time."""
        ours = [entry for outbox, entry in self._held if outbox == keys.outbox]
        if ours:
            self._client.execute_command("XCLAIM", keys.outbox, GROUP, self._consumer, 0, *ours, "JUSTID")

    def _deliver(self, receiver: _Receiver) -> int:
        """Deliver a receiver's notifications in order; return how many were delivered or abandoned.

        Do nothing during the receiver's back-off. If a delivery fails, begin a back-off and return; but if the
        notification is older than a day, abandon it and try the next one. Notifications without a webhook count as
        delivered. Delivered and abandoned notifications are removed from the outbox. If its node does not answer, a
        later pass removes them; if the process ends before, they are posted again.

        Raises:
            redis.RedisError: the server rejects the removal of a notification; it stays in the queue, and will be
                posted again.
        """
        settled = 0
        while receiver.queue and time.monotonic() >= receiver.due:
            notice = receiver.queue[0]
            alert = notice.fields["alert"]
            hook = self._hooks.get(alert)
            problem = webhook.send(hook, notice.id, notice.body()) if hook else None
            if problem is None:
                receiver.state.works()
                self._delivered(alert, "delivered")
            elif time.time() - notice.at < KEPT:
                receiver.state.failed(problem, alert=alert, id=notice.id)
                self._delivered(alert, "failed")
                receiver.due = time.monotonic() + receiver.backoff.next()
                break
            else:
                self._log.error("notification.abandoned", alert=alert, problem=problem, id=notice.id)
                self._delivered(alert, "abandoned")
            self._settle(notice)
            receiver.queue.popleft()
            receiver.backoff.reset()
            settled += 1
        return settled

    def _settle(self, notice: Notification) -> None:
        """Remove a delivered or abandoned notification from its outbox; if its node does not answer, do it later.

        Raises:
            redis.RedisError: the server rejects the command.
        """
        try:
            self._remove(notice)
        except RedisError as error:
            if not is_unreachable(error):
                raise
            self._delivered_only.append(notice)  # it stays in `_held`, so it is not read again

    def _settle_delivered(self, keys: PartitionKeys) -> None:
        for notice in [each for each in self._delivered_only if each.keys.outbox == keys.outbox]:
            self._remove(notice)
            self._delivered_only.remove(notice)

    def _remove(self, notice: Notification) -> None:
        # After a crash before this line, the notification is delivered again, with the same id.
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.xack(notice.keys.outbox, GROUP, notice.entry)
            pipeline.xdel(notice.keys.outbox, notice.entry)
            pipeline.execute()
        self._held.discard((notice.keys.outbox, notice.entry))


def _time(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
