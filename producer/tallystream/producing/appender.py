"""Appends sealed entries to the streams in order, each exactly once, however many attempts that takes.

An entry's bytes, partition and sequence are fixed before it is first sent. If a reply is missing, the same call is made
again from the first unconfirmed entry on, and the sequence gate in `append.lua` lets each entry through once.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError, ResponseError

from tallystream.client.durability import DurabilityCheck
from tallystream.errors import KeyLost, Unconfirmed
from tallystream.producing.gate import START, parse_record, queue_read
from tallystream.producing.partition_queue import PartitionQueue, SealedEntry
from tallystream.producing.rollback_watch import RollbackWatch
from tallystream.storage.scripts import Script
from tallystream.storage.sentinels import has_lost_sequences, is_new, lost_key
from tallystream.wire.codec import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout

_APPEND: Final = Script("tallystream.storage", "append")

_BURST: Final = 32
"""Most entries per partition in one pipeline: bounds what is sent again after a broken connection."""

KEEP_BYTES: Final = 8 * 2**20
"""About how many bytes of confirmed entries are kept in all partitions together, in case a server loses them."""

_PAUSE: Final = 0.1
"""Seconds until the next attempt at a stream that is full, held by a reset, or closed."""

_PAUSE_DAMAGED: Final = 1.0
"""Seconds until the next attempt at a partition that has lost a key."""


class Appender:
    """Sends the queued entries of every partition, numbered for the sequence gate, until each is confirmed or given up.

    An entry is given up, and so not sent again, if the server removed the record that could show whether it is in the
    stream. `push` adds an entry, and each call of `send` sends some. If another topic becomes live, call `lasts`,
    `settle` and `move`.

    Not safe across threads: only the sender thread uses it.

    Args:
        client: Client that never sends a command twice.
        layout: Layout of the live topic.
        epoch: Epoch (the random ID that a deployment gets when it is created) of the deployment that the entries belong
            to; `None` to ignore epochs.
        durability: Durability that an entry needs to count as confirmed; `None`: the memory of the server is enough.
        queues: One queue for each partition; `None` for new, empty queues.
        on_rename: Called before anything is sent under a queue's new name; see `RollbackWatch` for its arguments.

    Attributes:
        layout: Layout of the topic that is appended to.
        queues: The queue of each partition.
    """

    def __init__(
        self,
        client: redis.Redis,
        layout: Layout,
        epoch: str | None = None,
        durability: DurabilityCheck | None = None,
        queues: Sequence[PartitionQueue] | None = None,
        on_rename: Callable[[int, str, int, str], None] | None = None,
    ) -> None:
        self.layout = layout
        self._client = client
        self._durability = durability or DurabilityCheck()
        self.queues = list(queues or new_queues(layout))
        self._script_is_loaded = False
        self._rollbacks = RollbackWatch(client, epoch, on_rename)
        self.answered = 0
        """Entries that were confirmed or given up; one that is sent again after a rollback counts again."""
        self.resent = 0
        """Entries that were sent again after the sequence gate had already let them through."""
        self.backlogged = 0
        """Number of attempts at which a stream refused entries because the stream had reached its limit."""
        self.unconfirmed = 0
        """Number of calls of `send` or `lasts` after which the durability of entries was not confirmed.

        The reason is that it took too long, or an error reply.
        """
        self._lost_keys: dict[int, str] = {}  # by partition, the key that the server has lost
        self.is_closed = False
        """Whether the gate refused an entry because another topic becomes live: call `lasts`, `settle`, then `move`."""

    def push(self, partition: int, entry: SealedEntry) -> None:
        """Add an entry to the end of its partition's queue; its place in the queue determines its sequence."""
        self.queues[partition].waiting.append(entry)

    @property
    def epoch(self) -> str | None:
        """The epoch of the deployment that the entries belong to; `None` if epochs are ignored."""
        return self._rollbacks.epoch

    def follow(self) -> None:
        """If another epoch is stored, continue with the data that is stored now; see `RollbackWatch.follow`.

        Raises:
            RedisError: the server does not answer, or refuses a command.
            DeploymentChanged: a restore has not finished.

        Any error of `on_rename` is raised too; then call this again.
        """
        self._rollbacks.follow(self.layout, self.queues)

    @property
    def rewound(self) -> int:
        """Number of times that any of the streams had lost confirmed entries."""
        return self._rollbacks.rewound

    @property
    def lost(self) -> int:
        """Confirmed entries that a stream had lost, and that are not sent again.

        No queue kept them any more, or the server was emptied and has another epoch.
        """
        return self._rollbacks.lost

    @property
    def unknown(self) -> int:
        """Entries that are not sent again: the server may have them, but removed the record that could prove it."""
        return self._rollbacks.unknown

    @property
    def oldest_cycle(self) -> int | None:
        """The lowest cycle (number of a seal) among the unconfirmed entries; `None` if every entry is confirmed."""
        return min((queue.waiting[0].cycle for queue in self.queues if queue.waiting), default=None)

    @property
    def last_ids(self) -> list[str | None]:
        """By partition, the stream ID of the last confirmed entry, or a lower ID if that is not known.

        `None` if no entry was confirmed under the present name of the queue. If the server went back to other data, and
        the producer has noticed it, this is the ID that the entry has there.
        """
        return [queue.since if queue.confirmed else None for queue in self.queues]

    @property
    def due(self) -> float | None:
        """Seconds until the next send or check; 0 for now; `None` if nothing is planned.

        A check that `check_soon` demands is not included.
        """
        now = time.monotonic()
        moments = [
            queue.resume_at for number, queue in enumerate(self.queues) if queue.waiting or number in self._lost_keys
        ]
        if (check_at := self._rollbacks.due(now)) is not None:
            moments.append(check_at)
        return max(0.0, min(moments) - now) if moments else None

    def check_soon(self) -> None:
        """Make the next `send` check that the server has the kept entries of each partition with nothing to send.

        Do nothing if no partition has kept entries.
        """
        if any(queue.kept for queue in self.queues):
            self._rollbacks.check_soon()

    @property
    def is_unsure(self) -> bool:
        """Whether the last pipeline of `send` got no replies, or a check that `check_soon` demands is not made yet."""
        return self._rollbacks.is_unsure

    @property
    def is_behind(self) -> bool:
        """Whether entries wait, or a reply suggests that the server lacks entries, which the next `send` examines."""
        return self._rollbacks.has_suspects or self.oldest_cycle is not None

    def send(self) -> tuple[list[SealedEntry], RedisError | KeyLost | None]:
        """Send the first 32 unconfirmed entries of each partition in one pipeline, and wait for the replies.

        First, kept entries that a server is known to have lost are queued again. If entries that were never confirmed
        are given up (`unknown`), return these at once, and send nothing. A stream that was full, held by a reset or
        closed is left out for 0.1 seconds. A partition that has lost a key is left out for 1 second; if nothing waits
        for it, a command then checks whether it is repaired. The pipeline also checks that the server has the kept
        entries of each partition with nothing to send: if the last check and confirmation are 5 seconds ago or more, or
        at once if `is_unsure`.

        Returns:
            The entries that are confirmed or given up (`unknown`) for the first time; and an error, or `None`. The
            error is an error reply to an entry or to the durability command (memory full, read-only, missing
            permission); in a cluster, it may also be the broken connection to one node. Without such an error, it is a
            `KeyLost` while a partition is known to have lost a key. All other entries stay queued. A missing script is
            no error: the next call loads it. An error reply to a check is ignored.

        Raises:
            RedisError: the connection broke, or a server refused a command before the entries; entries may have been
                written, and all of them stay queued.
            DeploymentChanged: the server may lack confirmed entries, and a restore has not finished; nothing was sent.

        Any error of `on_rename` is raised too. If entries were written, but their durability was not confirmed in time,
        they stay queued, `unconfirmed` grows by 1, and this alone is no error.
        """
        rollbacks = self._rollbacks
        confirmed: list[SealedEntry] = []
        for entry in rollbacks.roll_back(self.layout, self.queues):
            self._report(entry, confirmed)
        for partition in rollbacks.damaged:
            self._pause_damaged(partition, self.layout.keys[partition].sequences)
        if confirmed:
            return confirmed, self._damage  # now: if the connection breaks, they are not returned again
        now = time.monotonic()
        self._check_idle(now)
        sent: list[tuple[int, int]] = []  # partition and sequence of each entry
        with self._client.pipeline(transaction=False) as pipeline:
            for partition, queue in enumerate(self.queues):
                if queue.waiting and queue.resume_at <= now:
                    for sequence, entry in enumerate(islice(queue.waiting, _BURST), start=queue.confirmed + 1):
                        self._queue(pipeline, partition, sequence, entry)
                        sent.append((partition, sequence))
            checked = rollbacks.queue_checks(pipeline, self.layout, self.queues, now)
            if not sent and not checked:
                return [], self._damage
            if sent:
                self._durability.queue(pipeline)
            if sent and not self._script_is_loaded:
                _APPEND.load(self._client)
                self._script_is_loaded = True
            rollbacks.is_unsure = True  # until the replies have arrived
            try:
                replies = pipeline.execute(raise_on_error=False)
            except BaseException:
                self._note_sent(sent)
                raise
            rollbacks.is_unsure = False
        rollbacks.compare(self.queues, checked, replies[len(sent) : len(sent) + len(checked)])
        return self._settle(sent, replies)

    def _queue(self, pipeline: Any, partition: int, sequence: int, entry: SealedEntry) -> None:
        keys = self.layout.keys[partition]
        queue = self.queues[partition]
        arguments = [VERSION, queue.producer, sequence, entry.events, entry.payload, queue.since]
        is_after_hole = queue.skip is not None and sequence == queue.confirmed + 1
        if self._durability.is_needed or is_after_hole:
            arguments.append("1" if self._durability.is_needed else "")
        if is_after_hole:
            arguments.append(queue.skip)
        _APPEND.queue(pipeline, [keys.stream, keys.sequences, keys.topic_ledger], arguments)

    def _note_sent(self, sent: Sequence[tuple[int, int]]) -> None:
        """Record that entries may be in the streams, because the replies to them are missing or prove too little."""
        for partition, sequence in sent:
            queue = self.queues[partition]
            queue.sent = max(queue.sent, sequence)

    def _settle(
        self, sent: Sequence[tuple[int, int]], replies: Sequence[Any]
    ) -> tuple[list[SealedEntry], RedisError | KeyLost | None]:
        first_error: RedisError | None = None
        if is_written_only := bool(sent) and self._durability.is_needed:
            if isinstance(replies[-1], RedisError):
                first_error = replies[-1]
            elif is_enough := self._durability.is_enough(replies[-1]):
                is_written_only = not is_enough
            self.unconfirmed += is_written_only
        if is_written_only:
            self._note_sent(sent)
        confirmed: list[SealedEntry] = []
        stopped: set[int] = set()
        for (partition, sequence), reply in zip(sent, replies, strict=False):  # replies to checks and durability follow
            if partition in stopped:
                continue  # after a failed entry, the gate replies "gap" to the partition's later ones: ignore that
            if isinstance(reply, RedisError):
                stopped.add(partition)
                if isinstance(reply, NoScriptError):
                    self._script_is_loaded = False  # restart, failover or SCRIPT FLUSH: load it before the next burst
                else:
                    first_error = first_error or reply
                if not isinstance(reply, ResponseError):  # in a cluster, the connection to one node may break
                    self._note_sent([pair for pair in sent if pair[0] == partition])
                continue
            queue = self.queues[partition]
            answer, detail = reply[0], reply[1].decode() if len(reply) > 1 else ""
            if answer not in (b"appended", b"already"):
                stopped.add(partition)
                self._refused(partition, sequence, answer, detail)
            elif not is_written_only:
                self.resent += answer == b"already"
                self._lost_keys.pop(partition, None)
                self._report(queue.confirm(detail), confirmed)
        return confirmed, first_error or self._damage

    def _refused(self, partition: int, sequence: int, answer: bytes, detail: str) -> None:
        """Handle an entry that the gate did not append.

        If the gate lacks earlier entries or has no record, make the next `send` read the record and act. If the
        partition has lost a key, send nothing to it for 1 second. Otherwise the stream is full, held by a reset or
        closed: send nothing to it for 0.1 seconds; if it is closed, set `is_closed`; if it is full, add 1 to
        `backlogged`. The stream then has neither the entry nor later ones, so lower `sent` of the queue to the sequence
        before it.

        Args:
            partition: The partition.
            sequence: The sequence of the entry.
            answer: The first element of the reply of `append.lua`.
            detail: The second element, such as the lost key; empty if there is none.
        """
        if answer in (b"gap", b"forgotten"):
            self._rollbacks.suspect(partition)
            return
        queue = self.queues[partition]
        if answer == b"damaged":
            self._pause_damaged(partition, detail)
            return
        queue.sent = min(queue.sent, sequence - 1)  # the gate first checks whether the stream has the entry
        queue.resume_at = time.monotonic() + _PAUSE
        if answer == b"closed":
            self.is_closed = True
        elif answer == b"full":
            self.backlogged += 1

    def _pause_damaged(self, partition: int, key: str) -> None:
        self._lost_keys[partition] = key
        self.queues[partition].resume_at = time.monotonic() + _PAUSE_DAMAGED

    def _check_idle(self, now: float) -> None:
        """Check whether partitions that had lost a key are repaired, if no entries wait for them.

        A partition is left out until 1 second after the last attempt. `now` is the present monotonic second. A repaired
        partition may lack entries: the next `send` reads its record.

        Raises:
            RedisError: the server does not answer, or refuses the command.
        """
        for partition in list(self._lost_keys):
            queue = self.queues[partition]
            if not queue.waiting and queue.resume_at <= now:
                key = lost_key(self._client, self.layout.keys[partition])
                if key is None:
                    del self._lost_keys[partition]
                    self._rollbacks.suspect(partition)  # the repaired partition may lack entries
                else:
                    self._pause_damaged(partition, key)

    @property
    def _damage(self) -> KeyLost | None:
        """The error of one of the partitions that are known to have lost a key; `None` if there is none."""
        return next((KeyLost(key) for key in self._lost_keys.values()), None)

    def _report(self, entry: SealedEntry, confirmed: list[SealedEntry]) -> None:
        """Note that an entry was confirmed or given up: set the time of the last confirmation, add 1 to `answered`.

        Append the entry to the list `confirmed` if this was never noted of it before.
        """
        self._rollbacks.confirmed_at = time.monotonic()
        self.answered += 1
        if not entry.was_confirmed:
            entry.was_confirmed = True
            confirmed.append(entry)

    # -- moving to another topic ------------------------------------------------------------------------

    def lasts(self, deployment: Deployment) -> list[int]:
        """Return, by partition, the last sequence of each queue that the server has (0: none); final in a closed topic.

        If the record of a queue was removed, its confirmed entries are in the topic. Those that were sent without a
        reply may be there: they are included, and each call adds them to `unknown`; see `PartitionQueue.last_of`.

        If a snapshot of an earlier topic was restored to an empty server, this topic is unknown: `deployment` does not
        name it, and its partitions have no keys. The server then has no entry of it, so all last sequences are 0.

        The sequences are read after the durability was checked in both topics. So the entries up to them, and the
        copies of these entries in the live topic, have it too.

        Args:
            deployment: The deployment that is stored now; another topic is live.

        Raises:
            KeyLost: a partition has lost its sequences, although entries may have been sent to it.
            Unconfirmed: the durability of what the two topics have was not confirmed in time, or because of an error;
                `unconfirmed` has grown by 1. Call this again.
            RedisError: the server does not answer, or refuses a command; the sequences are not known.
        """
        is_known = self.layout.topic in deployment.earlier
        for keys, queue in zip(self.layout.keys, self.queues, strict=True):
            if (
                max(queue.confirmed, queue.sent) > 0
                and has_lost_sequences(self._client, keys)
                and (is_known or not is_new(self._client, keys))
            ):
                raise KeyLost(keys.sequences)
        both = dict.fromkeys((*self.layout.confirmed, *deployment.layout.confirmed))
        if reason := self._durability.confirm(self._client, both):
            self.unconfirmed += 1
            raise Unconfirmed(
                f"the events of topic {self.layout.topic} that are in topic {deployment.layout.topic} now are not "
                f"confirmed: {reason}"
            )
        with self._client.pipeline(transaction=False) as pipeline:
            for keys, queue in zip(self.layout.keys, self.queues, strict=True):
                queue_read(pipeline, keys, queue.producer)
            records = [parse_record(reply) for reply in pipeline.execute()]
        lasts = []
        for queue, record in zip(self.queues, records, strict=True):
            lasts.append(queue.last_of(record))
            if queue.is_forgotten(record):
                self._rollbacks.unknown += lasts[-1] - queue.confirmed
        return lasts

    def settle(self, lasts: Sequence[int]) -> list[SealedEntry]:
        """Confirm the entries that a closed topic has; the others are in `waiting`, also kept ones that it has lost.

        For each queue with lost entries, which were confirmed before, add 1 to `rewound`, and the number of those that
        are no longer kept to `lost`.

        Args:
            lasts: By partition, the last sequence that the topic has.

        Returns:
            The entries that are confirmed for the first time.
        """
        confirmed: list[SealedEntry] = []
        for queue, last in zip(self.queues, lasts, strict=True):
            if last < queue.confirmed and last != queue.skip:
                self._rollbacks.count(queue.roll_back(last))
            for entry in queue.confirm_to(last):
                self._report(entry, confirmed)
        return confirmed

    @property
    def waiting(self) -> list[SealedEntry]:
        """The unconfirmed entries of all partitions, in the order of their cycles; a new list."""
        return sorted((entry for queue in self.queues for entry in queue.waiting), key=lambda entry: entry.cycle)

    def move(self, layout: Layout, queues: Sequence[PartitionQueue] | None = None) -> None:
        """Append to another topic from now on, and set `is_closed` to `False`; the statistics stay. Send nothing.

        Args:
            layout: Layout of the other topic.
            queues: One queue for each partition of the other topic; `None` for new, empty queues. The entries in the
                present queues are dropped: read `waiting` before, and `push` them again.
        """
        self.queues = list(queues or new_queues(layout))  # before the layout: `wait_until_counted` reads both
        self.layout = layout
        self._rollbacks.reset()
        self._lost_keys.clear()
        self.is_closed = False


def new_queues(layout: Layout, since: Sequence[str] = ()) -> list[PartitionQueue]:
    """Return a new, empty queue for each partition of a layout.

    Args:
        layout: The layout.
        since: By partition, a stream ID that no entry of the new queue precedes, from `newest_ids`; if empty, `0-0`.
            If the server has no record of the queue (`GateRecord`), and this ID is before its `horizon`, it may have
            removed the record: then entries that were sent without a reply are given up. The higher the ID, the rarer
            this is. When entries of the queue are confirmed, their IDs take its place.
    """
    begun = since or [START] * layout.partitions
    return [PartitionQueue(KEEP_BYTES // layout.partitions, since=each) for each in begun]
