"""From events a second, subjects and rules to servers, workers and memory: a calculation, nothing is measured here.

Read in this order: `load` (what comes), `packing` (into how many entries and batches), `processor`, `storage` and
`network` (what that costs), `sizing` (how many of everything), `explain` (why), `command` (`tallystream plan`).
"""
