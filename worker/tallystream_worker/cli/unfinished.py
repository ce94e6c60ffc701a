"""States which rebuild, repartition or restore is unfinished, and the commands that continue it or give it up."""

from __future__ import annotations

from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.errors import TallyError
from tallystream.storage.deployment_hash import RESTORING
from tallystream.storage.keys import Layout
from tallystream_worker.cli.output import error_console

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream_worker.settings.settings import Settings

_GIVE_UP: Final = "tallystream rebuild --drop"


def unfinished(deployment: Deployment) -> Iterator[str]:
    """Yield a line for each unfinished removal, rebuild, retraction and repartition.

    Each line has the commands to continue it, and to give it up if that is possible. The deployment is not read again.
    """
    for dropped in sorted(deployment.dropping):
        yield f"removal: generation {dropped} is removed in part: remove the rest with: {_GIVE_UP}"
    if (number := deployment.building) is not None and number not in deployment.dropping:
        live, new = deployment.declared, deployment.others.get(number)
        is_retraction = live is not None and new is not None and len(new.retracted) > len(live.retracted)
        command = "retract" if is_retraction else "rebuild"
        yield (
            f"rebuild: generation {number} is being built: run the same tallystream {command} command to continue, or "
            f"give it up with: {_GIVE_UP}"
        )
    if (number := deployment.moving) is not None:
        yield (
            f"repartition: topic {number} is being filled: run the same tallystream rebuild command to continue, or "
            f"give it up with: {_GIVE_UP}"
        )


@contextmanager
def stating_unfinished(settings: Settings, deployment: Deployment) -> Iterator[None]:
    """If an error ends the context, print to standard error the lines of `unfinished` then; raise the error unchanged.

    Print nothing if the error itself states how to give it up, if it is not a `TallyError`, `RedisError`, `OSError` or
    `ImportError`, or if the server cannot be read.
    """
    try:
        yield
    except (TallyError, RedisError, OSError, ImportError) as error:
        if _GIVE_UP not in str(error):
            with suppress(TallyError, RedisError), closing(connect(settings.redis.url)) as client:
                for line in unfinished(deployment.reload(client)):
                    error_console.print(line, soft_wrap=True, markup=False)
        raise


@contextmanager
def stating_unfinished_restore(client: redis.Redis, namespace: str) -> Iterator[None]:
    """If an error ends the context, and a restore is unfinished then, print this to standard error; raise the error.

    Print nothing if another restore is running or has taken over, if the error is not a `TallyError`, `RedisError`,
    `OSError` or `ImportError`, or if the server cannot be read.
    """
    from tallystream_worker.snapshot.restore_lock import RestoreOvertaken  # noqa: PLC0415  # only `restore` needs it

    try:
        yield
    except RestoreOvertaken:
        raise
    except (TallyError, RedisError, OSError, ImportError):
        with suppress(RedisError):
            if client.hexists(Layout(namespace=namespace).root, RESTORING):
                error_console.print(
                    "the restore is not finished, so nothing is counted or read: remove the cause, and run the same "
                    "command again",
                    soft_wrap=True,
                )
        raise
