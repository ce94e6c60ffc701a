"""What any long-running process needs: periodic tasks, signals, logs, listen addresses."""
