"""The rules: the declaration of each metric, as producers, workers and readers use it.

The operator writes the rules in `config/tallystream.toml`, and the worker publishes them in `tally:meta`. Producers and
readers read them there, so no application needs a copy of the configuration file.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec.structs import replace

from tallystream.errors import ConfigurationError, EventError
from tallystream.rules.alerts import Alert  # noqa: TC001  # msgspec reads the annotations
from tallystream.rules.retraction import Retraction  # noqa: TC001  # msgspec reads the annotations
from tallystream.rules.windows import bucket, seconds, straddled, zone_of
from tallystream.wire.event import check_metric
from tallystream.wire.window import DAY, MINUTE, WINDOWS, Window

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

RETENTION: Final[dict[str, str]] = {"minute": "2h", "hour": "8d", "day": "400d", "month": "forever"}
"""How long the buckets of a window are kept after their end, if the metric does not declare it."""

STATE_LATE: Final = "7d"
"""How late an event may be, without `accept_late`, if its id counts once or a rule of its metric keeps state by period:
see `Metric.keeps_ids` and `Metric.remembers`."""

MAX_TOP: Final = 10_000
"""The largest `top` of a metric, in subjects."""

MAX_LIMIT: Final = 1_000_000_000
"""The largest `limit` of a metric, in events, and the largest `max_subjects`, in subjects."""

_FIRST_ENTRY: Final = 1_577_836_800
"""A second, 2020-01-01, before which no server has received an entry: tallystream is younger."""

Per = Literal["minute", "hour", "day", "month", "total"]
"""The period of a limit."""


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The rules of one metric. Each attribute is a setting that `config/tallystream.toml` explains in full.

    `unique`, `exact = false`, `max_subjects` and `seen = "bloom"` are approximations: with `bloom`, a few new ids are
    taken for duplicates, and their events are not counted.

    Attributes:
        description: A text for people.
        windows: The windows that are counted in addition to the total.
        retention: By window, how long its buckets are kept after their end; a window that is missing has the time in
            `RETENTION`.
        unique: The window for whose buckets the number of different actors is estimated.
        top: The number of subjects in each leaderboard, 0 for no leaderboard.
        floor: A total below it is shown as this number, and so is the sum of a bucket or a range; what is stored does
            not change.
        once: The period in which one event (vote) of each actor counts for a subject, that with the latest time:
            `forever`, `hour`, `day`, or a number of days such as `30d`.
        limit: The number of events that count for a subject in each period `per`.
        per: The period of `limit`.
        ids: How far apart in time two successive events of a subject with the same id may be, and still be copies; of
            copies, one counts. `None` if ids are ignored. With `once`, ids have no effect.
        seen: Whether the ids are stored in a hash (`exact`) or in a Bloom filter (`bloom`).
        exact: `False` if totals are estimated in a sketch.
        max_subjects: The number of subjects in each partition with an exact total. A sketch estimates the totals of the
            others. These have no buckets and no unique actors; an alert on a total or a `window` does not check them,
            and the sums over a range that an alert compares are 0.
        accept_late: How long after its own time the server may receive an event that is not late. `None` means 7 days
            if `remembers`, or for an event whose id counts once (`keeps_ids`), and else `forever`.
        late: Whether an event that is later than accepted is counted anyway (`count`), or only added to the ledger
            (`aside`). If `remembers`, the event is never counted; an event with an id that counts once neither.
        spread: Whether the events of a subject may be counted in every partition; those with an id are in one.
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
        """The first declared setting with which the metric cannot be spread; `None` if there is none.

        It is `once`, `limit`, `unique`, `max_subjects` or `exact = false`. A metric with an alert cannot be spread
        either, but that is not known here: see `Rules.alerts`.
        """
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
        """Whether a rule keeps state by period, which cannot be kept forever: `limit`, or `once` with a period.

        A limit with `per = "total"` is included, although its only period does not end.
        """
        return self.limit is not None or self.once not in (None, "forever")

    @property
    def rejecting(self) -> list[str]:
        """The names of the declared rules that can reject an event: `once` or `limit`; empty if none can."""
        return [rule for rule, declared in (("once", self.once), ("limit", self.limit)) if declared is not None]

    @property
    def late_seconds(self) -> int | None:
        """How many seconds after its own time the server may receive an event; `None` means that none is late.

        For an event with an id, `id_late_seconds` applies instead if `keeps_ids`.
        """
        return seconds(self.accept_late or (STATE_LATE if self.remembers else "forever"))

    @property
    def keeps_ids(self) -> bool:
        """Whether an id counts once. In a metric with `once`, ids have no effect: the vote of an actor counts once."""
        return self.ids is not None and self.once is None

    @property
    def id_late_seconds(self) -> int | None:
        """How many seconds after its own time the server may get an event with an id; `None` means that none is late.

        It applies if `keeps_ids`. A later event is not counted: the ids that would show whether it is a copy may be
        forgotten.
        """
        return seconds(self.accept_late or STATE_LATE)

    @property
    def rejects_late(self) -> bool:
        """Whether a late event is not counted, but only added to `late` in the ledger; `False` if it is counted.

        If an id makes an event count once, it is not counted if it is late, whatever this returns.
        """
        return self.late == "aside" or self.remembers

    def retention_seconds(self, window: str) -> int | None:
        """Return for how many seconds after its end a bucket of the window is kept; `None` means forever."""
        return seconds(self.retention.get(window) or RETENTION[window])  # type: ignore[call-overload]  # a window

    def closes(self, window: str, end: int) -> int | None:
        """Return the second at which a bucket closes that ends at second `end`: then its retention has passed.

        A closed bucket is not read, and no event that the server receives later is added to it. `None` means never.
        """
        kept = self.retention_seconds(window)
        return None if kept is None else end + kept

    def open_since(self, windows: Iterable[str], now: float, zone: str) -> dict[str, int]:
        """Return by window the second at which its first bucket begins that is not closed at second `now`.

        Windows whose buckets never close are left out.

        Raises:
            ConfigurationError: there is no time zone `zone`, and the buckets of `day` or `month` in `windows` close.
        """
        kept = {window: self.retention_seconds(window) for window in windows}
        return {
            window: bucket(window, (int(now) - length) // MINUTE, zone).start
            for window, length in kept.items()
            if length is not None
        }

    def check(self, zone: str = "UTC") -> None:
        """Reject a setting with a value that is not allowed, and rules that contradict each other.

        The constructor does not call this; `Rules` does. The types of the values are not checked.

        Args:
            zone: The time zone in which days and months begin.

        Raises:
            ConfigurationError: `zone` does not exist, and the check of a limit needs it.
            ValueError: the rules are not valid; the message states what is wrong.
        """
        if (doubled := first_doubled(self.windows)) is not None:
            raise ValueError(f"windows: {doubled} is listed twice; list it once")
        for window, duration in self.retention.items():
            _duration(f"retention.{window}", duration)
        if self.accept_late is not None:
            _duration("accept_late", self.accept_late)
        if not 0 <= self.top <= MAX_TOP:
            raise ValueError(f"top: must be 0 (none) to 10,000, not {self.top:,}")
        if self.max_subjects is not None and not 1 <= self.max_subjects <= MAX_LIMIT:
            raise ValueError("max_subjects: must be 1 to 1,000,000,000 for each partition")
        self._check_once()
        self._check_limit(zone)
        if self.max_subjects is not None and (self.once is not None or self.limit is not None):
            raise ValueError("max_subjects: cannot be combined with once or limit, which store every subject anyway")
        if not self.exact and (self.once or self.limit is not None or self.windows or self.unique or self.max_subjects):
            raise ValueError("exact = false: use only top and floor with it; other rules and windows are exact")
        if self.spread and self.unspreadable_reason is not None:
            raise ValueError(
                f"spread: cannot be combined with {self.unspreadable_reason}, which needs all events of a subject "
                "in one partition"
            )

    def _check_once(self) -> None:
        if self.once is None:
            return
        if self.once not in ("forever", "day", "hour"):
            _duration("once", self.once)
            if not self.once.endswith("d"):
                raise ValueError(f'once: must be "forever", "hour", "day" or days such as "30d", not {self.once!r}')
        if self.limit is not None:
            raise ValueError("once and limit: declare only one of them")

    def _check_limit(self, zone: str) -> None:
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
            # Which hour has the events beyond a day's limit would depend on the order in which the events arrive.
            raise ValueError(f"windows: {', '.join(finer)}: too fine for a limit with per = {self.per}; remove them")
        for window in self.windows:
            self._check_nesting(self.per, window, zone)

    def _check_nesting(self, per: Per, window: Window, zone: str) -> None:
        """Raise `ValueError` if a bucket of `window` begins within a period of the limit, such as a day within an hour.

        Then the number of events that count in the bucket would depend on their order. Buckets that are too old for any
        event are not checked. Windows finer than `per` must be rejected before.
        """
        late = self.late_seconds
        found = straddled(per, window, zone, 0 if late is None else max(0, _FIRST_ENTRY - late))
        if found is not None:
            begin = dt.datetime.fromtimestamp(found.start, dt.UTC)
            raise ValueError(
                f"windows: {window} and per = {per} do not nest in the zone {zone}: the {window} {found.label} begins "
                f'at {begin:%H:%M} UTC, within an {per}; use per = "minute" or per = "day", or remove the window'
            )


class Ratio(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A ratio: the sum of the totals of the metrics `of`, divided by that of the metrics `by`; 0 if that is 0."""

    of: tuple[str, ...]
    by: tuple[str, ...]


class UndeclaredMetric(EventError):
    """Raised if a metric is not declared in the published rules.

    The message is the fault and a remedy, which names the default file of the configuration.

    Args:
        metric: The metric, a valid name; also an attribute.
        fault: The fault without the remedy; also an attribute.
    """

    def __init__(self, metric: str, fault: str) -> None:
        super().__init__("metric", f"{fault}. Add [metric.{metric}] to tallystream.toml and restart the worker")
        self.metric = metric
        self.fault = fault

    def __reduce__(self) -> tuple[type[UndeclaredMetric], tuple[str, str]]:
        """Return the class and the arguments by which `pickle` makes an equal error in another process."""
        return type(self), (self.metric, self.fault)


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that is declared for one generation of counters; the constructor checks it.

    Attributes:
        metric: By name, the metrics.
        ratio: By name, the ratios of their totals.
        zone: The time zone in which days and months begin.
        alert: The alerts.
        retracted: The retractions. They are not a setting: a rebuild adds them, and its generation does not count the
            retracted events.

    Raises:
        ConfigurationError: a rule is not valid; the message names the section and the setting.
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
                metric.check(self.zone)
            except EventError as error:
                raise ConfigurationError(f"[metric.{name[:64]}]: the name {error.problem}") from None
            except ValueError as error:
                raise ConfigurationError(f"[metric.{name}] {error}") from None
        for name, ratio in self.ratio.items():
            if unknown := (set(ratio.of) | set(ratio.by)) - self.metric.keys():
                raise ConfigurationError(f"[ratio.{name}]: {', '.join(sorted(unknown))} is not declared as a metric")
            if not ratio.of or not ratio.by:
                raise ConfigurationError(f"[ratio.{name}]: of and by must each name at least one metric")
            for side, listed in (("of", ratio.of), ("by", ratio.by)):
                if (doubled := first_doubled(listed)) is not None:
                    raise ConfigurationError(f"[ratio.{name}]: {side}: {doubled} is listed twice; list it once")
        for alert in self.alert:
            self._check_alert(alert)
        if (doubled := first_doubled(alert.name for alert in self.alert)) is not None:
            raise ConfigurationError(f"[[alert]]: two alerts have the same name {doubled!r}; give each a different one")

    @property
    def alerts(self) -> dict[str, list[Alert]]:
        """By metric, its alerts; a metric without alerts is missing."""
        found: dict[str, list[Alert]] = {}
        for alert in self.alert:
            found.setdefault(alert.metric, []).append(alert)
        return found

    def warnings(self) -> Iterator[str]:
        """Yield a text for each alert whose range is longer than the longest retention of the windows of its metric.

        Such an alert is silent while a bucket in its range has expired.
        """
        for alert in self.alert:
            length = seconds(alert.span or "1s")
            rule = self.metric[alert.metric]
            kept = [rule.retention_seconds(window) for window in rule.windows]
            longest = max((4000 * DAY if each is None else each for each in kept), default=0)
            if alert.span and length is not None and length > longest:
                yield (
                    f"[[alert]] {alert.name!r} is silent: no bucket of {alert.metric} is kept for {alert.span}. Raise "
                    f"retention in [metric.{alert.metric}], or add a coarser window"
                )

    def _check_alert(self, alert: Alert) -> None:
        where = f"[[alert]] {alert.name[:64]!r}"
        rule = self.metric.get(alert.metric)
        if rule is None:
            raise ConfigurationError(f"{where}: metric {alert.metric[:64]!r} is not declared")
        if not rule.exact:
            raise ConfigurationError(f"{where}: {alert.metric} has exact = false, and an alert needs exact counters")
        if rule.spread:
            raise ConfigurationError(f"{where}: {alert.metric} is spread; an alert needs all events in one partition")
        try:
            alert.check(rule.windows)
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error}") from None

    @property
    def spread(self) -> frozenset[str]:
        """The names of the metrics whose `spread` is true, because it is declared or `spreading` has set it."""
        return frozenset(name for name, metric in self.metric.items() if metric.spread)

    def spreading(self, metrics: Collection[str]) -> Rules:
        """Return these rules with `spread` on for the given metrics, even if it is not declared.

        Metrics that cannot be spread (see `Metric.unspreadable_reason`), metrics with alerts, and metrics that are not
        declared do not change.

        Args:
            metrics: The metrics whose events may be in any partition of the topic (`spread_metrics`).
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
        """Raise `UndeclaredMetric` if `metric` is not declared, or another `EventError` if it is not a valid name.

        The message names the declared metrics, or the allowed characters if `metric` is not a valid name.
        """
        if metric not in self.metric:
            check_metric(metric)  # so that the message below repeats only valid names
            declared = ", ".join(sorted(self.metric))
            raise UndeclaredMetric(metric, f"{metric} is not declared; declared are {declared}")

    def refuse(self, metric: str, amount: int, actor: str | None) -> None:
        """Reject an event that the rules of its metric cannot count.

        Args:
            metric: A declared metric.
            amount: The event's amount.
            actor: The event's actor, if it has one.

        Raises:
            EventError: the actor is missing, or the amount is not allowed; the message names the requirement.
        """
        rule = self.metric[metric]
        if rule.once is not None:
            if actor is None:
                raise EventError("actor", f"is needed: {metric} counts once per actor")
            if amount not in (-1, 0, 1):
                raise EventError("amount", f"must be 1, -1 or 0: {metric} counts one vote per actor")
        elif rule.limit is not None and amount != 1:
            raise EventError("amount", f"must be 1: {metric} has a limit, which counts single events")
        elif not rule.exact and amount < 0:
            raise EventError("amount", f"must not be negative: {metric} is kept in a sketch, which only grows")


def first_doubled(listed: Iterable[str]) -> str | None:
    """Return the first item of a list that is equal to an earlier one; `None` if no item is repeated."""
    known: set[str] = set()
    for each in listed:
        if each in known:
            return each
        known.add(each)
    return None


_encoder: Final = msgspec.json.Encoder(order="deterministic")
_decoder: Final = msgspec.json.Decoder(Rules)


def publish(rules: Rules) -> bytes:
    """Return the JSON form of the rules, which the caller stores in the hash of the topic (`tally:meta`).

    Settings of a metric with their default value are left out, so a release that does not have a new setting still
    works as long as no metric uses it. So a default must never change: each release reads a missing setting as its own
    default. Of an alert, all settings are in it.
    """
    return _encoder.encode(rules)


def read(published: bytes) -> Rules:
    """Return the rules from their JSON form, which `publish` returned.

    Raises:
        ConfigurationError: the JSON cannot be read, usually because another release wrote it, or a rule is not valid.
    """
    try:
        return _decoder.decode(published)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"the rules that the worker published are not valid: {error}. Correct the configuration of the workers, "
            "and restart them"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the second: a string in it is not UTF-8
        raise ConfigurationError(
            f"cannot read the rules that the worker published ({error}): update this library to the worker's release"
        ) from None


def _duration(name: str, value: str) -> None:
    try:
        found = seconds(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if found is not None and found > 4000 * DAY:
        raise ValueError(f"{name}: {value} is over 4000d; write forever")
