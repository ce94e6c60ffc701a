"""Selects the alerts that a batch can change, with the subjects and buckets for which the script checks them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tallystream.rules.alerts import Alert
    from tallystream.rules.windows import Bucket
    from tallystream.storage.keys import PartitionKeys

_REMEMBERED_MS: Final = 86_400_000
"""Milliseconds after the end of a bucket for which its alert states are kept."""


def looks(
    keys: PartitionKeys,
    alerts: Iterable[tuple[int, Alert]],
    subjects: Collection[str],
    buckets: Mapping[int, Collection[Bucket]],
    received: int,
) -> list[dict[str, Any]]:
    """Return the alerts on one metric that the script checks for a batch, in the form that `alerts.lua` reads.

    Args:
        keys: The keys of the partition.
        alerts: The alerts on the metric without a range, each with the position of its window in `Metric.windows`,
            counted from 1; 0 for the total.
        subjects: All subjects of the metric in the batch.
        buckets: By position of the window, counted from 1, the buckets of the batch.
        received: A millisecond. A bucket that had ended at that time is not checked. 0 for a decision: then the
            script leaves out the buckets that have ended, by the server's clock.

    Returns:
        One map for each alert that has a matching subject, and is on the total or has a bucket to check.
    """
    found = []
    for nth, alert in alerts:
        if nth == 0:
            places: dict[str, tuple[str, int, int]] = {"": (keys.alerting(alert.name, ""), 0, 0)}
        else:
            places = {
                each.label: (keys.alerting(alert.name, each.label), each.end * 1000 + _REMEMBERED_MS, each.end * 1000)
                for each in buckets.get(nth, ())
                if each.end * 1000 > received
            }
        matching = subjects if alert.subject == "*" else [each for each in subjects if alert.matches(each)]
        if matching and places:
            found.append(
                {
                    "name": alert.name,
                    "metric": alert.metric,
                    "nth": nth,
                    "above": int(alert.above is not None),
                    "bound": alert.bound,
                    "clear": alert.cleared_at,
                    "all": int(alert.subject == "*"),
                    "subjects": {} if alert.subject == "*" else dict.fromkeys(matching, 1),
                    "buckets": places,
                }
            )
    return found


def touches(keys: PartitionKeys, alerts: Iterable[Alert], subjects: Collection[str]) -> list[list[str]]:
    """Return a list for each alert that matches a subject: the key of its watched subjects, then the matching ones.

    Args:
        keys: The keys of the partition.
        alerts: The alerts on a range (`over` or `rate`) of one metric.
        subjects: All subjects of the metric in the batch.
    """
    matching = ((alert, [subject for subject in subjects if alert.matches(subject)]) for alert in alerts)
    return [[keys.watched(alert.name), *found] for alert, found in matching if found]
