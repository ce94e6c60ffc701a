"""The names of all keys, and the scripts that run inside the server."""
