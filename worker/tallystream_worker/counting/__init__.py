"""The loop that counts: fetch entries, fold them into a batch, apply the batch."""
