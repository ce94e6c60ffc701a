"""Takes events, packs them into entries, and appends each entry once; or decides one event at once."""
