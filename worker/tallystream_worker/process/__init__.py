"""What any long-running process needs: periodic services, signals, logs, listen addresses."""
