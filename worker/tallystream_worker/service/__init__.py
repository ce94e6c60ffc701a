"""The read service: serves counters, leaderboards, limits, votes, events, health and metrics over HTTP."""
