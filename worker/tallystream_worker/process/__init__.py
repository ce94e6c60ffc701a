"""Runs periodic services, handles signals, writes logs, and checks listen addresses, for any long-running process."""
