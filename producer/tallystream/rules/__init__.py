"""What is declared for each metric: how events count, for how long, and what a batch of them changes."""
