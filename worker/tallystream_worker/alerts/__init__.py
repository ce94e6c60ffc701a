"""Evaluates alerts that change as time passes, and delivers the notifications of all alerts."""
