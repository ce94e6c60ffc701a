"""Request bodies: decompressed, decoded and checked into events."""
