"""Verifies a deployment from end to end: runs every check, also after one could not be made."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import RedisError

from tallystream.client.error_text import named_text
from tallystream.client.replies import BROKEN, is_key_missing, is_wrong_type
from tallystream.deployment import Deployment
from tallystream.errors import DeploymentChanged, KeyLost, StreamError, TallyError
from tallystream.storage.keys import Layout
from tallystream_worker.process.failover_watch import FailoverWatch
from tallystream_worker.verify import mends
from tallystream_worker.verify.checks import CHECKS
from tallystream_worker.verify.report import Verification
from tallystream_worker.verify.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tallystream_worker.rebuild.baseline import Sources


_OF_DATA: Final = (ValueError, LookupError, msgspec.MsgspecError)
"""Errors of a value that another client or program wrote, and that has another form than the check expects."""


class Stopped(TallyError):
    """Raised to end a running verification: first by the parameter `show` of `verify`, and then by `verify` too."""


def verify(
    client: redis.Redis,
    namespace: str,
    sources: Sources,
    *,
    sample: float = 1.0,
    show: Callable[[str], Any] = lambda _: None,
) -> Verification:
    """Check the log, the archive, the snapshot, the counters and the ledger of a namespace; return the report.

    Events may be appended and counted meanwhile; only temporary keys are written. An error of one check is noted in
    `failed`, and the other checks run; only a connection to the server that fails or does not reply in time ends all.
    If the data is replaced, or the live topic, generation or rules change meanwhile, the report has no findings, and
    states a check that could not be made; its proofs stay. The same is true if there are findings and a server failed
    over or restarted meanwhile: what was read before and after it may be of different data. If a restore has not
    finished, or the deployment, or a field that describes it, is gone although other keys exist, that is the only
    finding, and nothing is checked.

    Args:
        client: Client of the server.
        namespace: The first part of every key.
        sources: The archive and the snapshot; each may be missing. An archive of other data is not used, and stated in
            `failed`. The snapshot takes the place of entries only if they are gone from the stream and the archive,
            also if it is preferred.
        sample: The share of the counters to compare with the entries, more than 0 and at most 1.
        show: Called now and then with the current step, from several threads. If it raises `Stopped`, so does this
            function, but only after running audits of partitions have ended: raise it in every later call too.

    Raises:
        ConfigurationError: nothing is stored in the namespace, this release cannot read the stored data, or no worker
            has published the rules yet.
        KeyLost: the description of the deployment was lost, or lost a field, during the verification.
        DamagedValue: a number in that description, or the mark of a live generation, has another form than tallystream
            writes.
        Stopped: `show` raised it.
        redis.ConnectionError, redis.TimeoutError: the server does not reply.
        redis.RedisError: the server rejects INFO, or a command that reads the description of the deployment.
    """
    report = Verification(time.time())
    try:
        found = Deployment.find(client, namespace)
    except DeploymentChanged as error:
        report.find("deployment.restore_unfinished", str(error))
        return report
    except KeyLost as error:
        if client.exists(error.key):
            report.find("fields.lost", str(error))
        else:
            root = Layout(namespace=namespace).root
            report.find("deployment.missing", f"{error.key} does not exist, but {root} does")
        mends.note_snapshot(report, sources.snapshot, namespace)
        return report
    if not found.is_stored:
        pattern = namespace.translate({ord(c): f"\\{c}" for c in "*?[]\\"})
        key = next(iter(client.scan_iter(match=f"{pattern}:*", count=1000)), None)
        if key is not None:
            report.find("deployment.missing", f"{found.layout.root} does not exist, but {key.decode()} does")
            mends.note_snapshot(report, sources.snapshot, namespace)
            return report
        found.ensure_stored()
    found.ensure_declared()
    scene = Scene(client, found, _of_this_data(sources, found, report), report, sample, show)
    failovers = FailoverWatch(client, found.layout)
    for check in CHECKS:
        show(check.name)
        try:
            check.run(scene)
        except Stopped:
            raise
        except BROKEN:
            raise
        except (TallyError, RedisError, OSError, *_OF_DATA) as error:  # OSError: a temporary file cannot be written
            report.fail(check.name, _reason(error, report))
    if report.findings:
        mends.note(scene)
    _refuse_a_switch(client, scene)
    _refuse_a_failover(scene, failovers)
    return report


def _of_this_data(sources: Sources, deployment: Deployment, report: Verification) -> Sources:
    """Return the sources of a verification, without an archive of other data: it is stated in `report.failed`.

    Entries of different data have no order among them, so no check can compare them. A snapshot is not preferred. An
    archive whose manifest cannot be read is not left out, so that a check reports it.
    """
    found = replace(sources, prefers_snapshot=False)
    if found.archive is None:
        return found
    layout = deployment.layout
    ours = {"epoch": deployment.epoch, "namespace": layout.namespace, "partitions": layout.partitions}
    try:
        manifest = found.archive.manifest() or {}
    except TallyError:
        return found
    if not (differing := [name for name, value in ours.items() if manifest.get(name, value) != value]):
        return found
    report.fail(
        "archive",
        f"{found.archive.place} is the archive of other data (different {', '.join(differing)}), so no entry was "
        "compared with it. If the server has lost this data: tallystream restore --force; otherwise name another "
        "folder in [archive] url",
    )
    return replace(found, archive=None)


def _refuse_a_failover(scene: Scene, failovers: FailoverWatch) -> None:
    """Discard all findings, and report a failed check, if a server failed over or restarted, or a slot moved.

    Only what happened after `failovers` was made counts. Without findings, do nothing.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    if not scene.report.findings:
        return
    try:
        failovers.ensure_none("the data was checked", "run the verification again")
    except StreamError as error:
        scene.report.findings.clear()
        scene.report.fail("deployment", str(error))


def _reason(error: Exception, report: Verification) -> str:
    """Return a text on why a check could not be made; if a finding explains the error, the text names the finding."""
    if is_wrong_type(error) and "keys.mistyped" in report.findings:
        return "a key has another type: see the fault keys.mistyped"
    if isinstance(error, KeyLost) or (isinstance(error, RedisError) and is_key_missing(error)):
        what = f"{error.key} is lost" if isinstance(error, KeyLost) else "a key that is needed does not exist"
        for name in ("keys.lost", "log.missing"):
            if name in report.findings:
                return f"{what}: see the fault {name}"
        return str(error) if isinstance(error, KeyLost) else what
    if isinstance(error, OSError):
        return f"{error}. Remove the cause, such as a full disk, and run the verification again"
    if isinstance(error, _OF_DATA) and not isinstance(error, TallyError):
        return f"a stored value has a form that tallystream never writes ({named_text(error)})"
    return str(error)


def _refuse_a_switch(client: redis.Redis, scene: Scene) -> None:
    """Discard all findings, and report a failed check, if the data, topic, generation or rules changed meanwhile.

    Proofs and limits stay.

    Raises:
        ConfigurationError: this release cannot read the stored layout version or rules.
        KeyLost: the description of the deployment is lost, or has lost a field.
        DamagedValue: a value in that description, or a live generation, has another form than tallystream writes.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    try:
        now = scene.deployment.reload(client)
    except DeploymentChanged as error:
        scene.report.findings.clear()
        scene.report.fail("deployment", str(error))
        return
    if now.layout != scene.deployment.layout or now.declared != scene.deployment.declared:
        scene.report.findings.clear()
        scene.report.fail(
            "deployment", "the live topic, generation or rules changed during the verification: run it again"
        )
