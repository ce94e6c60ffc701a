"""The options `--replace-rules` and `--yes`: which metrics a command removes, after the user has confirmed it."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream_worker.cli.options import flag
from tallystream_worker.cli.output import error_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tallystream_worker.settings.settings import Settings


@Parameter(name="*")
@dataclass(frozen=True)
class ReplaceRules:
    """The options that remove the stored metrics that the configuration lacks; `removing` returns these metrics."""

    replace_rules: Annotated[bool, flag("remove the stored metrics that the configuration file lacks")] = False
    yes: Annotated[bool, flag("with --replace-rules: remove them without a question")] = False

    def removing(self, settings: Settings) -> list[str]:
        """Return the metrics to remove; print them first, and ask for confirmation unless `yes` is set. Remove nothing.

        They are printed to standard error, with the number of their counted events. If there are none, nothing is
        printed or asked.

        Returns:
            The metrics; empty without `--replace-rules`, or if the configuration lacks none.

        Raises:
            ConfigurationError: the configuration states no metrics, the removal was not confirmed (without a terminal,
                only `yes` confirms it), or `yes` is set without `replace_rules`; or this release cannot read the stored
                data, or the URL of the server cannot be used.
            DeploymentChanged, KeyLost, DamagedValue, redis.RedisError: see `Deployment.find`.
        """
        if not self.replace_rules:
            if self.yes:
                raise ConfigurationError("--yes confirms --replace-rules, which is missing")
            return []
        if not (settings.states_rules and settings.states_metrics):
            raise ConfigurationError(
                "--replace-rules needs a configuration file with [metric.NAME] sections: name it with --config"
            )
        with closing(connect(settings.redis.url)) as client:
            deployment = Deployment.find(client, settings.redis.namespace)
            metrics = settings.missing_from(deployment.declared)
            if metrics:
                self._confirm(client, deployment, metrics)
        return metrics

    def _confirm(self, client: redis.Redis, deployment: Deployment, metrics: Sequence[str]) -> None:
        counted = _counted(client, deployment)
        namespace = deployment.layout.namespace
        error_console.print(f"--replace-rules removes these metrics of the namespace {namespace}:", soft_wrap=True)
        for name in metrics:
            error_console.print(f"  {name}: {counted[name]:,} events were counted", soft_wrap=True)
        error_console.print(
            "Their counters stay in Redis and cannot be read; new events of them become dead letters.", soft_wrap=True
        )
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise ConfigurationError(
                f"--replace-rules would remove {', '.join(metrics)}: confirm it with --yes, because there is no "
                "terminal to ask on"
            )
        error_console.print("Remove them? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ConfigurationError("nothing was removed, and nothing was started: the removal was not confirmed")


def _counted(client: redis.Redis, deployment: Deployment) -> Counter[str]:
    """Return by metric how many of its events were counted in the live generations, by their ledgers."""
    counted: Counter[str] = Counter()
    for keys in deployment.layout.keys:
        ledger: dict[bytes, bytes] = client.execute_command("HGETALL", keys.ledger)
        for name, events in ledger.items():
            if name.startswith(b"counted@"):
                counted[name.removeprefix(b"counted@").decode()] += int(events)
    return counted
