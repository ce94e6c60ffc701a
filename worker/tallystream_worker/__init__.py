"""The workers, the read service and the command line of tallystream, exact event counters on Redis Streams."""
