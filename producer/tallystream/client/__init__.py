"""Connects to one server, to Sentinel or to a cluster, and checks how durable a write is."""
