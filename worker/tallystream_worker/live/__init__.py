"""Live updates: the log says what changed, and the totals of it are read once for everyone who follows."""
