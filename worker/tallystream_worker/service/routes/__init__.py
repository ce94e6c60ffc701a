"""The HTTP routes, one file for each group: they parse parameters and encode responses."""
