"""Lists, retries and drops dead letters: entries that could not be counted."""
