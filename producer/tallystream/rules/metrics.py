"""What is declared of each metric, as producers, workers and readers need to know it.

The operator writes it in `config/tallystream.toml`; the worker publishes it in `tally:meta`; producers and
readers take it from there, so that nobody has to copy a configuration file to every application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec.structs import replace

from tallystream.errors import ConfigurationError, EventError
from tallystream.rules.alerts import Alert  # noqa: TC001  # msgspec reads the annotations
from tallystream.rules.retraction import Retraction  # noqa: TC001  # msgspec reads the annotations
from tallystream.rules.windows import seconds, zone_of
from tallystream.wire.event import check_metric
from tallystream.wire.window import DAY, WINDOWS, Window

if TYPE_CHECKING:
    from collections.abc import Collection

RETENTION: Final[dict[str, str]] = {"minute": "2h", "hour": "8d", "day": "400d", "month": "forever"}
"""How long the buckets of a window are kept behind their end, where nothing else is declared."""

STATE_LATE: Final = "7d"
"""How late events of metrics with a rule that needs memory are accepted, where nothing else is declared."""

MAX_TOP: Final = 10_000
MAX_LIMIT: Final = 1_000_000_000

Per = Literal["minute", "hour", "day", "month", "total"]


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The rules of one metric; see `config/tallystream.toml` for what each means.

    `unique`, `exact = false`, `max_subjects` and `seen = "bloom"` are approximations. A Bloom filter with 400,000 ids
    takes 1 new id in 6,600 for a copy, and the event is not counted.
    """

    description: str = ""
    windows: tuple[Window, ...] = ()
    retention: dict[Window, str] = {}
    unique: Window | None = None
    top: int = 0
    floor: int | None = None
    once: str | None = None
    limit: int | None = None
    per: Per | None = None
    ids: Window | None = "day"
    seen: Literal["exact", "bloom"] = "exact"
    exact: bool = True
    max_subjects: int | None = None
    accept_late: str | None = None
    late: Literal["count", "aside"] = "count"
    spread: bool = False

    @property
    def unspreadable_reason(self) -> str | None:
        """The rule that needs all events of a subject in one partition, so that they cannot be spread."""
        rules = {
            "once": self.once is not None,
            "limit": self.limit is not None,
            "unique": self.unique is not None,
            "max_subjects": self.max_subjects is not None,
            "exact = false": not self.exact,
        }
        return next((rule for rule, is_declared in rules.items() if is_declared), None)

    @property
    def remembers(self) -> bool:
        """Tell whether a rule keeps state by time bucket, which cannot be kept for ever."""
        return self.limit is not None or self.once not in (None, "forever")

    @property
    def rejecting(self) -> list[str]:
        """The names of the rules that can reject an event."""
        return [rule for rule, declared in (("once", self.once), ("limit", self.limit)) if declared is not None]

    @property
    def late_seconds(self) -> int | None:
        """How many seconds late an event may be; `None`: however late."""
        return seconds(self.accept_late or (STATE_LATE if self.remembers else "forever"))

    @property
    def sets_late_aside(self) -> bool:
        """Tell whether an event that is too late is set aside rather than counted in its bucket."""
        return self.late == "aside" or self.remembers

    def retention_seconds(self, window: str) -> int | None:
        """Return how many seconds behind its end a window's bucket is kept; `None`: for ever."""
        return seconds(self.retention.get(window) or RETENTION[window])  # type: ignore[call-overload]  # a window

    def check(self) -> None:
        """Refuse rules that contradict each other.

        Raises:
            ValueError: says which setting, and what is allowed.
        """
        for window, duration in self.retention.items():
            _duration(f"retention.{window}", duration)
        if self.accept_late is not None:
            _duration("accept_late", self.accept_late)
        if not 0 <= self.top <= MAX_TOP:
            raise ValueError(f"top: must be 0 (none) to 10,000, not {self.top:,}")
        if self.max_subjects is not None and not 1 <= self.max_subjects <= MAX_LIMIT:
            raise ValueError("max_subjects: must be 1 to 1,000,000,000 for each partition")
        self._check_once()
        self._check_limit()
        if self.max_subjects is not None and (self.once is not None or self.limit is not None):
            raise ValueError("max_subjects: does not go with once or limit, which remember every subject anyway")
        if not self.exact and (self.once or self.limit is not None or self.windows or self.unique or self.max_subjects):
            raise ValueError("exact = false: goes with top and floor only; windows and rules need exact counters")
        if self.spread and self.unspreadable_reason is not None:
            raise ValueError(
                f"spread: does not go with {self.unspreadable_reason}, which needs all events of a subject in one "
                "partition"
            )

    def _check_once(self) -> None:
        if self.once is None:
            return
        if self.once not in ("forever", "day", "hour"):
            _duration("once", self.once)
            if not self.once.endswith("d"):
                raise ValueError(f'once: must be "forever", "hour", "day" or days such as "30d", not {self.once!r}')
        if self.limit is not None:
            raise ValueError("once and limit: only one of them")

    def _check_limit(self) -> None:
        if (self.limit is None) != (self.per is None):
            raise ValueError('limit and per go together: limit = 1000, per = "hour"')
        if self.limit is None or self.per is None:
            return
        if not 1 <= self.limit <= MAX_LIMIT:
            raise ValueError(f"limit: must be 1 to 1,000,000,000, not {self.limit:,}")
        if self.per == "total":
            finer = list(self.windows)
        else:
            finer = [window for window in self.windows if WINDOWS.index(window) < WINDOWS.index(self.per)]
        if finer:
            # Which hour of a day's limit an event was beyond depends on the order of arrival: no pure function.
            raise ValueError(f"windows: {', '.join(finer)} finer than the limit's per = {self.per}; take coarser ones")


class Ratio(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A derived figure: the sum of some metrics by the sum of others, 0 where the latter is 0."""

    of: tuple[str, ...]
    by: tuple[str, ...]


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The declared metrics and ratios by name, the zone in which days begin, and what was retracted.

    Retractions are no setting: a generation of counters is made without the events, and remembers which.
    """

    metric: dict[str, Metric]
    ratio: dict[str, Ratio] = {}
    zone: str = "UTC"
    alert: tuple[Alert, ...] = ()
    retracted: tuple[Retraction, ...] = ()

    def __post_init__(self) -> None:
        zone_of(self.zone)
        for name, metric in self.metric.items():
            try:
                check_metric(name)
                metric.check()
            except EventError as error:
                raise ConfigurationError(f"[metric.{name[:64]}]: the name {error.problem}") from None
            except ValueError as error:
                raise ConfigurationError(f"[metric.{name}] {error}") from None
        for name, ratio in self.ratio.items():
            if unknown := (set(ratio.of) | set(ratio.by)) - self.metric.keys():
                raise ConfigurationError(f"[ratio.{name}]: {', '.join(sorted(unknown))} is not declared as a metric")
            if not ratio.of or not ratio.by:
                raise ConfigurationError(f"[ratio.{name}]: of and by must each name at least one metric")

        for alert in self.alert:
            self._check_alert(alert)
        if len({alert.name for alert in self.alert}) < len(self.alert):
            raise ConfigurationError("[[alert]]: each needs a name of its own")

    @property
    def alerts(self) -> dict[str, list[Alert]]:
        """The alerts by metric."""
        found: dict[str, list[Alert]] = {}
        for alert in self.alert:
            found.setdefault(alert.metric, []).append(alert)
        return found

    def _check_alert(self, alert: Alert) -> None:
        where = f"[[alert]] {alert.name[:64]!r}"
        rule = self.metric.get(alert.metric)
        if rule is None:
            raise ConfigurationError(f"{where}: metric {alert.metric[:64]!r} is not declared")
        if not rule.exact:
            raise ConfigurationError(f"{where}: {alert.metric} is kept in a sketch, whose values are estimates")
        if rule.spread:
            raise ConfigurationError(f"{where}: {alert.metric} is spread, and no partition alone sees what it comes to")
        try:
            alert.check(rule.windows)
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error}") from None

    @property
    def spread(self) -> frozenset[str]:
        """The metrics whose events may lie in any partition."""
        return frozenset(name for name, metric in self.metric.items() if metric.spread)

    def spreading(self, metrics: Collection[str]) -> Rules:
        """Return the same for a log in which events of these metrics may lie in any partition.

        Whatever else is declared of them: a generation that was counted before they were spread is read, and goes on,
        like one that was counted since. Metrics with a rule that needs one partition are left as they are.
        """
        strewn = {
            name: replace(metric, spread=True)
            for name, metric in self.metric.items()
            if name in metrics and not metric.spread and metric.unspreadable_reason is None
        }
        watched = {alert.metric for alert in self.alert}
        strewn = {name: metric for name, metric in strewn.items() if name not in watched}
        return replace(self, metric=self.metric | strewn) if strewn else self

    def refuse_undeclared(self, metric: str) -> None:
        """Raise `EventError` where `metric` is not declared."""
        if metric not in self.metric:
            check_metric(metric)  # what could not be declared is not repeated in a message
            declared = ", ".join(sorted(self.metric))
            raise EventError(
                "metric",
                f"{metric} is not declared; declared are {declared}. "
                f"Add [metric.{metric}] to tallystream.toml and restart the worker",
            )

    def refuse(self, metric: str, amount: int, actor: str | None) -> None:
        """Refuse an event that its metric's rules have no place for.

        Raises:
            EventError: names the field and what the rule needs.
        """
        rule = self.metric[metric]
        if rule.once is not None:
            if actor is None:
                raise EventError("actor", f"is needed: {metric} counts once per actor")
            if amount not in (-1, 0, 1):
                raise EventError("amount", f"must be 1, -1 or 0: {metric} holds one vote per actor")
        elif rule.limit is not None and amount != 1:
            raise EventError("amount", f"must be 1: {metric} has a limit, which counts single events")
        elif not rule.exact and amount < 0:
            raise EventError("amount", f"must not be negative: {metric} is kept in a sketch, which only grows")


_encoder: Final = msgspec.json.Encoder(order="deterministic")
_decoder: Final = msgspec.json.Decoder(Rules)


def publish(rules: Rules) -> bytes:
    """Return the form in which `tally:meta` holds the rules.

    What is at its default is left out, so that a release which does not know a rule goes on as long as nobody uses it.
    So a default must never change: another release would take it for its own.
    """
    return _encoder.encode(rules)


def read(published: bytes) -> Rules:
    """Return the rules that `tally:meta` holds.

    Raises:
        ConfigurationError: they were written by a release that this one cannot follow.
    """
    try:
        return _decoder.decode(published)
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"the metrics that the worker published cannot be read ({error}): update this library to its release"
        ) from None


def _duration(name: str, value: str) -> None:
    try:
        found = seconds(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if found is not None and found > 4000 * DAY:
        raise ValueError(f"{name}: {value} is over 4000d; write forever")
