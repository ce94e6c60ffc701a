"""Restarts producers in the child process after a fork, and closes them when the interpreter exits."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis.exceptions import RedisError

from tallystream.errors import TallyError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_restarts: Final[weakref.WeakKeyDictionary[Any, Callable[[Any], None]]] = weakref.WeakKeyDictionary()


def follow_process(owner: T, *, restart: Callable[[T], None], close: Callable[[T], None]) -> None:
    """Arrange that `restart(owner)` is called in each child after a fork, and `close(owner)` at interpreter exit.

    Neither is called if `owner` was garbage-collected before; no reference here keeps it alive. `close` is called even
    if the owner was closed before, and also at the exit of each forked child. A `TallyError`, `redis.RedisError` or
    `OSError` of `close` is not raised, but written to standard error. A process that ends without its exit handlers,
    such as by `os._exit`, calls no `close`.
    """
    _restarts[owner] = restart
    atexit.register(_close_at_exit, weakref.ref(owner), close)


def _restart_in_child() -> None:
    for owner, restart in list(_restarts.items()):
        restart(owner)


def _close_at_exit(reference: weakref.ref[T], close: Callable[[T], None]) -> None:
    owner = reference()
    if owner is not None:
        try:
            close(owner)
        except (TallyError, RedisError, OSError) as error:
            # No caller is left to catch the error: write it to standard error.
            os.write(2, f"tallystream: {error}\n".encode())


os.register_at_fork(after_in_child=_restart_in_child)
