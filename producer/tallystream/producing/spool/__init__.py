"""The buffer on disk: entries survive a crash of the application and are sent by the next start."""
