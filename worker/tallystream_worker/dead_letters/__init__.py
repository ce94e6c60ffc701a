"""Entries that could not be counted: listed, retried, dropped."""
