"""The format of stream entries: events, how they are packed into an entry, and how an entry is read."""
