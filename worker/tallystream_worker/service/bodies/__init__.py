"""Decompresses request bodies, and decodes and checks the events in them."""
