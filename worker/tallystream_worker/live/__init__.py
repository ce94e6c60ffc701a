"""Sends live updates: reads from the streams which counters changed, and reads their totals once for all readers."""
