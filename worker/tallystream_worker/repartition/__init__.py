"""Changes the number of partitions: copies the events into a new topic, and then switches to it.

Data flows down: `copy` copies entries, `catch_up` counts the copies, `topic` closes, switches and removes whole topics,
`migration` makes one repartition of these steps, `stragglers` copies what clients append to the old topic later.
"""
