"""Reads the counters of a partition at the moment of an open `PointInTimeView`: named ones, or all of them."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tallystream_worker.process.scan import pages_of_fields, pages_of_keys
from tallystream_worker.snapshot.names import HASHES, bucket_of, key_of, parse, removal_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tallystream.rules.metrics import Rules
    from tallystream_worker.snapshot.changed_keys import Group
    from tallystream_worker.snapshot.point_in_time import PointInTimeView

Values = dict[str, Any]
"""By item of a group, its value; `None` if it does not exist."""

_CHUNK: Final = 500
"""Keys or fields of one command, which blocks the server for a fraction of a millisecond."""

_COMMANDS: Final = 20
"""Commands of one round trip; the server runs commands of other clients in between."""


class ValueReader:
    """Reads the counters of one partition, and collects their values at the moment of the view.

    Call `everything` or `some`, and `copies`; close the view; then call `settle`. All of them write into `values`.

    Args:
        cut: The open view.
        rules: The rules that the counters are counted by.

    Attributes:
        values: By group and item (see `names`), the value in bytes; `None` if it does not exist. Values are those of
            the moment only after `settle`.
        expires: By bucket, the millisecond since 1970 until which the log needs its keys; 0 for forever.
    """

    def __init__(self, cut: PointInTimeView, rules: Rules) -> None:
        self._cut = cut
        self._client: Any = cut.client  # its replies are bytes
        self._prefix = cut.key.removesuffix("cut")
        self._rules = rules
        self.values: dict[Group, Values] = defaultdict(dict)
        self.expires: dict[str, int] = {}

    def some(self, touched: Mapping[Group, Iterable[str]]) -> None:
        """Read the values of the given items into `values`, and set `expires` for their buckets.

        Args:
            touched: By group, the items to read.

        Raises:
            ViewLost: the view is no longer open. If `("structures",)` is the only group, this is not noticed here: the
                view's `close` raises it.
            redis.RedisError: the server did not answer, or refused a command.
        """
        self._run(self._reads(touched))

    def everything(self) -> None:
        """Read every counter of the generation, and every Bloom filter, into `values`, and set `expires`.

        Leaderboards and sketches are not read here: see `copies`.

        Raises:
            ScanBroken: the partition moved to another node, or its node failed over or restarted: begin again.
            ViewLost: the view is no longer open.
            redis.RedisError: the server did not answer, or refused a command.
        """
        for keys in pages_of_keys(self._client, self._cut.key, self._prefix):
            wanted: dict[Group, set[str]] = defaultdict(set)
            for key in keys:
                found = parse(key.decode().removeprefix(self._prefix), self._rules)
                if found is None:
                    continue
                group, item = found
                if item is not None:
                    wanted[group].add(item)
                elif group[0] in HASHES:
                    self._hash(group)
            self.some(wanted)

    def copies(self, names: Iterable[str]) -> None:
        """Read the copies that the view made of leaderboards and sketches into `values`.

        Args:
            names: The keys that `open_view` copied, without the generation's prefix. The value of a key that did not
                exist is `None`.

        Raises:
            redis.RedisError: the server did not answer, or refused a command.
        """
        for name in names:
            self.values[("structures",)][name] = self._structure(self._cut.copy_of(self._prefix + name))

    def settle(self) -> None:
        """Put the old value in the place of each value in `values` that was written after the view was opened.

        Call it after the view's `close`, and before its `remove_copies`. Counters that were not read are not added.

        Raises:
            redis.RedisError: the server did not answer, or refused a command.
        """
        cut = self._cut
        for group, values in self.values.items():
            if group == ("structures",):
                for name in list(values):
                    there = cut.copies.get(f"{self._prefix}{name}".encode())
                    if there is not None:
                        copy = self._cut.copy_of(self._prefix + name)
                        values[name] = self._structure(copy) if there else None
            elif group[0] in HASHES:
                if cut.fields:
                    key = (self._prefix + key_of(group)).encode()
                    for item in values:
                        values[item] = cut.fields.get((key, item.encode()), values[item])
            elif cut.strings:
                prefix = self._prefix + key_of(group)
                for item in values:
                    values[item] = cut.strings.get((prefix + item).encode(), values[item])

    def _hash(self, group: Group) -> None:
        for fields in pages_of_fields(self._client, self._prefix + key_of(group)):
            self.values[group].update({name.decode(): value for name, value in fields.items()})
            self._cut.take()
        self._note_expiry(bucket_of(group))

    def _reads(self, touched: Mapping[Group, Iterable[str]]) -> Iterator[tuple[Group, list[str], tuple[Any, ...]]]:
        """Yield triples: a group, some of its items, and the command that reads them.

        Structures are read here and not yielded. `expires` is set for each bucket.
        """
        for group, items in touched.items():
            start = self._prefix + key_of(group)
            remaining = iter(items)
            if group == ("structures",):
                for name in remaining:
                    self.values[group][name] = self._structure(self._prefix + name)
                    self._note_expiry(name)
                continue
            self._note_expiry(bucket_of(group))
            while chunk := list(islice(remaining, _CHUNK)):
                if group[0] in HASHES:
                    yield group, chunk, ("HMGET", start, *chunk)
                else:
                    yield group, chunk, ("MGET", *(start + item for item in chunk))

    def _note_expiry(self, bucket: str | None) -> None:
        if bucket is not None:
            found = removal_of(bucket, self._rules)
            self.expires[bucket] = 0 if found is None else found[1]

    def _run(self, reads: Iterator[tuple[Group, list[str], tuple[Any, ...]]]) -> None:
        while part := list(islice(reads, _COMMANDS)):
            with self._client.pipeline(transaction=False) as pipeline:
                for *_, command in part:
                    pipeline.execute_command(*command)
                replies = pipeline.execute()
            for (group, items, _), reply in zip(part, replies, strict=True):
                self.values[group].update(zip(items, reply, strict=True))
            self._cut.take()

    def _structure(self, key: str) -> bytes | None:
        """Return a sketch or Bloom filter as bytes, a leaderboard as JSON (`[[subject, score], ...]`).

        Return `None` if the key does not exist.
        """
        client = self._client
        if client.type(key) == b"zset":
            return json.dumps(
                [[name.decode(), score] for name, score in client.zrange(key, 0, -1, withscores=True)]
            ).encode()
        value: bytes | None = client.get(key)
        return value
