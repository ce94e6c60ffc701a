"""The messages of errors."""

from __future__ import annotations

from tallystream.errors import KeyLost


def test_a_lost_key_is_not_said_to_be_shown_by_others():
    """The message is also true of a partition that has lost all its keys, so that no other key shows the loss."""
    message = str(KeyLost("tally:{p0.425}:seq"))
    assert "other keys" not in message
    assert message.startswith("tally:{p0.425}:seq was deleted or evicted: this deployment had it before.")
