"""Draws rules from the whole rule language, and the moment and zone at which a scenario starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st
from msgspec.structs import replace

from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.window import WINDOWS

if TYPE_CHECKING:
    from hypothesis.strategies import DataObject

BEGINNINGS: Final = (
    ("UTC", "2026-11-28T13:20:10"),
    ("UTC", "2027-12-31T23:40:10"),  # the end of a year
    ("UTC", "2028-02-28T22:10:10"),  # before a leap day
    ("Europe/Vienna", "2026-03-29T00:40:10"),  # one hour forward at 01:00
    ("Europe/Vienna", "2026-10-25T00:10:10"),  # one hour back at 01:00
    ("America/New_York", "2026-11-01T05:20:10"),
    ("Australia/Lord_Howe", "2026-04-04T14:20:10"),  # half an hour back at 15:00
    ("Australia/Lord_Howe", "2026-10-03T15:10:10"),  # half an hour forward at 15:30
    ("Antarctica/Troll", "2026-03-29T00:40:10"),  # two hours forward at 01:00
    ("Antarctica/Troll", "2026-10-25T00:10:10"),
    ("Pacific/Apia", "2011-12-30T09:10:10"),  # there was no 30 December: 24 hours forward at 10:00
    ("Asia/Kolkata", "2026-11-28T17:50:10"),  # midnight is at 18:30
    ("Asia/Kathmandu", "2026-11-28T17:50:10"),  # midnight is at 18:15
    ("Pacific/Chatham", "2026-04-04T13:10:10"),
    ("America/St_Johns", "2026-03-08T05:10:10"),
    ("Pacific/Kiritimati", "2026-11-30T09:30:10"),  # the end of a month, 14 hours ahead of UTC
    ("localtime", "2026-11-28T17:50:10"),  # every host has its own: refused
)
"""Zones, each with a moment at which something happens in it soon. The seconds leave room before the next minute."""


def beginning(data: DataObject, without: frozenset[str] = frozenset()) -> tuple[str, str]:
    """Return a zone and the moment at which the scenario starts."""
    zone, start = data.draw(st.sampled_from(BEGINNINGS))
    zone = "UTC" if zone in without else zone
    try:
        Rules({}, zone=zone)
    except ConfigurationError:
        zone = "UTC"
    return zone, start


def rules(data: DataObject, zone: str, without: frozenset[str] = frozenset()) -> Rules:
    """Return the rules of one to four metrics that the product accepts, without some settings."""
    metrics: dict[str, Metric] = {}
    for number in range(data.draw(st.integers(1, 4))):
        metric = data.draw(_metric())
        defaults = {name: getattr(Metric(), name) for name in without if name in Metric.__struct_fields__}
        windows = tuple(dict.fromkeys(metric.windows)) if "doubles" in without else metric.windows
        metric = replace(metric, **{"windows": windows} | defaults)
        try:
            Rules({"m": metric}, zone=zone)
        except ConfigurationError:  # the product refuses these rules: draw others for the next metric
            continue
        metrics[f"m{number}"] = metric
    return Rules(metrics or {"m0": Metric(windows=("hour", "day"))}, zone=zone)


@st.composite
def _metric(draw) -> Metric:
    """Return the rules of one metric, valid or not."""
    windows = draw(st.lists(st.sampled_from(WINDOWS), max_size=3, unique=True))
    kind = draw(st.sampled_from(["sum", "sum", "sum", "once", "once", "limit", "limit", "spread", "sketch", "quota"]))
    doubled = windows[:1] if draw(st.integers(1, 15)) == 15 else []  # a window that is listed twice: refused
    fields: dict[str, Any] = {"windows": (*windows, *doubled)}
    fields["top"] = draw(st.sampled_from([0, 1, 3, 100]))
    fields["floor"] = draw(st.sampled_from([None, None, None, 0]))
    fields["ids"] = draw(st.sampled_from(["day", "day", "hour", "month", "minute"]))
    if draw(st.integers(1, 3)) == 1:
        kept = st.sampled_from(["1h", "6h", "2d", "9d", "40d", "400d", "forever"])
        fields["retention"] = {window: draw(kept) for window in dict.fromkeys(windows)}
    if draw(st.integers(1, 2)) == 1:
        fields["accept_late"] = draw(st.sampled_from(["30m", "2h", "30h", "5d", "30d", "forever"]))
        fields["late"] = draw(st.sampled_from(["count", "aside"]))
    match kind:
        case "once":
            fields["once"] = draw(st.sampled_from(["forever", "forever", "hour", "day", "2d", "30d"]))
        case "limit":
            fields["limit"] = draw(st.sampled_from([1, 2, 3, 5, 1000]))
            fields["per"] = draw(st.sampled_from(["minute", "hour", "day", "month", "total"]))
        case "spread":
            fields["spread"] = True
        case "quota":
            fields["max_subjects"] = draw(st.sampled_from([1, 3, 100]))
        case "sketch":
            fields = {"exact": False, "top": fields["top"], "ids": fields["ids"]}
    if kind not in ("spread", "sketch", "quota"):
        fields["unique"] = draw(st.sampled_from([None, None, "hour", "day", "month"]))
    return Metric(**fields)
