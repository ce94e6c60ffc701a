"""The texts of errors for logs and messages."""

from __future__ import annotations


def text_of(error: Exception) -> str:
    """Return the text of an error; if it has none, the name of its class. Use it for an expected error."""
    return str(error) or type(error).__name__


def named_text(error: Exception) -> str:
    """Return the class and the text of an error, such as `ValueError: not a number`. Use it for an unexpected error."""
    return f"{type(error).__name__}: {error}"
