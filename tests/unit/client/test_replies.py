"""Error replies are classified by their first words, also after redis-py, a script or a pipeline changed their text."""

from __future__ import annotations

import pytest
import redis
from redis._parsers.base import BaseParser
from redis.exceptions import MaxConnectionsError, RedisError

from tallystream.client.error_text import text_of
from tallystream.client.replies import is_refusal, missing_group
from tallystream.errors import GROUP_REMEDY
from tests.replies import meanings

ON_THE_WIRE = [
    ("ERR no such key", {"key_missing", "stream_or_group_missing"}),
    (
        "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use MKSTREAM",
        {"key_missing", "stream_or_group_missing"},
    ),
    (
        "NOGROUP No such key 's' or consumer group 'g' in XREADGROUP with GROUP option",
        {"group_missing", "stream_or_group_missing", "about_server"},
    ),
    (
        "NOGROUP No such consumer group 'g' for key name 's'",
        {"group_missing", "stream_or_group_missing", "about_server"},
    ),
    ("BUSYGROUP Consumer Group name already exists", {"group_there"}),
    ("ERR unknown command 'WAITAOF', with args beginning with: '1' '0' ", {"command_unknown"}),
    ("ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.", {"append_only_file_missing"}),
    ("ERR This instance has cluster support disabled", {"single_server"}),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", {"refusal", "wrong_type"}),
    ("NOPERM User u has no permissions to run the 'set' command", {"permission_missing", "refusal", "about_server"}),
    (
        "ERR The user executing the script can't run this command or subcommand",
        {"permission_missing", "refusal", "about_server"},
    ),
    (
        "ERR ACL failure in script: User u has no permissions to run the 'set' command",
        {"permission_missing", "refusal", "about_server"},
    ),
    (
        "WRONGPASS invalid username-password pair or user is disabled.",
        {"refusal", "about_server", "connection_stale", "broken"},
    ),
    ("NOAUTH Authentication required.", {"refusal", "about_server", "connection_stale", "broken"}),
    ("ERR max number of clients reached", {"about_server", "connection_stale", "broken", "unreachable"}),
    ("LOADING Redis is loading the dataset in memory", {"about_server", "connection_stale", "broken", "unreachable"}),
    ("READONLY You can't write against a read only replica.", {"about_server", "connection_stale"}),
    ("OOM command not allowed when used memory > 'maxmemory'.", {"about_server"}),
    ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist", {"about_server"}),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", {"about_server"}),
    ("NOREPLICAS Not enough good replicas to write.", {"about_server"}),
    ("UNBLOCKED client unblocked via CLIENT UNBLOCK", {"about_server"}),
    ("UNBLOCKED the stream key no longer exists", {"group_missing", "stream_or_group_missing", "about_server"}),
    ("NOSCRIPT No matching script. Please use EVAL.", {"about_server"}),
    ("EXECABORT Transaction discarded because of previous errors.", {"about_server"}),
    ("MOVED 3999 127.0.0.1:6381", {"not_executed", "about_server"}),
    ("ASK 3999 127.0.0.1:6381", {"not_executed", "asking", "about_server"}),
    ("TRYAGAIN Multiple keys request during rehashing of slot", {"not_executed", "about_server"}),
    ("CLUSTERDOWN Hash slot not served", {"not_executed", "about_server", "unreachable"}),
    (
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        {"not_executed", "about_server", "unreachable"},
    ),
    ("CROSSSLOT Keys in request don't hash to the same slot", {"about_server"}),
    ("ERR value is not an integer or out of range", set()),
]


@pytest.mark.parametrize(("text", "expected"), ON_THE_WIRE)
def test_what_a_reply_means(text, expected):
    """Each error reply has exactly the expected meanings."""
    assert meanings(BaseParser.parse_error(text)) == expected


@pytest.mark.parametrize(("text", "expected"), ON_THE_WIRE)
def test_what_a_script_appends_changes_no_meaning(text, expected):
    """The script's name at the end of an error reply does not change its meanings."""
    if not text.startswith(("MOVED", "ASK", "ERR max number")):  # no script passes those on
        assert meanings(BaseParser.parse_error(f"{text} script: 9ae0, on @user_script:1.")) == expected


@pytest.mark.parametrize(("text", "expected"), ON_THE_WIRE)
def test_what_a_pipeline_prepends_changes_no_meaning(text, expected):
    """The command's number and text before the error of a pipeline do not change its meanings."""
    error = BaseParser.parse_error(text)
    with redis.Redis().pipeline() as pipeline:
        pipeline.annotate_exception(error, 2, ("XADD", "unknown command"))
    assert str(error).startswith("Command # 2")
    assert meanings(error) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            redis.ConnectionError("Connection closed by server."),
            {"about_server", "connection_stale", "broken", "unreachable"},
        ),
        (
            redis.TimeoutError("Timeout reading from socket"),
            {"about_server", "connection_stale", "broken", "unreachable"},
        ),
        (
            redis.ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed"),
            {"about_server", "connection_stale", "broken", "certificate_untrusted", "unreachable"},
        ),
        (MaxConnectionsError("Too many connections"), {"about_server", "connection_stale", "broken"}),
        (RedisError("anything else"), {"about_server", "connection_stale"}),
    ],
)
def test_what_an_error_of_the_connection_means(error, expected):
    """An error that is not a reply means a stale connection, whatever the command."""
    assert meanings(error) == expected


def test_words_within_a_text_mean_nothing():
    """A word of another reply within an error text, such as an argument, does not change the meanings."""
    assert not is_refusal(BaseParser.parse_error("ERR syntax error near 'WRONGTYPE'"))
    assert meanings(BaseParser.parse_error("ERR syntax error near 'NOGROUP no such key'")) == set()


@pytest.mark.parametrize(
    "text",
    [
        "NOGROUP No such key 's:{t}:stream' or consumer group '{}' in XREADGROUP with GROUP option",
        "NOGROUP No such consumer group '{}' for key name 's:{t}:stream'",
        "NOGROUP s:{t}:stream has no consumer group {}",
    ],
)
@pytest.mark.parametrize(("group", "counts"), [("tally", True), ("tally-12", True), ("archive", False)])
def test_a_missing_group_is_named_with_its_remedy(text, group, counts):
    """The text of an error about a missing group has no word of the server, and states what mends a group of workers.

    This is also so after a script or a pipeline has changed the text.
    """
    raw = text.replace("{}", group)
    for each in (raw, f"{raw} script: 9ae0, on @user_script:1."):
        error = BaseParser.parse_error(each)
        assert missing_group(error) == ("s:{t}:stream", group)
        with redis.Redis().pipeline() as pipeline:
            pipeline.annotate_exception(error, 2, ("XADD", "unknown command"))
        told = text_of(error)
        assert told.startswith(f"s:{{t}}:stream: consumer group {group!r} is missing")
        assert "NOGROUP" not in told
        assert (GROUP_REMEDY in told) == counts


@pytest.mark.parametrize("text", ["NOGROUP", "ERR no such key", "UNBLOCKED the stream key no longer exists"])
def test_other_errors_name_no_group(text):
    """Any other error keeps its text."""
    error = BaseParser.parse_error(text)
    assert missing_group(error) is None
    assert text_of(error) == str(error)
