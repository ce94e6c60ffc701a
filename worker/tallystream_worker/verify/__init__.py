"""Verifies a deployment from end to end: states what is proved, from when to when, and what is not and why."""
