"""States which changes of the rules a server had lost, and whether they are live again, for `restore` and `reopen`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def regained_text(numbers: Sequence[int], *, is_live: bool) -> str:
    """Return a text about changes of the rules that are recorded again, without a full stop.

    Args:
        numbers: The numbers of the changes that the server had lost.
        is_live: Whether their rules are live again.
    """
    named = list(dict.fromkeys(map(str, numbers)))
    if len(named) == 1:
        lost, they = f"The server had lost the change of the rules with the number {named[0]}: it is", "it contradicts"
    else:
        lost = f"The server had lost the changes of the rules with the numbers {', '.join(named)}: they are"
        they = "they contradict"
    if is_live:
        return f"{lost} live again, with the changes after the loss; see tallystream rules --history"
    return (
        f"{lost} recorded again, but not live, because {they} the changes after the loss. See tallystream rules "
        "--history, then start a worker whose configuration has what was lost"
    )
