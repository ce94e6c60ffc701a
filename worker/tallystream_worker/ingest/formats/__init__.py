"""Parses lines and rows into events, one file for each format."""
