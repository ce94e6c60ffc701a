"""The checks at the end of a scenario: balance, pairs, replay and ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from tallystream.errors import CodecError, EventError
from tallystream.reading.ledger import query_ledger
from tallystream.wire import codec
from tallystream.wire.event import MAX_AHEAD
from tallystream.wire.stream_id import parse_id
from tests.faults.failure import Failure
from tests.faults.processes import RULES
from tests.faults.watch import PAIR
from tests.oracle_rules import Happened, tally

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import redis

    from tallystream.reading.totals import Totals
    from tallystream.storage.keys import Layout
    from tallystream.wire.codec import Payload
    from tests.faults.journal import Account
    from tests.harness import Harness

Totalled = dict[tuple[str, str], int]


@dataclass(frozen=True)
class Balance:
    """The difference between the totals and the journals, in events.

    An event that is unknown to its producer is never lost, and it is not doubled if it was counted once.
    """

    lost: int
    doubled: int
    failures: list[Failure]


def balance(account: Account, totals: Totalled, *, exempt: Collection[str] = (), loss: str = "") -> Balance:
    """Compare the totals of the pairs with the journals, counter by counter, and return the difference.

    A total must be at least the confirmed amount, unless `loss` is set, and at most confirmed plus unknown.

    Args:
        account: The sums of the journals.
        totals: The totals of the system.
        exempt: Subjects that are skipped, because their events may be dead-lettered or lost.
        loss: The reason that confirmed events may be missing; empty if they may not.
    """
    failures = []
    lost = doubled = 0
    for subject in sorted(account.confirmed.keys() | account.unknown.keys() | {s for _, s in totals}):
        if subject in exempt:
            continue
        least = account.confirmed[subject]
        most = least + account.unknown[subject]
        for metric in PAIR:
            total = totals.get((metric, subject), 0)
            lost += max(0, least - total)
            doubled += max(0, total - most)
            if total > most or (total < least and not loss):
                failures.append(Failure("B", f"{metric} of {subject}: {total}, must be {least} to {most}"))
    return Balance(lost, doubled, failures[:5])


def pairs(totals: Totalled, *, exempt: Collection[str] = ()) -> list[Failure]:
    """Return a failure for each subject whose totals of the two metrics of a pair differ, at most five."""
    subjects = {subject for metric, subject in totals if metric in PAIR} - set(exempt)
    differ = [s for s in sorted(subjects) if len({totals.get((metric, s), 0) for metric in PAIR}) > 1]
    return [
        Failure("P", f"{s} has " + " and ".join(f"{totals.get((metric, s), 0)} {metric}s" for metric in PAIR))
        for s in differ[:5]
    ]


def books(totals: Totals) -> tuple[int, list[Failure]]:
    """Return the number of events that the ledger does not account for, and the failures.

    It is a failure if that number is not 0, or if entries are still waiting to be counted.
    """
    found = totals.run(query_ledger(totals.deployment.layout))
    if found.unaccounted is None:
        return 0, [Failure("D", f"not at rest: {found.summary()}")]
    if found.unaccounted:
        return found.unaccounted, [Failure("D", f"{found.unaccounted} events are unaccounted for: {found.summary()}")]
    return 0, []


def rests(client: redis.Redis, layout: Layout) -> bool:
    """Return whether no entry of any partition is undelivered or pending."""
    for keys in layout.keys:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.xinfo_stream(keys.stream)
            pipeline.xinfo_groups(keys.stream)
            stream, groups = pipeline.execute(raise_on_error=False)
        if isinstance(stream, ResponseError):
            if "no such key" in str(stream):
                continue
            raise stream
        group = next((group for group in groups if group["name"] == keys.group.encode()), None)
        if group is None or group["pending"] or group["last-delivered-id"] != stream["last-generated-id"]:
            return False
    return True


def windows(client: redis.Redis, layout: Layout) -> dict[tuple[str, str], int]:
    """Return the sum over all hour buckets for each metric of a pair and each subject; it must equal the total."""
    sums: Counter[tuple[str, str]] = Counter()
    for keys in layout.keys:
        for metric in PAIR:
            for key in client.scan_iter(match=f"{keys.window('hour', metric, '')}*", count=1000):
                for subject, amount in client.hgetall(key).items():
                    sums[metric, subject.decode()] += int(amount)
    return dict(sums)


def replay(harness: Harness, empty: Harness, known: Collection[str], exempt: Collection[str]) -> list[Failure]:
    """Count the topic again, with the system on an empty database and with the oracle; return at most five differences.

    Args:
        harness: The system after the scenario.
        empty: An empty place to count in: another database, or another server.
        known: The metrics to compare: those whose totals do not depend on the order of the entries.
        exempt: Subjects to skip, because their totals do, such as a counter at its limit.
    """
    live = _of(known, harness.totals())
    for keys, copies in zip(harness.layout.keys, empty.layout.keys, strict=True):
        entries = harness.client.xrange(keys.stream)
        with empty.client.pipeline(transaction=False) as pipeline:
            for id_, fields in entries:
                pipeline.xadd(copies.stream, fields, id=id_)
            pipeline.execute()
    empty.finish()
    oracle = _of(known, tally(happened(harness.client, harness.layout), RULES.metric).totals)
    failures = []
    for name, other in (("a replay", _of(known, empty.totals())), ("the oracle", oracle)):
        for counter in sorted(counter for counter in live.keys() | other.keys() if counter[1] not in exempt):
            if live.get(counter, 0) != other.get(counter, 0):
                message = f"{counter}: {live.get(counter, 0)} live, {other.get(counter, 0)} by {name}"
                failures.append(Failure("R", message))
    return failures[:5]


def happened(client: redis.Redis, layout: Layout) -> list[Happened]:
    """Return the events of all entries of the topic, in the form of the oracle."""
    return [event for keys in layout.keys for entry in client.xrange(keys.stream) for event in _told(*entry)]


def _of(known: Collection[str], totals: Mapping[tuple[str, str], int]) -> Totalled:
    return {(metric, subject): total for (metric, subject), total in totals.items() if metric in known}


def _told(id_: bytes, fields: dict[bytes, bytes]) -> Iterator[Happened]:
    """Yield the events of an entry in the oracle's form, without those that are too far in the future.

    An entry that cannot be decoded yields none.
    """
    entry = parse_id(id_.decode())
    received = codec.received_of(id_.decode(), fields)
    try:
        payload = codec.decode(fields, received)
    except (CodecError, EventError):
        return
    for n, (metric, subject, amount, events, at, actor, event_id) in enumerate(_events(payload)):
        if metric not in RULES.metric or at > received + MAX_AHEAD * 1000:
            continue
        yield Happened(metric, subject, amount, at, received, actor, event_id, place=(*entry, n))
        # A packed sum represents several events. Their single amounts do not matter to a plain count, so the first
        # gets the whole amount.
        for _ in range(events - 1):
            yield Happened(metric, subject, 0, at, received)


def _events(payload: Payload) -> Iterator[tuple[Any, ...]]:
    for group in payload.groups:
        at = group.minute * 60_000 + 59_999
        for subject in group.ones:
            yield group.metric, subject, 1, 1, at, None, None
        for subject, count in group.counts.items():
            yield group.metric, subject, count, count, at, None, None
        for subject, (amount, count) in group.sums.items():
            yield group.metric, subject, amount, count, at, None, None
    for single in payload.singles:
        yield single.metric, single.subject, single.amount, 1, single.at, single.actor, single.id
