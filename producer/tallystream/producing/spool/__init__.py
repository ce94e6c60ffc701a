"""The buffer on disk: events survive a crash of the application, and the next producer sends them."""
