"""The service: counters, what the rules hold, events, health and metrics over HTTP."""
