"""Starts the embedded server, writes the users of a server, and warns of unsafe server versions."""
