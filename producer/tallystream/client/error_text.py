"""The texts of errors for logs and messages."""

from __future__ import annotations


def text_of(error: Exception) -> str:
    """Return the text of an expected error; of an error without a text, the name of its class."""
    return str(error) or type(error).__name__


def named_text(error: Exception) -> str:
    """Return the class and the text of an unexpected error, such as `ValueError: not a number`."""
    return f"{type(error).__name__}: {error}"
