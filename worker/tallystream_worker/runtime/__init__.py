"""Runs the worker: puts its services together, starts, supervises and stops them."""
