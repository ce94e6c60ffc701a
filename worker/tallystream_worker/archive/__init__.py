"""Writes every entry of the streams to Parquet files, once; a row is an event, or a group of equal events.

Data flows down: `archiver` reads a stream and advances its group, `rows` converts entries to columns and back, `store`
writes and reads files under a URL, `entries` reads archived entries again.
"""
