"""The names of all keys, the fields of the deployment's hashes, and the scripts that run inside the server."""
