"""The list of checks of a verification, in the order in which they run. A new check is one more entry here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream_worker.verify import (
    accounts,
    counters,
    dead,
    deployment,
    forms,
    keys,
    leaderboards,
    log,
    lost_fields,
    lost_keys,
    lost_rules,
    server,
    snapshots,
    sums,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream_worker.verify.scene import Scene


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: Its name in the report.
        run: Adds what it finds, proves and does not prove to the report of the scene. If it raises an error, what it
            added before stays, and `verify` notes the error in `Verification.failed`, or ends with it.
    """

    name: str
    run: Callable[[Scene], None]


CHECKS: Final = (
    Check("deployment", deployment.check),
    Check("server", server.check),
    Check("keys", keys.check),
    Check("lost", lost_keys.check),
    Check("fields", lost_fields.check),
    Check("forms", forms.check),
    Check("rules", lost_rules.check),
    Check("log", log.check),
    Check("accounts", accounts.check),
    Check("dead", dead.check),
    Check("counters", counters.check),
    Check("sketches", counters.check_sketches),
    Check("sums", sums.check),
    Check("leaderboards", leaderboards.check),
    Check("snapshot", snapshots.check),
)
"""All checks, in the order in which they run."""
