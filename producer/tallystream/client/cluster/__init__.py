"""A client of a Redis or Valkey cluster that never sends a write twice."""
