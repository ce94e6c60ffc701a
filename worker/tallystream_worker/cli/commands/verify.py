"""The command `verify`: checks everything together, and prints in one page what is proved, and what is not and why."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Final

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.client.error_text import text_of
from tallystream.deployment import Deployment
from tallystream.errors import DeploymentChanged, KeyLost, TallyError
from tallystream.storage.keys import FIRST_TOPIC
from tallystream_worker.cli.foreign_data import OF_DATA, archive_package, of_data
from tallystream_worker.cli.lost_data import explained
from tallystream_worker.cli.options import AsJson, FromArchive, SnapshotUrl, Where, positive
from tallystream_worker.cli.output import console, error_console, print_json
from tallystream_worker.process.moments import format_moment
from tallystream_worker.rebuild.baseline import opened
from tallystream_worker.verify.verify import verify as run

if TYPE_CHECKING:
    from tallystream_worker.verify.report import Verification

_NOT_CHECKED: Final = 2
_SHOWN: Final = 6


def verify(
    *,
    archive: FromArchive = None,
    snapshot: SnapshotUrl = None,
    sample: Annotated[float, positive("share of the counters to compare with the events, such as 0.01", 1)] = 1.0,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """Check streams, archive, snapshot, counters and ledger together, and print what is proved, and what is not.

    Counting continues meanwhile. The exit status is 0 if every check was made and found nothing wrong, 1 if something
    is wrong, and 2 if nothing wrong was found, but a check could not be made, or the verification failed, for example
    because the server does not reply. Limits of the checks (not_proved in --json), such as entries that retention has
    removed, do not change it.

    Examples:
        tallystream verify
        tallystream verify --archive ./archive --snapshot tally.sqlite --json
    """
    try:
        settings = where.settings()
        with archive_package(), closing(connect(settings.redis.url)) as client:
            topic = FIRST_TOPIC
            with suppress(KeyLost, DeploymentChanged):  # the verification reports it
                topic = Deployment.find(client, settings.redis.namespace).layout.topic
            with (
                opened(settings, archive, snapshot, log=topic) as sources,
                error_console.status("verifying") as status,
            ):
                report = run(client, settings.redis.namespace, sources, sample=sample, show=status.update)
    except BrokenPipeError:
        raise  # the reader of the output has exited
    except (TallyError, RedisError, OSError) as error:
        problem = explained(error) if isinstance(error, TallyError) else text_of(error)
        print(f"tallystream: cannot verify: {problem}", file=sys.stderr)  # noqa: T201  # as cli/main.py prints errors
        return _NOT_CHECKED
    except OF_DATA as error:
        print(f"tallystream: cannot verify: {of_data(error)}", file=sys.stderr)  # noqa: T201  # as above
        return _NOT_CHECKED
    if json:
        print_json(report.summary())
    else:
        _print(report)
    return report.status


def _print(report: Verification) -> None:
    """Print the report in sections: wrong, not checked, proved, not proved."""
    for finding in report.in_order():
        console.print(f"WRONG: {finding.name} ({finding.count:,})", soft_wrap=True)
        console.print(f"  {finding.kind.meaning}", soft_wrap=True)
        for detail in finding.details:
            console.print(f"  - {detail}", soft_wrap=True)
        if finding.count > len(finding.details):
            console.print(f"  - and {finding.count - len(finding.details):,} more")
        console.print(f"  To mend it: {report.remedy(finding)}", soft_wrap=True)
    for title, lines in (
        ("Not checked", [(each.check, each.text) for each in report.failed]),
        ("Proved", [(each.check, each.text) for each in report.proofs]),
        ("Not proved", [(each.check, each.text) for each in report.limits]),
    ):
        if lines:
            console.print(f"{title}:")
        shown: dict[str, int] = {}
        for check, text in lines:
            shown[check] = shown.get(check, 0) + 1
            if shown[check] <= _SHOWN:
                console.print(f"  {check}: {text}", soft_wrap=True)
        for check, count in shown.items():
            if count > _SHOWN:
                console.print(f"  {check}: and {count - _SHOWN:,} more (all with --json)")
    verdict = (
        f"nothing wrong was found{', and everything is proved' if not report.limits else ' in what is proved'}",
        "something is wrong",
        "nothing wrong was found, but not every check could be made",
    )[report.status]
    console.print(f"{verdict}, as of {format_moment(report.at)}")
