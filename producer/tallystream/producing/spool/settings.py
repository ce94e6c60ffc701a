"""The settings of a spool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tallystream.errors import ConfigurationError
from tallystream.producing.partition_queue import new_name

if TYPE_CHECKING:
    from pathlib import Path

Sync = Literal["os", "disk"]
"""The place that an event must have reached before `emit` returns: the operating system, or the disk."""


@dataclass(frozen=True)
class SpoolSettings:
    """The settings of a spool; creates its folder, and creates and removes a file in it to check that it is writable.

    Attributes:
        folder: Folder of the spool, with one folder in it for each producer.
        most_bytes: `spool_bytes` of `Producer`: bytes of one producer in the spool at which no further event is added,
            at least 1 MiB. Records that the delivery needs are still written.
        sync: `os` if the operating system must have an event before `emit` returns, `disk` if the disk must.
        namespace: Namespace of the deployment.

    Raises:
        ConfigurationError: a setting is invalid, or the folder cannot be written.
    """

    folder: Path
    most_bytes: int
    sync: Sync
    namespace: str

    def __post_init__(self) -> None:
        if self.most_bytes < 2**20:
            raise ConfigurationError(f"spool_bytes must be at least 1,048,576, not {self.most_bytes}")
        if self.sync not in ("os", "disk"):
            raise ConfigurationError(f"spool_sync must be os or disk, not {self.sync!r}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{new_name()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"spool {self.folder} cannot be written ({error.strerror}): set a writable folder"
            ) from None
