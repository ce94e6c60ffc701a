"""Exact event counters on Redis Streams: workers, read service and command line."""
