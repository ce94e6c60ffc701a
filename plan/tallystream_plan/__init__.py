"""Calculates the partitions, servers, workers, memory and traffic of a load from its events, subjects and rules.

The constants are measured elsewhere. Read the modules in this order: `load` (the expected events), `packing` (their
entries and batches), `processor`, `storage` and `network` (the cost of these), `sizing` (the numbers of partitions,
servers and workers), `explain` (the reasons), `command` (`tallystream plan`).
"""
