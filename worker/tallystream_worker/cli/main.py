"""The entry point of the command line: registers the commands, and turns errors into one line and an exit status."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn, cast

from cyclopts import App
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from tallystream.client.error_text import text_of
from tallystream.client.replies import BROKEN, is_certificate_untrusted
from tallystream.errors import EventError, TallyError
from tallystream.rules.metrics import UndeclaredMetric
from tallystream_worker.cli.foreign_data import OF_DATA, archive_package, of_data
from tallystream_worker.cli.lost_data import explained
from tallystream_worker.cli.options import current_url, how_to_declare
from tallystream_worker.process.signals import INTERRUPTED, exit_on_interrupt, raise_on_interrupt

_OF_UP: Final = Path("tally-data/server.sock")
"""The socket of a server that `tallystream up` has started in this folder with its default options."""

app: Final = App(
    name="tallystream",
    help="Exact event counters on Redis Streams.",
    version=lambda: version("tallystream-worker"),
    help_format="markdown",
)
"""The command line with its commands."""

# Registered by name: the module of a command is imported when it runs, so `get` does not wait for the web server.
_COMMANDS: Final = (
    (
        "demo",
        "Start everything, emit a load, and check that every event was counted.",
        "demo --events 1000000 --once",
    ),
    ("up", "Run everything on one machine: server, worker and read service.", "up --data ./tally-data"),
    ("worker", "Count events.", "worker --processes 2"),
    ("serve", "Serve totals over HTTP, with /metrics for Prometheus.", "serve --port 8080"),
    ("emit", "Emit one event.", "emit view article:1 --wait"),
    ("ingest", "Emit the events of files.", "ingest access.log.gz --format combined --wait"),
    ("get", "Print the counters of a subject.", "get article:1 view --window hour --last 24"),
    ("top", "Print the subjects with the largest totals of a metric.", "top view -n 10 --window 7d --live"),
    ("status", "Print lag, pending entries and dead letters, and whether the ledger balances.", "status --live"),
    (
        "dead",
        "List, retry or drop the dead letters: entries that could not be counted.",
        "dead retry --reason 'not declared'",
    ),
    ("reopen", "Continue after keys were lost, if there is no snapshot.", "reopen"),
    ("reset", "Bring the counters of a subject to 0.", "reset article:1 view"),
    ("verify", "Check streams, archive, snapshot, counters and ledger, and print what is proved.", "verify --json"),
    ("audit", "Fold all events again and compare the result with the live counters.", "audit --json"),
    ("rebuild", "Count history again, and switch to the new counters.", "rebuild --archive ./archive"),
    (
        "retract",
        "Take back events that were appended until now, as if they had never happened.",
        "retract --actor bot:7 --dry-run",
    ),
    ("replay", "Print the stored events.", "replay --metric view --from 2026-11-01 | head"),
    ("archive", "Write every entry of the streams to Parquet files.", "archive ./archive --every 60"),
    ("acl", "Make the users of a server, their passwords, and tokens for HTTP.", "acl ./secrets"),
    ("spool", "Print the events that dead processes left in a spool, and send them.", "spool /var/spool/shop --send"),
    (
        "plan",
        "Calculate what a load needs: partitions, servers, workers, memory, network.",
        "plan --events-per-second 1000000 --subjects 10000000 --metric view",
    ),
    ("snapshot", "Copy changed counters into a database.", "snapshot tally.sqlite --once"),
    ("restore", "Restore the counters of a snapshot.", "restore tally.sqlite --archive ./archive"),
    ("drill", "Test the backup: restore it into a throwaway server and compare.", "drill tally.sqlite"),
    ("rules", "Print the stored rules, or the changes of them.", "rules --history"),
    ("check", "Check a configuration, and print what it stores.", "check config/tallystream.toml"),
)
for _number, (_name, _help, _example) in enumerate(_COMMANDS):
    app.command(
        f"tallystream_worker.cli.commands.{_name}:{_name}",
        name=_name,
        help=f"{_help}\n\nExample: `tallystream {_example}`",
        sort_key=_number,
    )


def main() -> NoReturn:
    """Run the command line of this process and exit; the status is 0 only if the command succeeded.

    The status is 1 for an error, and 2 for a wrong argument or event; in some commands, 1 and 2 have other meanings. An
    error of tallystream, of the Redis client or of the operating system is printed in a line, and so is one of
    `OF_DATA`; any other one, such as an `ImportError`, ends the process with a traceback and the status 1. Ctrl-C
    causes no traceback: a command that runs until it, such as `worker`, then ends with its own status, which may be 0;
    any other one with 130. If the reader of the output has exited (`| head`), the status is 141, and nothing is
    printed.
    """
    sys.exit(_run())


def _run() -> int:  # noqa: PLR0911  # one for each kind of error
    try:
        status = _command()
    except EventError as error:
        return _say(_refusal(error), 2)
    except TallyError as error:
        return _say(explained(error), 1)
    except BROKEN as error:
        return _say(_unreachable(error), 1)
    except RedisError as error:
        return _say(f"{current_url()} replied with an error: {text_of(error)}", 1)
    except KeyboardInterrupt:
        return _say("stopped", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has exited (`| head`), which is not an error. Keep Python from reporting it at exit.
        sys.stderr.close()
        return 141
    except OSError as error:
        return _say(f"{error}. Remove the cause, such as a full disk, and run the command again", 1)
    except UnicodeEncodeError as error:
        return _say(f"{error}. Set PYTHONIOENCODING=utf-8, and run the command again", 1)
    except OF_DATA as error:
        return _say(of_data(error), 1)
    return int(status or 0)


def _command() -> int | None:
    """Run the command that the arguments name, and return its exit status; `None` stands for 0.

    `KeyboardInterrupt` is raised only while the command itself runs, not while its module is imported.

    Raises:
        ConfigurationError: the command needs the package pyarrow, which is not installed.
        SystemExit: the arguments are wrong; the status is 2.

    Any error of the command is raised too.
    """
    exit_on_interrupt()
    command, bound, _ = app.parse_args(exit_on_error=True, print_error=True)
    raise_on_interrupt()
    try:
        with archive_package():
            return cast("int | None", command(*bound.args, **bound.kwargs))
    finally:
        exit_on_interrupt()


def _refusal(error: EventError) -> str:
    if isinstance(error, UndeclaredMetric):
        return f"{error.field}: {error.fault}. {how_to_declare(error.metric)}"
    return str(error)


def _unreachable(error: RedisError) -> str:
    if isinstance(error, AuthenticationError):
        return f"{current_url()} refuses the login: {error}. Check the user and the password in the URL"
    if is_certificate_untrusted(error):
        return (
            f"the certificate of {current_url()} is not trusted: {error}. Add ?ssl_ca_certs=FILE to the URL, with the "
            "authority that signed the certificate, and use the host name that is in the certificate"
        )
    problem = str(error).rstrip(".")
    if isinstance(error, BusyLoadingError):
        return f"{current_url()} has just started, and reads its data: {problem}. Wait, and run the command again"
    if _OF_UP.is_socket() and current_url() != f"unix://{_OF_UP}":
        advice = f"Here is a server of tallystream up: export TALLYSTREAM_REDIS_URL=unix://{_OF_UP}"
    else:
        advice = "Name another server with --redis, or start one with: tallystream up"
    return f"cannot reach {current_url()}: {problem}. {advice}"


def _say(message: str, status: int) -> int:
    print(f"tallystream: {message}", file=sys.stderr)  # noqa: T201  # the command line prints its errors here
    return status
