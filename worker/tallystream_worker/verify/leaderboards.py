"""Checks leaderboards against the counters: each place has the value of its counter, and no subject is left out.

A leaderboard keeps the subjects with the largest values. A subject that is not on a full one has at most its last
value, or at most the bound that the ledger has, because values have fallen. If `top` was added or raised later,
subjects may be missing: reads then state leaderboards of buckets as missing, and an error for that of all time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream.reading.deployment_cache import removed_ends
from tallystream.reading.leaderboards import bound_field
from tallystream.rules.parts import ALL_TIME, BOARDS, board_length
from tallystream.rules.windows import labelled
from tallystream_worker.rebuild.drop import counter_keys
from tallystream_worker.rebuild.values import exact
from tallystream_worker.verify.pages import PAGE, pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tallystream.rules.metrics import Metric
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.verify.scene import Scene


@dataclass(frozen=True)
class _Board:
    """A leaderboard as it was read; `key` and `values` are the full keys of it and of its counters.

    `values` is the prefix of the keys of totals, or the key of the hash of a bucket. `window` is that of the bucket,
    `None` for the totals. `scores` has the value of each subject on the leaderboard.
    """

    metric: str
    rule: Metric
    key: str
    values: str
    window: str | None
    scores: dict[bytes, int | float]

    def counter(self, subject: bytes) -> str:
        """Return the full name of a subject's counter: the key of its total, or `<key of the bucket> -> <subject>`.

        Without the prefix of all counters, it is a `Difference.counter`.
        """
        if self.window is None:
            return self.values + subject.decode(errors="surrogateescape")
        return f"{self.values} -> {subject.decode(errors='backslashreplace')}"

    @property
    def is_full(self) -> bool:
        return len(self.scores) >= board_length(self.rule.top)

    @property
    def last(self) -> int | float:
        return min(self.scores.values(), default=0)

    def may_be_wrong(self, subject: bytes, value: int) -> bool:
        """Return whether a subject's place has another value, or the subject is left out although it is large enough.

        `value` is that of its counter, which was read after the leaderboard: so `True` is only a suspicion. It is large
        enough if it is above the last value of a full leaderboard, or not 0 if the leaderboard is not full.
        """
        if subject in self.scores:
            return self.scores[subject] != value
        return value > self.last if self.is_full else value != 0


def check(scene: Scene) -> None:
    """Report places without the value of their counter, and subjects that are left out although they are large enough.

    If a place has another value than 0, but its counter does not exist, the counter is reported. Counters that the
    check of the counters has reported are left out. The number of leaderboards without a fault is added as proved.

    Leaderboards of metrics with a sketch are stated in the report's limits, as not proved: this does not change the
    exit status. Those that may lack subjects, because the rule was changed (see `_boards`), are left out without a
    report; so are leaderboards of buckets, if the leaderboard does not exist.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    for metric, rule in sorted(scene.rules.metric.items()):
        if rule.top and (not rule.exact or rule.max_subjects is not None):
            scene.report.limit("leaderboards", f"{metric}: its leaderboard has estimates of a sketch")
    agreeing = 0
    for _, keys in scene.streams():
        for board, values in _boards(scene, keys):
            faults_before = scene.report.faults
            suspects: set[bytes] = set()
            seen: set[bytes] = set()
            for subject, value in values:
                if subject in board.scores:
                    seen.add(subject)
                if board.may_be_wrong(subject, value):
                    suspects.add(subject)
                    if len(suspects) >= PAGE:
                        _look_again(scene, keys, board, suspects)
                        suspects.clear()
            _look_again(scene, keys, board, suspects | (board.scores.keys() - seen))
            is_wrong = any(
                stream == keys.stream and counter.startswith(f"{board.key.removeprefix(keys.counters)} -> ")
                for stream, counter in scene.report.differing
            )
            agreeing += scene.report.faults == faults_before and not is_wrong
    if agreeing:
        scene.report.prove(
            "leaderboards", f"{agreeing:,} leaderboards agree with their counters",
            faults_before=scene.report.faults, boards=agreeing,
        )  # fmt: skip


def _boards(scene: Scene, keys: PartitionKeys) -> Iterator[tuple[_Board, Iterable[tuple[bytes, int]]]]:
    """Yield each leaderboard of exact values, and the values of all subjects of its metric or bucket, read after it.

    Left out are leaderboards that may lack subjects: that of all time while a partition has not counted by a new rule
    that adds or raises `top`, or ends a sketch; and those of buckets that began before `top` was last added or raised,
    or in the hour after. A leaderboard of all time that does not exist is yielded without scores; one of a bucket is
    left out.
    """
    kept = {
        name: rule for name, rule in scene.rules.metric.items() if rule.top and rule.exact and rule.max_subjects is None
    }
    removed = _removed(scene)
    for metric, rule in kept.items():
        if f"{ALL_TIME}:{metric}" in removed:
            continue
        key, prefix = keys.top(metric), f"{keys.counters}total:{metric}:"
        scores = _scores(scene, key)
        yield _Board(metric, rule, key, prefix, None, scores), _totals(scene, keys, prefix)
    begin = f"{keys.counters}top:"
    for raw in counter_keys(scene.client, keys):
        name = raw.decode(errors="surrogateescape").removeprefix(begin)
        window, _, rest = name.partition(":")
        metric, _, label = rest.partition(":")
        if not raw.startswith(begin.encode()) or not label or metric not in kept:
            continue
        bucket = labelled(window, label, scene.rules.zone)
        if bucket is None or bucket.start < removed.get(f"{BOARDS}:{metric}", 0):
            continue
        hash_ = keys.window(window, metric, label)
        scores = _scores(scene, begin + name)
        fields = ((field, int(value)) for field, value in scene.client.hscan_iter(hash_, count=PAGE))
        yield _Board(metric, kept[metric], begin + name, hash_, window, scores), fields


def _removed(scene: Scene) -> dict[str, int]:
    """Return, by `<kind>:<metric>`, the ends of removed buckets, and the marks of changed rules, in seconds since 1970.

    Each is the latest one of all partitions. A mark is 2^53 while a partition has not counted by the changed rule.
    """
    return removed_ends([scene.client.hgetall(keys.forgotten) for keys in scene.deployment.layout.keys], scene.rules)


def _scores(scene: Scene, key: str) -> dict[bytes, int | float]:
    return {member: exact(score) for member, score in scene.client.zrange(key, 0, -1, withscores=True)}


def _totals(scene: Scene, keys: PartitionKeys, prefix: str) -> Iterator[tuple[bytes, int]]:
    skipped = len(prefix.encode())
    named = (key for key in counter_keys(scene.client, keys) if key.startswith(prefix.encode()))
    for page in pages(named):
        for key, value in zip(page, scene.client.mget(page), strict=True):
            if value is not None:
                yield key[skipped:], int(value)


def _look_again(scene: Scene, keys: PartitionKeys, board: _Board, suspects: set[bytes]) -> None:
    """Read the counter of each suspect again, with the leaderboard, and report the suspects that are wrong.

    Both are read at one moment, another one for each suspect. If a subject is listed with another value than 0, but its
    counter does not exist, the counter is reported in place of the leaderboard, and added to `differing`. Subjects
    whose counter is in `differing` already are left out.
    """
    for subject in sorted(suspects):
        counter = board.counter(subject)
        if (keys.stream, counter.removeprefix(keys.counters)) in scene.report.differing:
            continue
        with scene.client.pipeline(transaction=True) as pipeline:
            if board.window is not None:
                pipeline.hget(board.values, subject)
            else:
                pipeline.get(board.values.encode() + subject)
            pipeline.zscore(board.key, subject)
            pipeline.zcard(board.key)
            pipeline.zrange(board.key, 0, 0, withscores=True)
            pipeline.hget(keys.ledger, bound_field(board.metric, board.window))
            raw, score, length, last, bound = pipeline.execute()
        value = int(raw or 0)
        where = f"{board.key}: {subject.decode(errors='replace')}"
        if score is not None:
            if raw is None and score:
                scene.report.differing.add((keys.stream, counter.removeprefix(keys.counters)))
                name = "counters.differ" if board.window is None else "buckets.differ"
                scene.report.find(name, f"{counter} does not exist, but {board.key} lists it with {exact(score):,}")
            elif score != value:
                scene.report.find("leaderboards.differ", f"{where} has {exact(score):,}, its counter {value:,}")
            continue
        is_full = length >= board_length(board.rule.top)
        bounds = ([last[0][1]] if is_full else []) + ([] if bound is None else [int(bound)])
        if value > max(bounds) if bounds else value != 0:
            scene.report.find("leaderboards.incomplete", f"{where} with {value:,} is not listed")
