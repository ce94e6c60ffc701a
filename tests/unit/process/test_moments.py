"""Moments in messages are in UTC; a stream ID that no date can have makes no error."""

from __future__ import annotations

from tallystream_worker.process.moments import format_moment


def test_a_moment_is_in_utc():
    """The text is rounded down to seconds; a later moment than a date can have is the last one."""
    assert format_moment(1_793_534_400.9) == "2026-11-01 12:00:00+00:00"
    assert format_moment(1_793_534_400_901 / 1000, has_milliseconds=True) == "2026-11-01 12:00:00.901+00:00"
    assert format_moment(2**64 / 1000) == "9999-12-31 23:59:59+00:00"
