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
from tallystream.errors import ConfigurationError, DeploymentChanged, FlushTimeout, KeyLost, SpoolError
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

_log: Final = logging.getLogger("tallystream")


class Sender:
    """Sends the events of a producer's buffer, and those that dead processes left in its spool, in one thread.

    The first call of `start` starts the thread.

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
        self._checking: Appender | None = None  # what `check` waits for
        self._is_behind = False
        self._checked = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._spool = spool
        self._scan_at = self._reload_at = float("-inf")
        self._refused: set[str] = set()  # folders that cannot be delivered here
        self._own: SendQueue | None = None
        self._adopted: list[SendQueue] = []
        self.adopted_events = 0
        """Events of dead processes that this sender has delivered; added when all those of a process are confirmed."""
        self._adopted_unknown = 0

    @property
    def appender(self) -> Appender | None:
        """Appender of the producer's own entries; `None` before the deployment was first read."""
        return None if self._own is None else self._own.appender

    @property
    def unknown(self) -> int:
        """Entries, also those of dead processes, that may be appended or not and are not sent again."""
        return self._adopted_unknown + sum(send_queue.appender.unknown for send_queue in self._outboxes())

    @property
    def problem(self) -> str | None:
        """The text of the latest error that delays events, of all partitions or of one; `None` if there is none.

        A failure that ends the thread does not change it: then the calls of the buffer raise the error (`Buffer.fail`).
        """
        return self._problem

    def start(self) -> None:
        """Wake the sender thread; start it if it was not started yet. A thread that has ended is not started again.

        If the system refuses another thread, this is a `problem`: it is logged once, and the next call tries again.
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
        """If the system has refused the sender thread, try again; return whether it refuses the thread again."""
        if self._thread is None and self._problem is not None:
            self.start()
            return self._thread is None
        return False

    def check(self, deadline: float) -> None:
        """Check that the server still has the latest confirmed entries; if not, wait until they are sent again.

        Call this once, after all events were appended. If the server does not reply within 2 seconds, return without
        an error: it is not known whether entries are lost. Also return if the sender thread has ended.

        Args:
            deadline: The monotonic second at which to stop waiting.

        Raises:
            FlushTimeout: the server lacks confirmed entries, and not all of them were sent and confirmed again before
                the deadline.
        """
        self._checking = self.appender
        if self._checking is None:
            return
        self._buffer.hasten()  # the thread may linger for longer than the patience, even if nothing is left to send
        is_done = self._checked.wait(max(0.0, min(_PATIENCE, deadline - time.monotonic())))
        if not is_done and self._is_behind and not self._checked.wait(max(0.0, deadline - time.monotonic())):
            lost = "the server has lost entries that it had confirmed, and not all of them were sent again in time"
            raise FlushTimeout(lost if self._problem is None else f"{lost}. {self._problem}")

    def join(self, timeout: float) -> None:
        """Wait until the sender thread has ended, at most `timeout` seconds; call `Buffer.close` before."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._send()
        finally:
            self._checked.set()

    def _send(self) -> None:
        """Make one pass after another, with back-off after failures, until the buffer is closed or a failure is final.

        If the server or the deployment refuses this producer for good, fail the buffer and return. Any other error is
        logged, and the next pass tries again.
        """
        buffer = self._buffer
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while not buffer.is_closed:
            self._wait()
            led_on = False
            if (checking := self._checking) is not None:
                checking.check_soon()
            answered = 0 if checking is None else checking.answered
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
            except (SpoolError, DeploymentChanged, KeyLost) as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001  # if a bug ended the thread, no further event would be sent
                self._say(named_text(error), error)
            if checking is not None:
                self._is_behind = checking.is_behind
                if not checking.is_unsure and not self._is_behind:
                    self._checked.set()
                led_on = self._checked.is_set() or checking.answered > answered
            if led_on:
                backoff.reset()
            else:
                buffer.sleep(backoff.next())
                buffer.wake.set()

    def _wait(self) -> None:
        """Wait until the buffer wakes this thread or something is due; linger after a wake-up.

        To linger is to wait up to `linger` seconds more, so that more events share an entry. It ends when something is
        due or the buffer sets `hurry`. It is left out if the buffer is closing, or if something was due at the start.
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
        if self._own is not None:
            moments.append(self._own.appender.due)
            if self._spool is not None:
                moments.append(max(0.0, self._scan_at - time.monotonic()))
        return min((moment for moment in moments if moment is not None), default=None)

    def _pass(self) -> bool:
        """Move every send queue to the live topic, and take one step of each; return `False` if all must back off.

        A queue with nothing to send need not back off. The first pass creates the queue of this process. Every 10
        seconds the spool is searched; each pass then adopts the events of at most one dead process, until there are no
        more. Its files are released when its events are delivered. An error reply that is no refusal is only logged,
        and so is a lost key of a partition: the entries stay queued.

        Raises:
            ConfigurationError: see `EventValidator.refresh`; or the server does not support the required durability.
            DeploymentChanged: a restore has not finished; raised before the deployment was first read, and when
                confirmed entries are missing.
            KeyLost: the deployment was deleted, or the closed topic has lost its sequences and cannot be left.
            SpoolError: a spool cannot be written.
            OSError: the files of a spool cannot be read.
            redis.RedisError: the connection broke, or a server refuses the entries.
        """
        if any(send_queue.appender.is_closed for send_queue in self._outboxes()):
            self._validator.forget()  # read the deployment again in each pass, until it names the new topic
        deployment = self._validator.refresh()
        if self._own is None:
            self._durability.check(self._client)
            self._own = SendQueue(self._client, deployment, self._buffer, self._durability)
        if self._spool is not None and time.monotonic() >= self._scan_at:
            self._adopt(self._spool, deployment)
        progress = False
        for send_queue in self._outboxes():
            self._follow(send_queue, deployment)
            led_on, error = send_queue.step()
            progress = progress or led_on
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
        for send_queue in [each for each in self._adopted if _is_delivered(each)]:
            self._adopted.remove(send_queue)
            self.adopted_events += send_queue.buffer.appended
            self._adopted_unknown += send_queue.appender.unknown
            _release(send_queue.buffer)
        return progress

    def _follow(self, send_queue: SendQueue, deployment: Deployment) -> None:
        """If the stored deployment has another epoch or live topic than a send queue, move the queue to it.

        Also set the metrics that its buffer spreads. If the epoch changed after `deployment` was read, do not move:
        make the next pass read the deployment again.

        Raises:
            DeploymentChanged, KeyLost, SpoolError, redis.RedisError: see `_pass`.
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

    def _outboxes(self) -> list[SendQueue]:
        return self._adopted if self._own is None else [self._own, *self._adopted]

    def _adopt(self, spool: SpoolSettings, deployment: Deployment) -> None:
        """Take over the segments of the next dead process in the spool; if there is none, plan a search in 10 seconds.

        Segments that are damaged, cannot be written or belong to another deployment are logged, and not tried again by
        this process.

        Raises:
            redis.RedisError: the server did not answer; a later call takes the segments over.
        """
        for segments in orphaned_segments(spool.folder, self._refused):
            try:
                buffer = Spool(BufferSettings(), spool, segments)
                self._adopted.append(SendQueue(self._client, deployment, buffer, self._durability))
            except SpoolError as error:
                segments.close()
                self._refused.add(segments.folder.name)
                _log.warning("spool.unreadable problem=%r", str(error))
                continue
            except RedisError:
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
        """In a child process after a fork, close the copied file descriptors of the parent's spool."""
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
    return isinstance(send_queue.buffer, Spool) and send_queue.buffer.is_delivered


def _release(buffer: Buffer) -> None:
    if isinstance(buffer, Spool):
        buffer.release()
