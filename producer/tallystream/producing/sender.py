"""The sender: the background thread of a producer, which seals entries, sends them, and retries without limit."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.backoff import Backoff
from tallystream.client.error_text import named_text, text_of
from tallystream.client.replies import is_connection_stale, is_refusal
from tallystream.errors import ConfigurationError, DeploymentChanged, FlushTimeout, KeyLost, SpoolError, Unconfirmed
from tallystream.producing.appender import KEEP_BYTES
from tallystream.producing.buffer import BufferSettings
from tallystream.producing.send_queue import SendQueue
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.recovery import orphaned_segments

if TYPE_CHECKING:
    import redis

    from tallystream.client.durability import DurabilityCheck
    from tallystream.deployment import Deployment
    from tallystream.producing.appender import Appender
    from tallystream.producing.buffer import Buffer
    from tallystream.producing.spool.settings import SpoolSettings
    from tallystream.producing.validation import EventValidator

_FIRST_PAUSE: Final = 0.05
"""Seconds of back-off after the first failure."""

_LONGEST_PAUSE: Final = 2.0
"""Most seconds of back-off."""

_RELOAD: Final = 1.0
"""Least seconds between two reads of the deployment that are due to a lost key or another epoch."""

_PATIENCE: Final = 2.0
"""Most seconds that `Sender.check` waits for the server's reply, which shows whether the server has lost entries."""

_SCAN: Final = 10.0
"""Seconds between two searches of the spool for events of dead processes."""

_WATCH: Final = 1.0
"""Seconds between two steps of the send queues of dead processes whose events are delivered."""

_MOST_WATCHED: Final = 64
"""Most such send queues that are watched at once."""

_MOST_WATCHED_BYTES: Final = 4 * KEEP_BYTES
"""Most bytes of confirmed entries that they keep together."""

_log: Final = logging.getLogger("tallystream")


class Sender:
    """Sends the events of a producer's buffer, and those that dead processes left in its spool, in one thread.

    The first call of `start` starts the thread. To end it, call `check` (optional), `Buffer.close`, `join` and
    `release`.

    Args:
        client: Client that never sends a command twice.
        validator: Validator that reads the deployment.
        buffer: Buffer of the producer.
        linger: Seconds that an event may wait for others to share its entry.
        durability: Durability that an entry needs to count as confirmed.
        spool: Spool in which dead processes may have left events; `None` without a spool.
    """

    def __init__(
        self,
        client: redis.Redis,
        validator: EventValidator,
        buffer: Buffer,
        linger: float,
        durability: DurabilityCheck,
        spool: SpoolSettings | None = None,
    ) -> None:
        self._client = client
        self._validator = validator
        self._buffer = buffer
        self._linger = linger
        self._durability = durability
        self._problem: str | None = None
        self._is_checking = False
        self._is_behind = False
        self._checked = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._spool = spool
        self._scan_at = self._reload_at = float("-inf")
        self._refused: set[str] = set()  # folders that cannot be delivered here
        self._own: SendQueue | None = None
        self._adopted: list[SendQueue] = []
        self._delivered: dict[SendQueue, int] = {}  # were delivered, and are watched; bytes that each keeps
        self._watch_at = float("-inf")
        self.adopted_events = 0
        """Events of dead processes that this sender has delivered; added when all those of a process are confirmed."""
        self._unknown = self._rewound = self._lost_entries = 0  # of queues that are not watched any more

    @property
    def appender(self) -> Appender | None:
        """Appender of the producer's own entries; `None` until the thread has read the deployment and created it."""
        return None if self._own is None else self._own.appender

    @property
    def unknown(self) -> int:
        """Entries, also those of dead processes, that may be appended or not and are not sent again."""
        return self._unknown + sum(send_queue.appender.unknown for send_queue in self._outboxes())

    @property
    def rewound(self) -> int:
        """Number of times that any of the streams had lost confirmed entries, also those of dead processes."""
        return self._rewound + sum(send_queue.appender.rewound for send_queue in self._outboxes())

    @property
    def lost(self) -> int:
        """Confirmed entries, also of dead processes, that a stream had lost, and that are not sent again.

        No queue kept them any more, or the server was emptied and has another epoch.
        """
        return self._lost_entries + sum(send_queue.appender.lost for send_queue in self._outboxes())

    @property
    def problem(self) -> str | None:
        """The text of the latest error that delays events, of all partitions or of one; `None` if there is none.

        It becomes `None` again after a step of any queue without an error, if entries were confirmed or none is due. A
        failure that ends the thread does not change it: then the calls of the buffer raise the error (`Buffer.fail`).
        """
        return self._problem

    def start(self) -> None:
        """Wake the sender thread; start it if it was not started yet. A thread that has ended is not started again.

        If the system refuses another thread, raise no error: this becomes `problem` and is logged once, and the next
        call tries again.
        """
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="tallystream-producer", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError as error:
                        self._say(
                            f"the system refuses the thread that sends events: {error}. The next call tries again"
                        )
                        return  # without `wake`: so the next event calls this again
                    self._thread = thread
        self._buffer.wake.set()

    def start_if_refused(self) -> bool:
        """If the system has refused the sender thread, try again; return whether it refuses the thread again.

        If it has not refused the thread, do nothing and return `False`.
        """
        if self._thread is None and self._problem is not None:
            self.start()
            return self._thread is None
        return False

    def check(self, deadline: float) -> None:
        """Check that the server still has the latest confirmed entries; if not, wait until they are confirmed again.

        Lost entries that are no longer kept are not sent again. The entries of dead processes that were delivered in
        the last minute are included, unless there are too many. Call this once, after all events were appended.

        If the server does not reply within 2 seconds, or before the deadline, log this, and return without an error: it
        is not known whether entries are lost. If only some nodes of a cluster do not reply, return without a log line.
        Also return if the sender thread has ended, and at once if it has not created its `appender` yet.

        Args:
            deadline: The monotonic second at which to stop waiting.

        Raises:
            FlushTimeout: the server lacks confirmed entries, and not all that are sent again were confirmed before the
                deadline.
        """
        if self._own is None:
            return
        self._is_checking = True
        self._buffer.hasten()  # the thread may linger for longer than the patience, even if nothing is left to send
        is_done = self._checked.wait(max(0.0, min(_PATIENCE, deadline - time.monotonic())))
        if is_done or (self._is_behind and self._checked.wait(max(0.0, deadline - time.monotonic()))):
            return
        if not self._is_behind:
            problem = self._problem or "the server does not answer"
            _log.warning("producer.unchecked problem=%r: it is not known if the server has the last entries", problem)
        else:
            lost = "the server has lost entries that it had confirmed, and not all of them were sent again in time"
            raise FlushTimeout(lost if self._problem is None else f"{lost}. {self._problem}")

    def join(self, timeout: float) -> None:
        """Wait until the sender thread has ended, at most `timeout` seconds; call `Buffer.close` before.

        Return without an error if the thread has not ended in time, or was never started.
        """
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._send()
        finally:
            self._checked.set()

    def _send(self) -> None:
        """Make one pass after another, with back-off after failures, until the buffer is closed or a failure is final.

        If the server or the deployment refuses this producer for good, fail the buffer and return. Any other error
        becomes `problem`, and the next pass tries again.
        """
        buffer = self._buffer
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while not buffer.is_closed:
            self._wait()
            led_on = False
            is_checking = self._is_checking
            checking = self._checked_appenders() if is_checking else []
            for appender in checking:
                appender.check_soon()
            answered = sum(appender.answered for appender in checking)
            try:
                led_on = self._pass()
            except ConfigurationError as error:
                buffer.fail(error)
                return
            except RedisError as error:
                if is_refusal(error):
                    buffer.fail(ConfigurationError(f"Redis refuses this producer: {error}"))
                    return
                self._lost(error)
            except (SpoolError, DeploymentChanged, KeyLost, Unconfirmed) as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001  # if a bug ended the thread, no further event would be sent
                self._say(named_text(error), error)
            if is_checking:
                self._is_behind = any(appender.is_behind for appender in checking)
                if not self._is_behind and not any(appender.is_unsure for appender in checking):
                    self._checked.set()
                led_on = self._checked.is_set() or sum(appender.answered for appender in checking) > answered
            if led_on:
                backoff.reset()
            else:
                buffer.sleep(backoff.next())
                buffer.wake.set()

    def _wait(self) -> None:
        """Wait until the buffer wakes this thread or something is due; linger after a wake-up.

        To linger is to wait up to `linger` seconds more, so that more events share an entry, but no longer than the
        seconds after which something was due at the start. It ends when the buffer sets `hurry`. It is left out if the
        buffer is closing, or if something was due at the start. At the end, clear `wake` and `hurry`.
        """
        buffer = self._buffer
        due = self._due()
        if buffer.wake.wait(due) and not buffer.is_closing and due != 0:
            buffer.hurry.wait(self._linger if due is None else min(self._linger, due))
        buffer.wake.clear()
        buffer.hurry.clear()

    def _due(self) -> float | None:
        moments = [send_queue.appender.due for send_queue in self._adopted]
        if self._adopted:
            moments.append(0.0)
        if self._delivered:
            moments.append(max(0.0, self._watch_at - time.monotonic()))
        if self._own is not None:
            moments.append(self._own.appender.due)
            if self._spool is not None:
                moments.append(max(0.0, self._scan_at - time.monotonic()))
        return min((moment for moment in moments if moment is not None), default=None)

    def _pass(self) -> bool:
        """Move every send queue to the live topic, and take one step of each; return `False` if all must back off.

        A queue with nothing to send need not back off. The first pass creates the queue of this process. Every 10
        seconds the spool is searched; each pass then adopts the events of at most one dead process, until there are no
        more. Its files are removed when its events are delivered; its queue is watched for a minute longer. While
        entries are sent, an error reply that is no refusal (`is_refusal`) only becomes `problem`, and so does a lost
        key of a partition, or in a cluster the broken connection to one node: the entries stay queued. A raised error
        ends the pass: the queues after it take no step.

        Raises:
            ConfigurationError: see `EventValidator.refresh`; or the server does not support the required durability.
            DeploymentChanged: a restore has not finished; raised before the deployment was first read, and when a queue
                must be compared with the server: entries may be missing there, or another epoch is stored.
            KeyLost: the deployment was deleted or has lost a field, or the closed topic has lost its sequences and
                cannot be left.
            DamagedValue: the deployment has a stored value that tallystream never writes.
            Unconfirmed: what the closed topic has is not confirmed, so it cannot be left.
            SpoolError: a spool cannot be written, or events in it are damaged.
            OSError: the files of a spool cannot be read, or its folder cannot be listed.
            redis.RedisError: the connection broke; a server refuses the entries; or another command than that which
                sends them got an error reply, also one that is no refusal.
        """
        if any(send_queue.appender.is_closed for send_queue in self._open_queues()):
            self._validator.forget()  # read the deployment again in each pass, until it names the new topic
        deployment = self._validator.refresh()
        if self._own is None:
            self._durability.check(self._client)
            self._own = SendQueue(self._client, deployment, self._buffer, self._durability)
        if self._spool is not None and time.monotonic() >= self._scan_at:
            self._adopt(self._spool, deployment)
        progress = False
        for send_queue in self._open_queues():
            led_on = self._step(send_queue, deployment)
            progress = progress or led_on
        for send_queue in [each for each in self._adopted if _is_delivered(each)]:
            self._adopted.remove(send_queue)
            self._settle(send_queue)
        if self._delivered and (self._is_checking or time.monotonic() >= self._watch_at):
            self._watch(deployment)
        return progress

    def _step(self, send_queue: SendQueue, deployment: Deployment) -> bool:
        """Move a send queue to the live topic, and take one step of it; return `False` if it must back off.

        An error reply to the entries that is no refusal, and a lost key of a partition, become `problem` and are not
        raised. An error reply to another command is raised.

        Raises:
            DeploymentChanged, KeyLost, SpoolError, Unconfirmed, OSError, redis.RedisError: see `_pass`.
        """
        self._follow(send_queue, deployment)
        led_on, error = send_queue.step()
        if isinstance(error, KeyLost):
            if send_queue.appender.oldest_cycle is not None:
                self._reload()  # if the server was emptied, the next pass stores a new deployment
            self._say(str(error))
        elif error is not None:
            if is_refusal(error):
                raise error
            self._lost(error)
        elif led_on:
            self._say(None)
        return led_on

    def _settle(self, send_queue: SendQueue) -> None:
        """Remove the files of a dead process whose events are delivered, and watch its queue from now on.

        To watch is to check, for about a minute, that the server still has its confirmed entries. If the watched queues
        are more than 64, or keep more than 32 MiB together, forget the oldest of them. The events are added to
        `adopted_events`, once.

        Args:
            send_queue: An adopted queue, never the one of this process. The caller must have checked that it is
                delivered (`_is_delivered`), and have removed it from the adopted ones.
        """
        buffer = send_queue.buffer
        kept = sum(len(entry.payload) for queue in send_queue.appender.queues for entry in queue.kept)
        self._delivered[send_queue] = kept
        if isinstance(buffer, Spool) and not buffer.is_released:  # else it was delivered before, and had to send again
            self.adopted_events += buffer.appended
            buffer.release()
        while len(self._delivered) > _MOST_WATCHED or sum(self._delivered.values()) > _MOST_WATCHED_BYTES:
            self._forget(next(iter(self._delivered)))

    def _watch(self, deployment: Deployment) -> None:
        """Check that the server still has the entries of delivered queues; forget queues that need no further check.

        While `check` runs, no queue is forgotten here. A queue of which the server has lost entries sends them again,
        in the next passes.

        Raises:
            DeploymentChanged, KeyLost, SpoolError, Unconfirmed, OSError, redis.RedisError: see `_pass`.
        """
        self._watch_at = time.monotonic() + _WATCH
        for send_queue in list(self._delivered):
            if send_queue.appender.due is None and not self._is_checking:
                self._forget(send_queue)
                continue
            self._step(send_queue, deployment)
            if not _is_delivered(send_queue):
                del self._delivered[send_queue]
                self._adopted.append(send_queue)

    def _forget(self, send_queue: SendQueue) -> None:
        del self._delivered[send_queue]
        self._unknown += send_queue.appender.unknown
        self._rewound += send_queue.appender.rewound
        self._lost_entries += send_queue.appender.lost

    def _follow(self, send_queue: SendQueue, deployment: Deployment) -> None:
        """If the stored deployment has another epoch or live topic than a send queue, move the queue to it.

        Also set the metrics that its buffer spreads. If the epoch changed after `deployment` was read, do not move:
        let a pass read the deployment again, see `_reload`.

        Raises:
            DeploymentChanged, KeyLost, SpoolError, Unconfirmed, redis.RedisError: see `_pass`.
        """
        appender = send_queue.appender
        send_queue.buffer.spread = self._validator.spread  # before the move: it belongs to the topic moved to
        if appender.epoch != deployment.epoch:
            appender.follow()  # before the move, which sends again the entries that the earlier topic has lost
        if appender.epoch != deployment.epoch:
            self._reload()  # the deployment was replaced after it was read
        elif appender.layout.topic != deployment.layout.topic:
            send_queue.move(deployment)

    def _reload(self) -> None:
        """Make the next pass read the deployment again, unless this was done less than a second ago."""
        now = time.monotonic()
        if now >= self._reload_at:
            self._validator.forget()
            self._reload_at = now + _RELOAD

    def _open_queues(self) -> list[SendQueue]:
        """Return the queues that each pass takes a step of: all but the delivered ones."""
        return self._adopted if self._own is None else [self._own, *self._adopted]

    def _outboxes(self) -> list[SendQueue]:
        """Return all queues: its own, the adopted and the delivered ones; safe to call in any thread."""
        return [*self._open_queues(), *self._delivered.copy()]

    def _checked_appenders(self) -> list[Appender]:
        """Return the appenders that `check` waits for: its own, and those of dead processes that were delivered once.

        The delivered ones are those that are watched, and those that send again entries that the server has lost.
        """
        again = [each for each in self._adopted if isinstance(each.buffer, Spool) and each.buffer.is_released]
        own = [] if self._own is None else [self._own]
        return [send_queue.appender for send_queue in (*own, *again, *self._delivered)]

    def _adopt(self, spool: SpoolSettings, deployment: Deployment) -> None:
        """Take over the segments of the next dead process in the spool; if there is none, plan a search in 10 seconds.

        Segments that are damaged, cannot be read or written, or belong to another deployment are logged, and not tried
        again by this producer. In the same call, the segments after them are tried.

        Raises:
            redis.RedisError: the server does not answer, or refuses the command; a later call takes the segments over.
            OSError: the folder of the spool cannot be listed.
        """
        for segments in orphaned_segments(spool.folder, self._refused):
            try:
                buffer = Spool(BufferSettings(), spool, segments)
                self._adopted.append(SendQueue(self._client, deployment, buffer, self._durability))
            except (SpoolError, OSError) as error:
                segments.close()
                self._refused.add(segments.folder.name)
                problem = str(error) if isinstance(error, SpoolError) else f"{segments.folder}: {named_text(error)}"
                _log.warning("spool.unreadable problem=%r", problem)
                continue
            except BaseException:
                segments.close()  # the next scan adopts them
                raise
            _log.info("spool.adopted folder=%s events=%d", segments.folder, buffer.emitted)
            return
        self._scan_at = time.monotonic() + _SCAN

    def release(self) -> None:
        """Close the files of all spools, its own and the adopted ones; do nothing while the thread runs.

        Call `Buffer.close` and `join` before. All files of a spool are removed if all its events were delivered;
        otherwise all stay, for a later process.
        """
        if self._thread is None or not self._thread.is_alive():
            for buffer in (self._buffer, *(send_queue.buffer for send_queue in self._adopted)):
                _release(buffer)

    def abandon(self) -> None:
        """In a child process after a fork, close the copied file descriptors of the parent's own and adopted spools."""
        for buffer in (self._buffer, *(send_queue.buffer for send_queue in self._adopted)):
            if isinstance(buffer, Spool):
                buffer.abandon()

    def _lost(self, error: RedisError) -> None:
        if is_connection_stale(error):
            # Idle connections may lead to a node that was demoted or is gone. A connection in use gets an error.
            self._client.connection_pool.disconnect(inuse_connections=False)
        self._say(text_of(error))

    def _say(self, problem: str | None, bug: Exception | None = None) -> None:
        """Set `problem`; log one line when sending begins to fail, and one when it works again (`problem` is `None`).

        While it fails, further problems are not logged. `bug` is an unexpected error, logged with its traceback.
        """
        if problem is None and self._problem is not None:
            _log.info("sending.resumed")
        elif problem is not None and self._problem is None:
            _log.warning("sending.paused problem=%r", problem, exc_info=bug)
        self._problem = problem


def _is_delivered(send_queue: SendQueue) -> bool:
    """Return whether the events of a dead process are confirmed, and no entry of it has to be sent again.

    Return `False` for a buffer that is no spool. No file is read.
    """
    return isinstance(send_queue.buffer, Spool) and send_queue.buffer.is_delivered and not send_queue.appender.is_behind


def _release(buffer: Buffer) -> None:
    if isinstance(buffer, Spool):
        buffer.release()
