"""Reading the hash of a deployment returns the values that were written."""

from __future__ import annotations

from tallystream.storage.deployment_hash import by_number, fields_of, live_topic, number, spread_fields, spread_metrics
from tallystream.storage.keys import LAYOUT, Layout


def stored(fields):
    """Return fields as a server returns them."""
    return {str(name).encode(): str(value).encode() for name, value in fields.items()}


def test_a_new_log_says_what_it_is():
    """The hash of a new topic has the layout version, the number of partitions, a tag for each, and the epoch."""
    fields = fields_of(Layout(3), "life")
    assert (fields["layout"], fields["partitions"], fields["epoch"]) == (LAYOUT, 3, "life")
    assert len(fields["tags"].split()) == 3


def test_spread_metrics_come_back():
    """Exactly the metrics that were written as spread are read as spread, whatever their names."""
    fields = stored(fields_of(Layout(1), "life") | spread_fields(["view", "api-call"]))
    assert spread_metrics(fields) == {"view", "api-call"}
    assert spread_metrics({}) == frozenset()


def test_the_root_points_to_the_live_log():
    """The field `log` of the root is the live topic; without it, that is the first topic, whose hash is the root."""
    assert live_topic({}, "shop").meta == live_topic({}, "shop").root == "shop:meta"
    later = live_topic({b"log": b"3"}, "shop")
    assert (later, later.root) == (Layout(namespace="shop", topic=3), "shop:meta")
    assert later.meta != later.root


def test_numbers():
    """A number is read from the name or from the value of a field."""
    fields = {b"rules@2": b"a", b"rules@11": b"b", b"rules": b"c", b"kept": b"1"}
    assert by_number(fields, b"rules@") == {2: b"a", 11: b"b"}
    assert (number(fields, b"kept"), number(fields, b"moving")) == (1, None)
