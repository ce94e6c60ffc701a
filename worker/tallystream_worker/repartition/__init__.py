"""Another number of partitions: the events are copied into a new log, and then everybody goes on there.

Data flows down: `copying` copies entries, `counting` counts what was copied, `log` closes, points and removes, `move`
makes one move of these.
"""
