"""The declared rules of each metric: how its events count, how long they are kept, and what a batch of them changes."""
