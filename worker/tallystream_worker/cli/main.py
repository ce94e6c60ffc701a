"""Puts the commands together, and turns every expected error into one line and an exit status."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Final, NoReturn

from cyclopts import App
from redis.exceptions import AuthenticationError, RedisError

from tallystream.client.replies import BROKEN, is_certificate_untrusted
from tallystream.errors import EventError, TallyError
from tallystream_worker.cli.options import current_url

app: Final = App(
    name="tallystream",
    help="Exact event counters on Redis Streams.",
    version=lambda: version("tallystream-worker"),
    help_format="markdown",
)
# By name: the module of a command is imported when it runs, so that `get` does not wait for the web server's.
_COMMANDS: Final = (
    (
        "demo",
        "Start everything, send it a load, and say whether it was counted exactly.",
        "demo --events 1000000 --once",
    ),
    ("up", "Run everything on one machine: server, worker and read service.", "up --data ./tally-data"),
    ("worker", "Count: consumer-group workers only.", "worker --processes 2"),
    ("serve", "Serve totals over HTTP, with /metrics for Prometheus.", "serve --port 8080"),
    ("emit", "Emit one event.", "emit view article:1 --wait"),
    ("ingest", "Emit the events of files.", "ingest access.log.gz --format combined --wait"),
    ("get", "Print the counters of a subject.", "get article:1 view --window hour --last 24"),
    ("top", "Print the subjects with the most.", "top view -n 10 --window 7d --live"),
    ("status", "Print how far counting has come, and whether the ledger balances.", "status --live"),
    ("dead", "Look at entries that could not be counted; retry or drop them.", "dead retry --reason undeclared"),
    ("reset", "Bring the counters of a subject to 0.", "reset article:1 view"),
    ("audit", "Fold everything again and compare it with the live counters.", "audit --json"),
    ("rebuild", "Make the counters anew from the log, and switch to them.", "rebuild --archive ./archive"),
    ("retract", "Take events back, as if they had never happened.", "retract --actor bot:7 --dry-run"),
    ("replay", "Print the events of the log.", "replay --metric view --from 2026-11-01 | head"),
    ("archive", "Write every entry of the streams to Parquet files.", "archive ./archive --every 60"),
    ("acl", "Make a server's users, their passwords, and tokens for HTTP.", "acl ./secrets"),
    ("spool", "Print what waits in a spool, and deliver it.", "spool /var/spool/shop --send"),
    (
        "plan",
        "Calculate what a load needs: partitions, servers, workers, memory, network.",
        "plan --events-per-second 1000000 --subjects 10000000 --metric view",
    ),
    ("snapshot", "Copy the counters into a database, what changed at a time.", "snapshot tally.sqlite --once"),
    ("restore", "Bring the counters of a snapshot back.", "restore tally.sqlite --archive ./archive"),
    ("drill", "Try the backup: restore into a throwaway server and compare.", "drill tally.sqlite"),
    ("check", "Check a configuration, and say what it stores.", "check config/tallystream.toml"),
)
for _number, (_name, _help, _example) in enumerate(_COMMANDS):
    app.command(
        f"tallystream_worker.cli.commands.{_name}:{_name}",
        name=_name,
        help=f"{_help}\n\nExample: `tallystream {_example}`",
        sort_key=_number,
    )


def main() -> NoReturn:
    """Run the command line; exit status 0 only if what was asked for happened."""
    sys.exit(_run())


def _run() -> int:
    try:
        status = app(exit_on_error=True, print_error=True, result_action="return_value")
    except EventError as error:
        return _say(str(error), 2)
    except TallyError as error:
        return _say(str(error), 1)
    except BROKEN as error:
        if isinstance(error, AuthenticationError):
            return _say(f"{current_url()} refuses us: {error}", 1)
        return _say(_unreachable(error), 1)
    except RedisError as error:
        return _say(f"{current_url()} answered: {error}", 1)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): that is its right. Keep Python from saying so at exit.
        sys.stderr.close()
        return 141
    return int(status or 0)


def _unreachable(error: RedisError) -> str:
    if is_certificate_untrusted(error):
        return (
            f"the certificate of {current_url()} is not trusted: {error}. Name the authority that signed it with "
            "?ssl_ca_certs=FILE in the URL, and the host as the certificate has it"
        )
    problem = str(error).rstrip(".")
    return (
        f"cannot reach {current_url()}: {problem}. Name another server with --redis, or start one with: tallystream up"
    )


def _say(message: str, status: int) -> int:
    print(f"tallystream: {message}", file=sys.stderr)  # noqa: T201  # the command line's own voice
    return status
