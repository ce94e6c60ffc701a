"""Connects to one server, to Sentinel or to a cluster; classifies error replies; checks the durability of writes."""
