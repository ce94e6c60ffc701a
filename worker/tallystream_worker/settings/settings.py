"""Settings: built once, checked once, frozen, handed down; see `load`.

The defaults here and in `config/tallystream.toml` are the same; a test holds them together.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping  # noqa: TC003  # msgspec reads the annotations
from dataclasses import dataclass, field
from typing import Final

from tallystream.client.connect import DEFAULT_URL
from tallystream.client.durability import Durability, DurabilityCheck
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Ratio, Rules
from tallystream.rules.windows import seconds
from tallystream.storage.keys import MAX_PARTITIONS, NAMESPACE
from tallystream_worker.settings.alerts import Hook  # noqa: TC001  # so here

DEFAULT_RULES: Final = Rules(
    {
        "view": Metric("a page, an article or a video was looked at", ("hour", "day", "month"), unique="day", top=100),
        "like": Metric("a like (amount 1) or its withdrawal (amount -1)", ("day",), top=100, floor=0),
        "share": Metric("something was passed on", ("day",), top=100),
        "vote": Metric("a vote up (1), down (-1) or taken back (0), one per actor", top=100, once="forever"),
        "api-call": Metric("a call of an interface, by key", ("hour", "day"), limit=1000, per="hour", accept_late="1d"),
        "read": Metric("an article was read to its end", ("day",)),
        "clap": Metric("applause, several at once by amount", ("day",), top=100),
        "highlight": Metric("a passage was marked", ("day",)),
    },
    {"engagement_rate": Ratio(("like", "share"), ("view",))},
)


@dataclass(frozen=True)
class RedisSettings:
    """Where the data is; 0 `partitions` are those that are stored, or 4 at the first start."""

    url: str = DEFAULT_URL
    namespace: str = NAMESPACE
    partitions: int = 0

    def __post_init__(self) -> None:
        if self.partitions:
            _within("redis.partitions", self.partitions, 1, MAX_PARTITIONS)
        if not self.namespace or any(c in self.namespace for c in "{}: ") or not self.namespace.isprintable():
            raise ConfigurationError("redis.namespace: must be a word without braces, colons or blanks")

    @property
    def expected(self) -> int | None:
        """The number of partitions to check against what is stored; `None` takes that as it is."""
        return self.partitions or None


@dataclass(frozen=True)
class WorkerSettings:
    """How counting is done; times in seconds."""

    name: str = ""
    processes: int = 1
    max_keys: int = 3000
    claim_idle: float = 30.0
    max_deliveries: int = 10
    stop_timeout: float = 10.0
    durability: Durability = "memory"

    def __post_init__(self) -> None:
        _within("worker.processes", self.processes, 1, 256)
        _within("worker.max_keys", self.max_keys, 100, 100_000)
        _within("worker.claim_idle", self.claim_idle, 0.1, 86_400)
        _within("worker.max_deliveries", self.max_deliveries, 1, 1_000)
        _within("worker.stop_timeout", self.stop_timeout, 0.1, 3_600)
        DurabilityCheck(self.durability)

    @property
    def consumer(self) -> str:
        """The consumer's name in the group: stable across restarts on one host."""
        return self.name or socket.gethostname()


@dataclass(frozen=True)
class RetentionSettings:
    """How much is kept; bytes for each partition, 0 for no bound."""

    age: str = "7d"
    bytes: int = 268_435_456
    backlog_bytes: int = 1_073_741_824
    dead_bytes: int = 67_108_864

    def __post_init__(self) -> None:
        try:
            seconds(self.age)
        except ValueError as error:
            raise ConfigurationError(f"retention.age: {error}") from None
        for name in ("bytes", "backlog_bytes", "dead_bytes"):
            _within(f"retention.{name}", getattr(self, name), 0, 2**50)
        if self.backlog_bytes and not 0 < self.bytes <= self.backlog_bytes:
            raise ConfigurationError(
                "retention.backlog_bytes: must be 0 or at least retention.bytes: what is kept fills the stream as well"
            )

    @property
    def age_seconds(self) -> int | None:
        """Seconds for which a counted entry is kept at most; `None` for ever."""
        return seconds(self.age)


@dataclass(frozen=True)
class ServeSettings:
    """Where the read service listens; times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8080
    read_timeout: float = 5.0
    read_token: str = field(default="", repr=False)
    write_token: str = field(default="", repr=False)
    admin_token: str = field(default="", repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _within("serve.port", self.port, 0, 65_535)
        _within("serve.read_timeout", self.read_timeout, 0.0, 60.0)
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigurationError(f'serve.origins: must be like https://example.com or "*", not {origin!r}')
        for host in self.hosts:
            if not _HOST.fullmatch(host):
                raise ConfigurationError(f"serve.hosts: must be names without port or scheme, not {host!r}")


@dataclass(frozen=True)
class ArchiveSettings:
    """Where every entry is kept as Parquet; times in seconds."""

    url: str = ""
    every: float = 60.0

    def __post_init__(self) -> None:
        _within("archive.every", self.every, 0.1, 86_400)


@dataclass(frozen=True)
class SnapshotSettings:
    """Where the counters are copied to; times in seconds."""

    url: str = ""
    every: float = 60.0

    def __post_init__(self) -> None:
        _within("snapshot.every", self.every, 0.1, 86_400)


@dataclass(frozen=True)
class AuditSettings:
    """How often the counters are proved beside the counting."""

    every: str = ""
    sample: float = 1.0

    def __post_init__(self) -> None:
        try:
            if self.every and seconds(self.every) is None:
                raise ConfigurationError("audit.every: must be a time such as 6h, or empty for no audits")
        except ValueError as error:
            raise ConfigurationError(f"audit.every: {error}") from None
        if not 0 < self.sample <= 1:
            raise ConfigurationError(f"audit.sample: must be more than 0 and at most 1, not {self.sample}")


@dataclass(frozen=True)
class Settings:
    """Everything that can be set."""

    redis: RedisSettings = field(default_factory=RedisSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    snapshot: SnapshotSettings = field(default_factory=SnapshotSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    rules: Rules = DEFAULT_RULES
    hooks: Mapping[str, Hook] = field(default_factory=dict)


_ORIGIN: Final = re.compile(r"https?://[a-z0-9._-]+(?::[0-9]{1,5})?")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigurationError(f"{name}: must be {least:,} to {most:,}, not {value:,}")
