"""Reads and checks the configuration once, and returns it as frozen settings."""
