"""The embedded server, its users, and advice on the settings of any server."""
