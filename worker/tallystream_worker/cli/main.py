"""Puts the commands together, and turns every expected error into one line and an exit status."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Final, NoReturn

from cyclopts import App
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tallystream.errors import EventError, TallyError
from tallystream_worker.cli import check, data, ranking, run
from tallystream_worker.cli.options import current_url

app: Final = App(
    name="tallystream",
    help="Exact event counters on Redis Streams.",
    version=lambda: version("tallystream-worker"),
    help_format="markdown",
)
app.command(run.demo)
app.command(run.up)
app.command(run.worker)
app.command(run.serve)
app.command(data.emit)
app.command(data.ingest)
app.command(data.get)
app.command(ranking.top)
app.command(data.status)
app.command(ranking.reset)
app.command(check.check)


def main() -> NoReturn:
    """Run the command line; exit status 0 only if what was asked for happened."""
    sys.exit(_run())


def _run() -> int:
    try:
        status = app(exit_on_error=True, print_error=True, result_action="return_value")
    except EventError as error:
        return _say(f"the event was refused: {error}", 2)
    except TallyError as error:
        return _say(str(error), 1)
    except (RedisConnectionError, RedisTimeoutError) as error:
        if isinstance(error, AuthenticationError):
            return _say(f"{current_url()} refuses us: {error}", 1)
        return _say(
            f"cannot reach {current_url()}: {error}. "
            "Name another server with --redis, or start one with: tallystream up",
            1,
        )
    except RedisError as error:
        return _say(f"{current_url()} answered: {error}", 1)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): that is its right. Keep Python from saying so at exit.
        sys.stderr.close()
        return 141
    return int(status or 0)


def _say(message: str, status: int) -> int:
    print(f"tallystream: {message}", file=sys.stderr)  # noqa: T201  # the command line's own voice
    return status
