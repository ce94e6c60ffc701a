"""Every script returns an array: its status, then the fields of that status, always of the same shape."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from redis.exceptions import ResponseError

from tallystream.client.connect import connect
from tallystream.client.server_time import server_time
from tallystream.storage.scripts import Script
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

STATUS: Final = re.compile(r'\{"(\w+)"')

FULL: Final = f"SET total:full {2**53 - 1}"
GROUP: Final = "XGROUP CREATE stream g 0 MKSTREAM"
PENDING: Final = f"{GROUP}; XADD stream 1-1 v 1; XREADGROUP GROUP g c STREAMS stream >"
NEXT_GROUP: Final = "XGROUP CREATE stream g-2 0 MKSTREAM"
NEXT_PENDING: Final = f"{NEXT_GROUP}; XADD stream 1-1 v 1; XREADGROUP GROUP g-2 c STREAMS stream >"
DEAD: Final = "XADD dead 1-1 events 3"
REAPED: Final = "HSET seq !reaped 5-0_5-0"
PRODUCER: Final = "HSET seq p 1_1-1"
WORDS: Final = "RPUSH cut:before" + 5001 * " w"
LEDGERS: Final = "HSET ledger appended 1; HSET topic appended 1 plain 0"
DROPPED: Final = "dropped number number number"
FORGOTTEN: Final = "HSET forgotten seen:view 5"
RESET_KEYS: Final = "stream live ledger topic seq"
RESET_BEFORE: Final = f"{GROUP}; XADD stream 1-1 v 1 n 0; XADD stream 2-1 v 1; XREADGROUP GROUP g c STREAMS stream >"
REPLACED: Final = "new new-ledger new-seq stream ledger seq live"
WAS_RESET: Final = "HSET resets view\na 5-0"
CLAIMED: Final = f"{PENDING}; HSET archive first 2-1 last 3-1 entries 2"

OPEN: Final = "HSET seq !begun 1; HSET ledger entries:gated 0; SET live 1; HSET topic entries:gated 0"
NEW: Final = "DEL seq ledger live topic"
NO_SEQUENCES: Final = "DEL seq"
NO_LEDGER: Final = "DEL ledger topic"

CASES: Final = [
    # The script, its keys, commands between `OPEN` and it, its arguments, the shape of its reply. An argument
    # `batch:SUBJECT:ID` is a batch that adds 1 to a counter, `known:ID` one of an event with an id, `reset:SUBJECT` one
    # of a reset, `-` is the empty text, `rules` are the rules of such a batch, `_` in a value means a space.
    ("storage/append", "stream seq ledger", "", "1 p 1 1 x 0-0", "appended text"),
    ("storage/append", "stream seq ledger", PRODUCER, "1 p 1 1 x 0-0", "already text"),
    ("storage/append", "stream seq ledger", "", "1 p 2 1 x 0-0", "gap text"),
    ("storage/append", "stream seq ledger", REAPED, "1 0123456789abcdef 1 1 x 1-0", "forgotten"),
    ("storage/append", "stream seq ledger", "HSET seq !closed 2", "1 p 1 1 x 0-0", "closed text"),
    ("storage/append", "stream seq ledger", "HSET seq !limit 0", "1 p 1 1 x 0-0", "full text"),
    ("storage/append", "stream seq ledger", "HELD", "1 p 1 1 x 0-0", "held"),
    ("storage/append", "stream seq ledger", NO_SEQUENCES, "1 p 1 1 x 0-0", "damaged text"),
    (
        "storage/decide",
        "stream live ledger topic seq",
        "",
        "batch:a 1 total:a 1 - 3600000 v 1",
        "decided text number text text text",
    ),
    (
        "storage/decide",
        "stream live ledger topic seq",
        "HSET seq !limit 0",
        "batch:a 1 total:a 1 - 3600000 v 1",
        "full text",
    ),
    (
        "storage/decide",
        "stream live ledger topic seq",
        FULL,
        "batch:full 1 total:full 1 - 3600000 v 1",
        "rejected text",
    ),
    (
        "storage/decide",
        "stream live ledger topic seq",
        "DEL ledger; SET ledger x",
        "batch:a 1 total:a 1 - 3600000 v 1",
        "damaged text text",
    ),
    ("storage/decide", "stream live ledger topic seq", FORGOTTEN, "known 1 total:a 1 - 3600000 v 1", "late"),
    ("storage/decide", "stream live ledger topic seq", "", "batch:a 1 total:a 9999999999999 - 3600000 v 1", "ahead"),
    (
        "storage/decide",
        "stream live ledger topic seq",
        "SET live 2",
        "batch:a 1 total:a 1 - 3600000 v 1",
        "switched",
    ),
    (
        "storage/decide",
        "stream live ledger topic seq",
        "SET live 1_5",
        "batch:a 1 total:a 1 - 3600000 v 1",
        "outdated text",
    ),
    ("storage/decide", "stream live ledger topic seq", NO_LEDGER, "batch:a 1 total:a 1 - 3600000 v 1", "damaged text"),
    ("storage/find_lost", "stream", NEW, "", "new"),
    ("storage/find_lost", "stream", "", "", "whole"),
    ("storage/find_lost", "stream", "HSET ledger entries:settled 1", "", "counted"),
    ("storage/find_lost", "stream", NO_LEDGER, "", "damaged text"),
    ("storage/touch", "seq", "", "", "touched"),
    ("storage/touch", "seq", NO_LEDGER, "", "damaged text"),
    ("storage/init_deployment", "meta", "", "layout 2", "created text text"),
    ("storage/init_deployment", "meta", "HSET meta layout 2", "layout 3", "loaded text text"),
    ("storage/adopt_rules", "ledger forgotten", "HSET forgotten !rules:view hour=UTC", "rules 0", "adopted text"),
    (
        "storage/adopt_rules",
        "ledger forgotten",
        f"HSET forgotten !rules:view hour=UTC; {NO_LEDGER}",
        "rules 1",
        "adopted text",
    ),
    (
        *("storage/adopt_rules", "ledger forgotten", f"HSET forgotten !rules:view top=2; {NO_LEDGER}", "rules 0"),
        "damaged text",
    ),
    ("counting/apply", "stream dead ledger live", PENDING, "g batch:a:1-1 1", "applied"),
    ("counting/apply", "stream dead ledger live", PENDING, "g batch:a:1-1:2-1 1", "stale text"),
    ("counting/apply", "stream dead ledger live", "SET live 2", "g batch:a:1-1 1", "switched"),
    ("counting/apply", "stream dead ledger live", f"{PENDING}; SET live 1_5", "g batch:a:1-1 1_6", "applied"),
    (
        *("counting/apply", "stream dead ledger live", f"{PENDING}; SET live 1_5", "g batch:a:1-1 1_4"),
        "outdated text",
    ),
    ("counting/apply", "stream dead ledger live", RESET_BEFORE, "g batch:a:2-1 -", "early text"),
    (
        "counting/apply",
        "stream dead ledger live",
        f"{PENDING}; {FULL}",
        "g batch:full:1-1 1",
        "rejected text text text",
    ),
    ("counting/apply", "stream dead ledger live", f"{PENDING}; {NO_LEDGER}", "g batch:a:1-1 1", "damaged text"),
    ("counting/apply", "stream dead ledger live", f"{PENDING}; DEL live", "g batch:a:1-1 1", "damaged text"),
    ("counting/ensure_group", "stream ledger ledger", "", "g", "ready"),
    (
        *(
            "counting/ensure_group",
            "stream ledger ledger",
            f"{GROUP}; XADD stream 1-1 a b; HSET ledger entries:settled 1",
        ),
        *("g-2", "missing text"),
    ),
    ("counting/ensure_group", "stream begun ledger", f"{GROUP}; HSET begun counted 1", "g-2", "missing text"),
    ("counting/ensure_group", "stream g2:ledger ledger", "", "g-2", "damaged text"),
    ("counting/ensure_group", "stream ledger ledger", NO_LEDGER, "g", "damaged text"),
    ("dead_letters/retry", "dead dead ledger live stream", DEAD, "batch:a:1-1 1 1-1", "applied"),
    ("dead_letters/retry", "dead dead ledger live stream", f"{DEAD}; {FORGOTTEN}", "known:1-1 1 1-1", "forgotten"),
    ("dead_letters/retry", "dead dead ledger live stream", f"{DEAD}; {WAS_RESET}", "known:1-1 1 1-1", "reset"),
    ("dead_letters/retry", "dead dead ledger live stream", "", "batch:a:1-1 1 1-1", "stale"),
    ("dead_letters/retry", "dead dead ledger live stream", "SET live 2", "batch:a:1-1 1 1-1", "switched"),
    (
        *("dead_letters/retry", "dead dead ledger live stream", f"{DEAD}; {FULL}", "batch:full:1-1 1 1-1"),
        "rejected text text text",
    ),
    (
        *("dead_letters/retry", "dead dead ledger live stream", "SET live 1_5", "batch:a:1-1 1 1-1"),
        "outdated text",
    ),
    ("dead_letters/retry", "dead dead ledger live stream", f"{DEAD}; {NO_LEDGER}", "batch:a:1-1 1 1-1", "damaged text"),
    ("dead_letters/drop", "dead ledger records stream holds live", f"{DEAD}; {GROUP}", "g g 1-1 - 2-1 -", DROPPED),
    ("dead_letters/drop", "dead ledger records stream holds live", f"{DEAD}; {NO_LEDGER}", "g g 1-1 -", "damaged text"),
    (
        *("dead_letters/drop", "dead ledger records stream holds live", "SET live 1_restoring_5_x", "g g 1-1 -"),
        "closed",
    ),
    ("maintenance/trim", "stream holds ledger seq", GROUP, "g 9 0 9 9 0", "trimmed number number number number text"),
    ("maintenance/trim", "stream holds ledger seq", f"{GROUP}; {NO_LEDGER}", "g 9 0 9 9 0", "damaged text"),
    ("maintenance/losses", "stream ledger ledger", PENDING, "g", "waiting"),
    ("maintenance/losses", "stream ledger ledger", f"{GROUP}; {NO_LEDGER}", "g", "damaged text"),
    ("maintenance/losses", "stream ledger ledger", GROUP, "g", "settled number number"),
    ("maintenance/losses", "stream ledger ledger", f"{GROUP}; HSET ledger counted 1", "g", "open number number"),
    ("maintenance/reap_consumers", "stream", PENDING, "g owner 0 10", "reaped number number"),
    ("maintenance/reap_producers", "seq stream", "HSET seq 0123456789abcdef 1_1-1", "0 10 1 1 1", "reaped text number"),
    ("maintenance/reap_producers", "seq stream", NO_LEDGER, "0 10 1 1 1", "damaged text"),
    ("maintenance/clock", "stream", "", "", "clock text text"),
    ("maintenance/eviction", "stream", "", "", "eviction text text text"),
    ("verify/server", "stream", "", "", "server text text text text text text"),
    ("rebuild/backfill", "mark dead ledger", "", "batch:a - 1-1", "applied"),
    ("rebuild/backfill", "mark dead ledger", "", "batch:a 9-9 1-1", "at text"),
    ("rebuild/backfill", "mark dead ledger", FULL, "batch:full - 1-1", "rejected text text text"),
    ("rebuild/backfill", "mark dead {p}:g2:ledger", "", "batch:a - 1-1", "damaged text"),
    ("rebuild/backfill", "mark dead ledger", "HSET ledger entries:backfilled 1", "batch:a - 1-1", "damaged text"),
    ("rebuild/begin", "stream begun ledger topic gone", f"{PENDING}; HSET seq !turn 7", "g-2 7", "begun text text"),
    ("rebuild/begin", "stream begun ledger topic gone", f"{PENDING}; HSET seq !turn 8", "g-2 7", "overtaken"),
    ("rebuild/begin", "stream begun ledger topic gone", NO_LEDGER, "g-2 0", "damaged text"),
    ("rebuild/begin", "stream begun ledger topic gone", "HSET topic entries:dropped 1", "g-2 0", "damaged text"),
    ("rebuild/begin", "stream begun {p}:g2:ledger topic gone", NEW, "g-2 0 2", "begun text text"),
    ("rebuild/begin", "stream begun {p}:g2:ledger topic gone", f"{NEW}; SET begun 1-1", "g-2 0 2", "damaged text"),
    ("rebuild/reopen", "stream live ledger", "", "1 g", "whole"),
    ("rebuild/reopen", "stream live ledger", "HSET ledger entries:gated 2", "1 g", "mended text"),
    (
        "rebuild/reopen",
        "stream live ledger",
        "HSET ledger entries:gated 2; XADD stream 1-1 p a q 1",
        "1 g",
        "mended text",
    ),
    ("rebuild/reopen", "stream live ledger", "DEL live", "1 g", "mended text"),
    ("rebuild/reopen", "stream live ledger", NEW, "1 g", "empty"),
    ("rebuild/reopen", "stream live ledger", NO_SEQUENCES, "1 g", "damaged text"),
    ("rebuild/record_rules", "meta changes", "HSET meta layout 4 rules mine revision 3", "3 me []", "recorded"),
    (
        *(
            "rebuild/record_rules",
            "meta changes",
            "HSET meta layout 4 rules mine revision 3; XADD changes 1-1 number 3",
        ),
        *("3 me []", "present"),
    ),
    ("rebuild/record_rules", "meta changes", "HSET meta layout 4 rules mine revision 4", "3 me []", "moved text"),
    ("rebuild/record_rules", "meta changes", "", "3 me []", "gone"),
    ("rebuild/promote", "meta changes", "HSET meta rules old rules@2 new turn 7", "2 me 7", "promoted"),
    ("rebuild/promote", "meta changes", "HSET meta rules old rules@2 new turn 8", "2 me 7", "overtaken"),
    ("rebuild/propose", "meta", "HSET meta layout 4", "new", "building text"),
    ("rebuild/propose", "meta", "", "new", "gone"),
    ("repartition/propose", "meta", "", "8", "gone"),
    ("rebuild/propose", "meta", "HSET meta layout 4 building 2 rules@2 others", "new", "other text"),
    ("rebuild/propose", "meta", "HSET meta layout 4 rules@1 old", "new", "kept text"),
    ("rebuild/propose", "meta", "HSET meta layout 4 building 2 dropping@2 1", "new", "dropping text"),
    ("rebuild/switch", "stream live seq", f"{NEXT_GROUP}; HSET seq !turn 7", "1 g 2 g-2 5 7", "switched"),
    ("rebuild/switch", "stream live seq", f"{NEXT_PENDING}; HSET seq !turn 7", "1 g 2 g-2 5 7", "incomplete"),
    ("rebuild/switch", "stream live seq", "SET live 3; HSET seq !turn 7", "1 g 2 g-2 5 7", "other"),
    ("rebuild/switch", "stream live seq", f"{NEXT_GROUP}; HSET seq !turn 8", "1 g 2 g-2 5 7", "overtaken"),
    ("rebuild/switch", "stream live seq", NEXT_GROUP, "1 g 2 g-2 5 7", "overtaken"),
    ("rebuild/switch", "stream live seq", NO_LEDGER, "1 g 2 g-2 5 7", "damaged text"),
    ("rebuild/claim_turn", "meta", "HSET meta epoch e turn 3", "e 7", "claimed text"),
    ("rebuild/claim_turn", "meta", "HSET meta epoch f", "e 7", "gone"),
    ("rebuild/take_turn", "seq", "", "7", "taken"),
    ("rebuild/take_turn", "seq", "HSET seq !turn 8", "7", "overtaken"),
    ("rebuild/take_turn", "seq", NO_SEQUENCES, "7", "absent"),
    ("rebuild/begin_drop", "meta", "HSET meta turn 7", "2 7", "dropping"),
    ("rebuild/begin_drop", "meta", "HSET meta turn 8", "2 7", "overtaken"),
    ("rebuild/end_drop", "meta", "HSET meta building 2 dropping@2 1 turn 7", "2 7", "dropped"),
    ("rebuild/end_drop", "meta", "HSET meta building 2 dropping@2 1 turn 8", "2 7", "overtaken"),
    ("rebuild/remove", "seq stream ledger dead", "HSET seq !turn 7", "7 g", "removed number"),
    ("rebuild/remove", "seq stream ledger dead", "HSET seq !turn 8", "7 g", "overtaken"),
    ("rebuild/remove", "seq stream ledger dead", NO_SEQUENCES, "7 g", "removed number"),
    ("repartition/activate", "meta", "HSET meta moving 2 closing 1", "2 1 4 1", "active"),
    ("repartition/activate", "meta", "", "2 1 4 1", "given_up"),
    ("repartition/activate", "meta", "HSET meta moving 2 closing 2", "2 1 4 1", "overtaken"),
    ("repartition/give_up", "meta", "HSET meta moving 2 moving-partitions 4 left 3:1", "2", "given_up"),
    ("repartition/forget_left", "meta", "HSET meta left 2:1", "2", "forgotten"),
    ("repartition/give_up", "meta", "", "2", "other"),
    ("rebuild/reset", RESET_KEYS, GROUP, "1 g 0 reset:a v 1 d 1 n 0", "reset text"),
    ("rebuild/reset", RESET_KEYS, GROUP, "1 g - reset:a v 1 d 1 n 0", "ready text"),
    ("rebuild/reset", RESET_KEYS, PENDING, "1 g 0 reset:a v 1 d 1 n 0", "waiting text"),
    ("rebuild/reset", RESET_KEYS, f"{GROUP}; XADD stream 9-0 v 1 d 1", "1 g 9 reset:a v 1 d 1 n 0", "passed"),
    ("rebuild/reset", RESET_KEYS, f"{GROUP}; SET total:a x", "1 g 0 reset:a v 1 d 1 n 0", "rejected text text text"),
    ("rebuild/reset", RESET_KEYS, "HSET seq !closed 2", "1 g 0 reset:a v 1 d 1 n 0", "closed text"),
    ("rebuild/reset", RESET_KEYS, "SET live 2", "1 g 0 reset:a v 1 d 1 n 0", "switched"),
    ("rebuild/reset", RESET_KEYS, "SET live 1_5", "1 g 0 reset:a v 1 d 1 n 0", "outdated text"),
    ("rebuild/reset", RESET_KEYS, NO_LEDGER, "1 g 0 reset:a v 1 d 1 n 0", "damaged text"),
    ("rebuild/reset", RESET_KEYS, "", "1 g 0 reset:a v 1 d 1 n 0", "none"),
    ("repartition/close", "seq live", "", "2 1", "closed"),
    ("repartition/close", "seq live", "HSET seq !closing 2", "2 1", "overtaken"),
    ("repartition/close", "seq live", NO_LEDGER, "2 1", "damaged text"),
    ("repartition/reopen", "seq live", "HSET seq !closed 2 !closing 1", "1", "reopened"),
    ("repartition/reopen", "seq live", "HSET seq !closed 2 !closing 2", "1", "overtaken"),
    ("repartition/reopen", "seq live", "", "1", "open"),
    ("repartition/reopen", "seq live", NO_LEDGER, "1", "damaged text"),
    ("storage/open_partition", "seq", NEW, "1", "opened"),
    ("storage/open_partition", "seq", NO_LEDGER, "1", "damaged text"),
    ("repartition/propose", "meta", "HSET meta layout 4", "8", "moving text"),
    ("repartition/propose", "meta", "HSET meta layout 4 moving 2 moving-partitions 16", "8", "other text"),
    ("repartition/propose", "meta", "HSET meta layout 4 kept 1", "8", "kept text"),
    (
        "repartition/mark_read",
        "stream seq holds",
        "XADD stream 1-1 v 1; HSET holds move 0-0",
        "2 0-0 move",
        "read text",
    ),
    ("repartition/mark_read", "stream seq holds", "HSET seq !copying 2_1-1", "2 1-2 move", "gone"),
    ("repartition/mark_read", "stream seq holds", "HSET seq !copying 2_1-1", "2 1-1 move", "unheld"),
    ("repartition/mark_read", "stream seq holds", NO_SEQUENCES, "2 0-0 move", "damaged text"),
    ("repartition/hold", "stream seq holds", "XADD stream 1-1 v 1; HSET seq !copying 2_1-1", "2 move 1-1", "held"),
    ("repartition/hold", "stream seq holds", "XADD stream 1-1 v 1; HSET seq !copying 3_1-1", "2 move 1-1", "other"),
    ("repartition/copy", "stream copied ledger", "", "1 0 - 1-1 1 1 2 v 1", "copied"),
    ("repartition/copy", "stream copied ledger", "", "1 0 - 1-1 1 1 4 p copy t soon", "copied"),
    ("repartition/copy", "stream copied ledger", "HSET ledger entries:copied 1", "1 0 - 1-1 1 1 2 v 1", "damaged text"),
    ("repartition/copy", "stream copied ledger", NO_SEQUENCES, "1 0 - 1-1 1 1 2 v 1", "damaged text"),
    ("repartition/copy", "stream copied ledger", "", "1 0 9-9 1-1 1 1 2 v 1", "at text text"),
    ("repartition/copy", "stream copied ledger", "SET live 1_closed", "1 0 - 1-1 1 1 2 v 1", "closed"),
    (
        *("snapshot/open", "stream cut ledger topic dead", f"{PENDING}; {LEDGERS}", "g token 9000 3000"),
        "open text text text [text] [text text text text] [text text] text",
    ),
    ("snapshot/begin_restore", "meta lock", "SET lock me", "me 0 restoring []", "begun text"),
    ("snapshot/begin_restore", "meta lock", "SET lock other", "me 0 restoring []", "overtaken"),
    ("snapshot/close_partition", "stream live seq", GROUP, "g 5 1_restoring_5_x 9-0", "closed"),
    ("snapshot/close_partition", "stream live seq", "HSET seq !closing 6", "g 5 1_restoring_5_x 9-0", "overtaken"),
    (
        *("snapshot/close_partition", "stream live seq", "SET live 1_restoring_5_y", "g 5 1_restoring_5_x 9-0"),
        "overtaken",
    ),
    ("snapshot/close_other", "seq live", "", "5 !closed 2", "closed"),
    ("snapshot/close_other", "seq live", "SET live 1_restoring_6_x", "5 !closed 2", "overtaken"),
    ("snapshot/end_restore", "meta lock", "SET lock me", "me restoring a b c layout 1", "ended"),
    ("snapshot/end_restore", "meta lock", "", "me restoring a b c layout 1", "overtaken"),
    ("snapshot/hold_restore", "lock meta", "SET lock me", "me 5000 - -", "held"),
    ("snapshot/hold_restore", "lock meta", "SET lock me", "me 0 ? -", "released"),
    ("snapshot/hold_restore", "lock meta", "HSET meta closing 6", "me 5000 5 x", "lost"),
    ("snapshot/hold_restore", "lock meta", "HSET meta closing 5 restoring-by y", "me 5000 5 x", "lost"),
    ("snapshot/fenced", "live total", "", "1 SET total 2", "done text"),
    ("snapshot/fenced", "live total", "SET live 2", "1 SET total 2", "overtaken"),
    ("runtime/publish", "meta changes", "HSET meta layout 4", "0 mine me 0", "published text"),
    ("runtime/publish", "meta changes", "", "0 mine me 0", "gone"),
    (
        "runtime/publish",
        "meta changes",
        "HSET meta layout 4 rules mine revision 3",
        "3 mine me 0 spread@view",
        "unchanged text",
    ),
    ("runtime/publish", "meta changes", "HSET meta layout 4 rules mine revision 3", "3 mine me 3", "published text"),
    ("runtime/publish", "meta changes", "HSET meta layout 4 rules mine revision 3", "2 others me 0", "moved text"),
    (
        *("runtime/regain_rules", "meta changes", "HSET meta layout 4 rules mine revision 3"),
        *('3 others me 3 [["1-1",["number","2"]]] spread@view', "regained text"),
    ),
    ("runtime/regain_rules", "meta changes", "HSET meta layout 4 rules x revision 3", "2 others me 2 []", "moved text"),
    ("runtime/regain_rules", "meta changes", "", "2 others me 2 []", "gone"),
    ("snapshot/open", "stream cut ledger topic dead", f"{GROUP}; {NO_SEQUENCES}", "g token 9000 3000", "damaged text"),
    (
        *("snapshot/open", "stream cut ledger topic dead", f"{GROUP}; HSET ledger counted 1", "g token 9000 3000"),
        "damaged text",
    ),
    ("snapshot/open", "stream cut ledger topic dead", "SET cut another PX 9000", "g token 9000 3000", "busy"),
    ("snapshot/mark", "seq live", "HSET seq !snapshots other.1_mine.1", "mine.1 mine.2 0", "marked"),
    ("snapshot/mark", "seq live", "HSET seq !closing 2", "- mine.2 1", "replaced"),
    ("snapshot/mark", "seq live", "SET live 1_restoring_2_x", "- mine.2 0", "replaced"),
    ("snapshot/mark", "seq live", "", "mine.1 mine.2 0", "unknown"),
    ("snapshot/mark", "seq live", NEW, "- mine.2 0", "damaged text"),
    ("snapshot/close", "cut", "SET cut token; RPUSH cut:before s 0", "token", "closed text text"),
    ("snapshot/close", "cut", f"SET cut token; {WORDS}", "token", "more"),
    ("snapshot/close", "cut", "", "token", "lost"),
    ("snapshot/take", "cut", "SET cut token; RPUSH cut:before s 0", "token 9000 5000", "taken text text"),
    ("snapshot/take", "cut", "SET cut token", "token 9000 5000", "taken"),
    ("snapshot/take", "cut", "SET cut another", "token 9000 5000", "lost"),
    ("process/note", "meta", "HSET meta epoch e", "e field value", "noted"),
    ("process/note", "meta", "", "e field value", "gone"),
    ("process/unless_lost", "stream seq", "", "HSET seq field value", "done number"),
    ("process/unless_lost", "stream seq", NEW, "HSET seq field value", "damaged text"),
    ("process/add", "meta", "HSET meta epoch e", "e field 2", "added number"),
    ("process/forget", "meta", "HSET meta field 2", "field 2", "forgotten"),
    ("process/forget", "meta", "HSET meta field 3", "field 2", "other"),
    ("process/scan", "stream", "", "SCAN 0 MATCH stream*", "scanned text text []"),
    ("process/scan", "seq", "", "HSCAN 0", "scanned text text [text text]"),
    ("process/add", "meta", "", "e field 2", "gone"),
    ("snapshot/give_up", "cut", "SET cut token", "token", "given_up"),
    ("snapshot/give_up", "cut", "SET cut another", "token", "lost"),
    ("snapshot/replace_stream", REPLACED, "", "- 1", "replaced"),
    ("snapshot/replace_stream", REPLACED, PENDING, "- 1", "changed"),
    ("snapshot/replace_stream", REPLACED, "", "- 2", "overtaken"),
    ("archive/begin", "stream archive", "", "g 0-0 0", "begun"),
    ("archive/begin", "stream archive", PENDING, "g 0-0 0", "there"),
    ("archive/begin", "stream archive", NEW, "g 0-0 0", "damaged text"),
    ("archive/begin", "stream archive", "HSET ledger entries:gated 2", "g 0-0 0", "damaged text"),
    ("archive/begin", "stream archive", "DEL stream", "g 0-0 1", "damaged text"),
    ("archive/claim", "stream archive", PENDING, "g 1-1 2-1 3-1 2", "claimed text text text"),
    ("archive/claim", "stream archive", PENDING, "g 0-1 2-1 3-1 2", "moved"),
    ("archive/settle", "stream archive", CLAIMED, "g 2-1 3-1 2", "settled"),
    ("archive/settle", "stream archive", "", "g 2-1 3-1 2", "other"),
    ("archive/continue_after", "stream archive", CLAIMED, "g 1-1 2-1", "continued"),
    ("archive/continue_after", "stream archive", PENDING, "g 0-1 2-1", "moved"),
    ("archive/go_back", "stream archive", CLAIMED, "g 1-1 1-1 0-0", "back"),
    ("archive/go_back", "stream archive", CLAIMED, "g 1-1 2-1 0-0", "moved"),
    ("alerts/change_alerts", "states outbox", "", "hot view - a firing 7", "changed number"),
    ("alerts/change_alerts", "states outbox", NO_LEDGER, "hot view - a firing 7", "damaged text"),
    ("ingest/ingest", "stream seq ledger", "", "1 file 0 10 1 x", "appended text"),
    ("ingest/ingest", "stream seq ledger", "", "1 file 10 20 1 x", "at text"),
    ("ingest/ingest", "stream seq ledger", "HSET seq !closed 2", "1 file 0 10 1 x", "closed text"),
    ("ingest/ingest", "stream seq ledger", "HSET seq !limit 0", "1 file 0 10 1 x", "full text"),
    ("ingest/ingest", "stream seq ledger", "HELD", "1 file 0 10 1 x", "held"),
    ("ingest/ingest", "stream seq ledger", NO_SEQUENCES, "1 file 10 20 1 x", "damaged text"),
]

NO_GROUP: Final = [
    ("counting/apply", "stream dead ledger live", "g batch:a:1-1 -"),
    ("maintenance/losses", "stream ledger ledger", "g"),
    ("rebuild/switch", "stream live seq", "1 g 2 g-2 5 7"),
    ("rebuild/reset", RESET_KEYS, "1 g 0 reset:a v 1 d 1 n 0"),
    ("snapshot/open", "stream cut ledger ledger dead", "g token 1000 300"),
    ("archive/claim", "stream archive", "g 0-0 1-1 1-1 1"),
    ("archive/continue_after", "stream archive", "g 0-0 1-1"),
    ("archive/go_back", "stream archive", "g 0-0 1-1 0-0"),
]


def run(client: redis.Redis, script: str, keys: str, arguments: str) -> Any:
    """Call a script, given as `<folder>/<name>`, and return its reply as the server sends it."""
    folder, name = script.split("/")
    package = "tallystream.storage" if folder == "storage" else f"tallystream_worker.{folder}"
    called = Script(package, name)
    called.load(client)
    with client.pipeline(transaction=False) as pipeline:
        called.queue(pipeline, keys.split(), [argument(word) for word in arguments.split()])
        (reply,) = pipeline.execute(raise_on_error=False)
    if isinstance(reply, ResponseError):
        raise reply
    return reply


def argument(word: str) -> str | bytes:
    """Return the argument of a script for a word of `CASES`."""
    kind, *rest = word.split(":")
    if kind == "known":
        seen = (1, "seen:view:a", "seen:view:", "seen:view:c", 0, ("a\nx", "a", 1, 1, 1))
        periods = (("seen:view", 5, 9, "seen:view:a"),)
        return batch("a", *rest, sums=(), seen=(seen,), labels=({1: "", "text": ""},), periods=periods)
    if kind == "rules":
        return msgspec.msgpack.encode(msgspec.msgpack.decode(batch("a"))["rules"])
    if kind == "reset":
        return batch(*rest, sums=(), resets=[(1, *rest, "")])
    return batch(*rest) if kind == "batch" else "" if word == "-" else word.replace("_", " ")


def batch(subject: str, *ids: str, **more: Any) -> bytes:
    """Return a batch, in msgpack, that adds 1 to a counter and acknowledges the entries with these IDs.

    `more` replaces columns of the batch.
    """
    rule = {"metric": "view", "parts": "", "total": "total:", "up": "up:", "windows": [], "lengths": [], "limit": 0}
    rule |= {
        "limits": "limit:",
        "top": 0,
        "tops": [],
        "quota": 0,
        "sketch": "sketch",
        "bloom": 0,
        "apart": 1,
        "sketched": 0,
    }
    empty = ("labels", "windows", "sketches", "limited", "seen", "votes", "uniques", "periods")
    columns = {"sums": [(1, [subject], [1])], "ledger": ["counted", 1], "closes": {}, "left_out": {}}
    return msgspec.msgpack.encode({"ids": ids, "rules": [rule], **dict.fromkeys(empty, ()), **(columns | more)})


def shape(value: Any) -> str:
    """Return the shape of a field of a reply: `text`, `number`, or a list of these."""
    if isinstance(value, list):
        return f"[{' '.join(map(shape, value))}]"
    return "number" if isinstance(value, int) else "text" if isinstance(value, bytes) else repr(value)


def execute(client: redis.Redis, commands: str) -> None:
    """Execute commands, which `; ` separates."""
    for command in filter(None, commands.split("; ")):
        client.execute_command(*(word.replace("_", " ") for word in command.split(" ")))


@pytest.fixture
def client(server) -> Iterator[redis.Redis]:
    """Return a client of an empty server, made by `connect`."""
    client = connect(server.url)
    yield client
    client.close()


@pytest.mark.parametrize(("script", "keys", "before", "arguments", "reply"), CASES)
def test_a_reply_has_its_shape(client, script, keys, before, arguments, reply):
    """A reply is a status, then the fields of that status: texts, numbers or lists of texts."""
    before = f"{OPEN}; {before}".replace("HELD", f"HSET seq !hold {server_time(client) + 900}")
    execute(client, before)
    status, *fields = run(client, script, keys, arguments)
    assert " ".join([status.decode(), *map(shape, fields)]) == reply


@pytest.mark.parametrize("waiting", [0, 1500])
def test_a_reset_is_found_behind_any_number_of_pending_entries(client, waiting):
    """A batch is refused if a reset before it is pending, however many other entries are pending before the reset."""
    execute(client, OPEN)
    client.xgroup_create("stream", "g", "0", mkstream=True)
    with client.pipeline(transaction=False) as pipeline:
        for number in range(waiting):
            pipeline.xadd("stream", {"metric": "view", "subject": "a"}, id=f"1-{number + 1}")
        pipeline.xadd("stream", {"n": "0"}, id="2-1")
        pipeline.xadd("stream", {"metric": "view", "subject": "a"}, id="3-1")
        pipeline.execute()
    client.xreadgroup("g", "w", {"stream": ">"})
    reply = run(client, "counting/apply", "stream dead ledger live", "g batch:a:3-1 -")
    assert reply == [b"early", b"2-1"]


BEGINNING: Final = {
    "storage/open_partition",
    "storage/init_deployment",
    "rebuild/begin",
    "snapshot/close_partition",
    "snapshot/close_other",
    "snapshot/hold_restore",
}
"""The scripts that may write to a partition without keys, or to the slot of `tally:meta` if that is lost.

They begin a deployment, a partition or a restore.
"""


def content(client: redis.Redis) -> dict[bytes, bytes | None]:
    """Return all keys of the server with their values."""
    return {name: client.dump(name) for name in client.scan_iter()}


@pytest.mark.parametrize(("script", "keys", "before", "arguments", "reply"), CASES)
def test_a_partition_without_keys_stays_without_keys(client, script, keys, before, arguments, reply):
    """No script writes to a partition that has lost all its keys, except those that begin it again."""
    del before, reply
    if script not in BEGINNING:
        with suppress(ResponseError):
            run(client, script, keys, arguments.replace("HELD", "0"))
        assert content(client) == {}


DAMAGED = [case[:-1] for case in CASES if case[-1].split()[0] == "damaged"]


@pytest.mark.parametrize(("script", "keys", "before", "arguments"), DAMAGED)
def test_a_damaged_partition_does_not_change(client, script, keys, before, arguments):
    """A script that finds a lost key changes nothing."""
    execute(client, f"{OPEN}; {before}")
    found = content(client)
    run(client, script, keys, arguments)
    assert content(client) == found


COUNTING = {"counting/apply": -1, "storage/decide": 1, "dead_letters/retry": 1, "rebuild/reset": 0}
"""By script that counts by the rules that its caller knows, the place of their number in its arguments."""

REFUSED = [
    (script, keys, before, arguments, reply)
    for script, keys, before, arguments, reply in CASES
    if script in COUNTING and reply.split()[0] not in ("applied", "decided", "reset") and "live" not in before
    and arguments.split()[COUNTING[script]] == "1"
]  # fmt: skip


@pytest.mark.parametrize(("script", "keys", "before", "arguments", "reply"), REFUSED)
def test_a_refused_batch_does_not_change_the_rules_of_a_partition(client, script, keys, before, arguments, reply):
    """If a script with newer rules refuses its batch, the partition is still counted by the rules before."""
    before = f"{OPEN}; {before}".replace("HELD", f"HSET seq !hold {server_time(client) + 900}")
    execute(client, f"{before}; SET live 1_5")
    words = arguments.split()
    words[COUNTING[script]] = "1_6"
    status, *_ = run(client, script, keys, " ".join(words))
    assert status.decode() == reply.split()[0]
    assert client.get("live") == b"1 5"
    assert not client.exists("adopted")


@pytest.mark.parametrize(("script", "keys", "arguments"), NO_GROUP)
def test_a_missing_group_is_an_error(client, script, keys, arguments):
    """A missing consumer group is an error of the script (NOGROUP), not a status."""
    execute(client, OPEN)
    client.xadd("stream", {"v": "1"}, id="1-1")
    client.hset("seq", "!turn", 7)
    with pytest.raises(ResponseError, match=r"^NOGROUP"):
        run(client, script, keys, arguments)


def test_every_status_of_every_script_has_a_case():
    """The header of each script lists its statuses, each a lower-case word, and every status is tested here."""
    documented = set()
    for file in [*ROOT.glob("producer/**/*.lua"), *ROOT.glob("worker/**/*.lua")]:
        text = file.read_text()
        if text.startswith("#!lua"):
            returned = text[text.index("-- Returns {") : text.index("-- Invariant:")]
            script = f"{file.parent.parent.name}/{file.stem}"
            documented |= {(script, status) for status in STATUS.findall(returned)}
    assert documented == {(script, reply.split()[0]) for script, *_, reply in CASES}
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", status) for _, status in documented)
