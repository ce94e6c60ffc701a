"""Validates events, packs them into entries, and appends each entry once; or decides a single event at once."""
