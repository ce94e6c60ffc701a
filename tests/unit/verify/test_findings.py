"""The remedies of findings."""

from __future__ import annotations

import re

from tallystream.errors import KeyLost
from tallystream.storage.keys import Layout, PartitionKeys
from tallystream_worker.verify.findings import KINDS

COMMAND = re.compile(r"tallystream [a-z]+(?: --[a-z]+)?")


def test_no_remedy_refers_to_another_text_of_the_verification():
    """Each remedy states the command or the action itself."""
    assert [name for name, kind in KINDS.items() if "verify prints" in kind.remedy] == []


def test_the_remedy_of_lost_keys_has_every_command():
    """Each command that the text of a lost key names is in the remedy of the finding, which lists the kinds of keys."""
    layout = Layout(1)
    keys = layout.keys[0]
    later = PartitionKeys(keys.prefix, 2)
    names = [
        *(keys.sequences, keys.topic_ledger, keys.live, keys.dropped, keys.stream, keys.forgotten, keys.periods),
        *(keys.copied, keys.outbox, keys.adopted, later.ledger, later.begun, later.gone, keys.labels("view")),
        *(keys.seen("view", "1d-1"), layout.files, layout.rule_changes),
    ]
    commands = {command for name in names for command in COMMAND.findall(str(KeyLost(name)))}
    assert commands <= set(COMMAND.findall(KINDS["keys.lost"].remedy))
    assert all(COMMAND.search(str(KeyLost(name))) for name in names if name != keys.outbox)
