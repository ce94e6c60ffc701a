"""What an entry of a stream holds, and how events are packed into it."""
