"""The read service: counters, health and metrics over HTTP."""
