"""The side-by-side figures of the README: `make bench`, or `python -m benchmarks --help`."""
