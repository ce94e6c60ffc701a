"""Makes a worker wait on an emptied server, as long as a backup has the data that the server had.

A worker creates a deployment on an empty server. If the server was emptied, and its snapshot or archive has the data,
counting from 0 would hide the loss: so the worker waits for a restore.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from redis.exceptions import RedisError

from tallystream.client.connect import connect, without_credentials
from tallystream.client.error_text import text_of
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, NothingDeclared, TallyError
from tallystream_worker.process.moments import format_moment
from tallystream_worker.process.state_log import StateLog
from tallystream_worker.runtime.backups import archived_topics, read_archive, read_snapshot
from tallystream_worker.runtime.health import WaitingProbe
from tallystream_worker.runtime.metrics import serve_metrics

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream_worker.settings.settings import Settings

POLL: Final = 1.0
"""Seconds between two checks whether the data is back."""


def backup_of(settings: Settings, *, is_strict: bool = False) -> str:
    """Return a text: which backup has data of the namespace, up to when, and what restores it; `""` if none has any.

    The snapshot is looked at first; if it has data, the archive is not mentioned. A backup that cannot be read is
    passed over; with `is_strict`, the error is raised. In any case, a SQLite file that does not exist, and a snapshot
    that lacks a partition, are passed over.

    Raises:
        ConfigurationError, SnapshotError, ArchiveError, ImportError: only with `is_strict`; see `read_snapshot` and
            `read_archive`.
    """
    passed: tuple[type[Exception], ...] = () if is_strict else (ImportError, TallyError)
    for read in (_of_snapshot, _of_archive):
        try:
            found = read(settings)
        except passed:
            continue
        if found:
            return found
    return ""


def refuse_lost_data(client: redis.Redis, settings: Settings, *, creating: bool) -> None:
    """Raise an error if the server has no rules of this namespace, and may have had some.

    This is so if a backup has data of the namespace, or cannot be read (see `backup_of` for backups that are passed
    over). It is also so if not `creating`: another process has published the rules before.

    Raises:
        NothingDeclared: the server may have lost its data; the text states which backup has it, if that is known, and
            what to do.
        ConfigurationError: the server has no rules, and the URL of a backup cannot be used; or see `Deployment.find`.
        ImportError: the server has no rules, an archive is configured, and the package pyarrow is not installed.
        DeploymentChanged, KeyLost, DamagedValue, redis.RedisError: see `Deployment.find`.
    """
    deployment = Deployment.find(client, settings.redis.namespace)
    if deployment.declared is not None:
        return
    root = deployment.layout.root
    try:
        found = backup_of(settings, is_strict=True)
    except ConfigurationError:
        raise  # no wait corrects the configuration
    except TallyError as error:
        raise NothingDeclared(
            f"{root}: the server has no data of this deployment, and it is not known whether a backup has it: {error}"
        ) from None
    if found:
        raise NothingDeclared(
            f"{root}: the server has no data of this deployment, so this worker waits. To begin with new counters "
            f"instead, name another snapshot and another archive in the configuration. {found}"
        )
    if not creating:
        raise NothingDeclared(
            f"{root}: the server has lost the data of this deployment. Restore a snapshot (tallystream restore "
            "--force); or, to begin with new counters, restart the workers"
        )


def wait_for_data(
    tenants: Sequence[Settings],
    log: FilteringBoundLogger,
    stop: threading.Event,
    health: tuple[str, int] | None = None,
    *,
    creating: bool = True,
    hint: str = "",
) -> None:
    """Wait until `refuse_lost_data` finds no lost data in any namespace, or until `stop` is set.

    The check is repeated every second. The reason is logged, and, unless `stop` is set, the end of the wait too. If
    nothing has to be waited for, return at once; so too if there are only other errors that keep a worker from its
    start. But in a namespace whose data was lost, any `TallyError` or `redis.RedisError` prolongs the wait, because a
    restore may be running.

    Args:
        tenants: The settings of each namespace.
        log: The logger.
        stop: Ends the wait when set.
        health: Address and port at which meanwhile `/readyz` answers 503 with the reason, and `/healthz` 200; `None`
            for no answer.
        creating: Whether the worker may create a deployment.
        hint: Text to add to the reason.

    Raises:
        ConfigurationError: it has to wait, and the port cannot be used.
        ImportError: a namespace has no rules, and its archive needs the package pyarrow, which is not installed.
    """
    lacking = _lacking(tenants, creating=creating, is_waiting=False)
    if not lacking:
        return
    state = StateLog(log, "worker.data_lost", "worker.data_back")
    probe = WaitingProbe()
    server = None if health is None else serve_metrics(CollectorRegistry(), *health, probe)
    try:
        while lacking and not stop.is_set():
            probe.reasons = [reason + hint for _, reason in lacking]
            state.failed("; ".join(probe.reasons))
            stop.wait(POLL)
            waiting = [settings for settings, _ in lacking]
            lacking = _lacking(waiting, creating=creating, is_waiting=True) or _lacking(
                tenants, creating=creating, is_waiting=False
            )
        if not lacking:
            state.works()
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def _lacking(tenants: Sequence[Settings], *, creating: bool, is_waiting: bool) -> list[tuple[Settings, str]]:
    """Return the namespaces that lack data, each with the reason.

    If `is_waiting`, the worker waits for each of `tenants` already, and any other `TallyError` or `redis.RedisError` is
    a reason, too; otherwise it is ignored. An `ImportError` is raised: see `refuse_lost_data`.
    """
    found = []
    for settings in tenants:
        try:
            with closing(connect(settings.redis.url)) as client:
                refuse_lost_data(client, settings, creating=creating)
        except NothingDeclared as error:
            found.append((settings, str(error)))
        except (TallyError, RedisError) as error:
            if is_waiting:  # for example while a restore runs
                found.append((settings, text_of(error)))
    return found


def _of_snapshot(settings: Settings) -> str:
    found = read_snapshot(settings)
    if found is None or not found.last or None in found.last:
        return ""
    taken = min(each.taken for each in found.last if each is not None) / 1000
    return (
        f"The snapshot {found.place} has it up to {format_moment(taken)}. To bring it back, run: tallystream restore "
        f"{found.place} --force"
    )


def _of_archive(settings: Settings) -> str:
    topics = [read_archive(settings, topic) for topic in archived_topics(settings)]
    files = [file for each in topics if each is not None for file in each.last if file is not None]
    if not files:
        return ""
    url, last = without_credentials(settings.archive.url), max(file.last[0] for file in files)
    return (
        f"The archive {url} has its events up to {format_moment(last / 1000)}, but there is no snapshot to restore. To "
        "count the events again, name another folder in [archive] url, start a worker, and run: tallystream replay "
        f"--archive {url} -o events.ndjson, then: tallystream ingest events.ndjson --wait"
    )
