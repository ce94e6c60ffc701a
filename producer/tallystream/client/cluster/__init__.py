"""A client for Redis and Valkey Cluster that never sends a write twice."""
