"""Counts entries: the loop fetches entries, folds them into a batch, and applies the batch."""
