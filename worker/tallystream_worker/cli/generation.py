"""Builds a generation and switches to it, with a progress bar, for the commands `rebuild` and `retract`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import TallyError
from tallystream_worker.cli.backup import note_retractions
from tallystream_worker.cli.output import error_console
from tallystream_worker.cli.progress import entries_bar
from tallystream_worker.cli.unfinished import stating_unfinished
from tallystream_worker.rebuild.rebuild import Rebuild, RebuildProgress
from tallystream_worker.rebuild.turn import take_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream_worker.settings.settings import Settings


def finish_switch(settings: Settings, deployment: Deployment, archive: str) -> Deployment:
    """If some partitions are not in the live generation, catch up there and switch them; else do nothing.

    This is so if a switch was interrupted, or if a failover has undone it in these partitions. A line on standard error
    states this. No loss of entries is accepted.

    Returns:
        The deployment, read again if partitions were switched; else `deployment` itself.

    Raises:
        TallyError, ImportError, redis.RedisError: see `take_turn` and `build`; partitions that have switched stay
            switched.
    """
    if not deployment.is_half_switched:
        return deployment
    with closing(connect(settings.redis.url)) as client:
        turn = take_turn(client, deployment)
        deployment = deployment.reload(client)  # an earlier command may have finished the switch
        if not deployment.is_half_switched:
            return deployment
        generation = deployment.generation
        error_console.print(
            f"some partitions are not in generation {generation}: a switch was interrupted, or a failover has undone "
            "it there. They are switched now"
        )
        build(settings, deployment, generation, archive, turn=turn)
        return deployment.reload(client)


def build(
    settings: Settings,
    deployment: Deployment,
    generation: int,
    archive: str,
    *,
    accept_loss: bool = False,
    begun: bool = False,
    turn: int | None = None,
    review: Callable[[Rebuild], bool] = lambda _: True,
) -> None:
    """Count a generation until it has caught up, with a progress bar; make it the live one if `review` returns true.

    Before and after the switch, write the retractions of its rules into the snapshot and the archive; without a switch,
    write neither.

    Args:
        settings: The configuration.
        deployment: The deployment that the generation is part of.
        generation: Number of the generation.
        archive: URL of the archive; `""` for none.
        accept_loss: Continue although entries are gone from the streams and the archive.
        begun: The generation was live before and is kept: it has its consumer groups, so they are not created.
        turn: The number of the command: see `Rebuild`.
        review: Called once after the catch-up with the `Rebuild`; the switch is made only if it returns true.

    Raises:
        ConfigurationError: entries are gone, no archive is named, and no loss is accepted; the generation has no
            stored rules, and none are published; or the URL of the server or of the archive cannot be used.
        StreamError: entries are missing, or another rebuild counts the generation; no switch was made. Or a third
            generation is live, this one did not catch up with the live one, a node failed over meanwhile, a partition
            has lost a key (`KeyLost`), a stored value has a form that tallystream never writes (`DamagedValue`), or the
            data was replaced (`DeploymentChanged`); some partitions may have switched.
        Unconfirmed: the switch was not confirmed in time; some or all partitions have switched.
        ArchiveError, CodecError: the archive cannot be read, or a row of it is damaged; no switch was made.
        ImportError: an archive is named, and the package pyarrow is not installed; no switch was made.
        SnapshotError, ArchiveError: a retraction could not be noted in the backup: before the switch, which was not
            made, or after it, and the generation is live.

    Any error of `review` and of `CountingLoop.run_once`, such as a `redis.RedisError`, is raised too; in the second
    case, some partitions may have switched.
    """
    with (
        stating_unfinished(settings, deployment),
        Rebuild(settings, deployment, generation, archive=archive, accept_loss=accept_loss, turn=turn) as run,
    ):
        if not begun:
            run.begin()
        with entries_bar() as bar:
            task = bar.add_task("counting", total=None, entries=0)

            def show(progress: RebuildProgress) -> None:
                bar.update(task, completed=progress.entries, total=progress.of, entries=progress.entries)

            run.catch_up(show)
        if review(run):
            # Before the switch: a backup that is older than a retraction must not bring its events back. Also after it,
            # because a snapshot that began before the switch may have overwritten the note.
            retracted = deployment.rules_of(generation).retracted
            note_retractions(settings, deployment, archive, retracted)
            run.switch()
            try:
                note_retractions(settings, deployment, archive, retracted)
            except TallyError:
                error_console.print(
                    f"generation {generation} is live, but its retractions may be missing in a backup:", soft_wrap=True
                )
                raise
