"""A server for one computation: it is started with an empty folder, and both are removed at the end."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tallystream.client.connect import connect
from tallystream.client.replies import BROKEN
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.server.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis


@contextmanager
def scratch_server(prefix: str, *extra: str) -> Iterator[redis.Redis]:
    """Run a temporary server in the context, and yield a client of it; at the end, remove the server and its data.

    Args:
        prefix: The beginning of the name of the temporary folder.
        extra: More arguments of the server: see `EmbeddedServer`.

    Raises:
        EmbeddedServerError: the server cannot be started, or its folder cannot be made or written; or the server has
            ended by itself, so that a command in the context failed.

    Any other error in the context is raised unchanged.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True))
            server = stack.enter_context(EmbeddedServer(Path(folder), extra=extra, is_scratch=True))
        except OSError as error:
            raise EmbeddedServerError(
                f"the temporary server cannot be started: {error}. Remove the cause, such as a full disk, or name "
                "another folder for temporary files in the environment variable TMPDIR"
            ) from error
        client = connect(server.url)
        stack.callback(client.close)
        try:
            yield client
        except BROKEN:
            server.ensure_running()
            raise
