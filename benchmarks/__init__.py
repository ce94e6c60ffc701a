"""Benchmarks that compare ways to count events on one server: `make bench`, or `python -m benchmarks --help`."""
