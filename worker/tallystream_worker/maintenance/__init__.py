"""Maintains the partitions: trims streams, accounts for losses, removes idle names, finds hot subjects."""
