"""The configuration: read once, checked once, frozen."""
