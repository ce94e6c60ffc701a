"""Alerts beside the counting: conditions that change as time passes, and the delivery of what was noticed."""
