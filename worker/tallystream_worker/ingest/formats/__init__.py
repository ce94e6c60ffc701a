"""Parsers from lines and rows to events, one file for each format."""
