"""Builds the worker from its services, and starts, supervises and stops them."""
