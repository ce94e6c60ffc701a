"""A generation of the counters that is counted until it is live, with a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.deployment import Deployment
from tallystream_worker.cli.progress import entries_bar
from tallystream_worker.rebuild.rebuild import Rebuild, RebuildProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream_worker.settings.settings import Settings


def build(
    settings: Settings,
    deployment: Deployment,
    generation: int,
    archive: str,
    *,
    accept_loss: bool = False,
    begun: bool = False,
    review: Callable[[], bool] = lambda: True,
) -> None:
    """Count a generation until it has caught up, with a bar; switch to it if `review` says so."""
    with Rebuild(settings, deployment, generation, archive=archive, accept_loss=accept_loss) as run:
        if not begun:
            run.begin()
        with entries_bar() as bar:
            task = bar.add_task("counting", total=None, entries=0)

            def show(progress: RebuildProgress) -> None:
                bar.update(task, completed=progress.entries, total=progress.of, entries=progress.entries)

            run.catch_up(show)
        if review():
            run.switch()
