"""What keeps a partition healthy beside the counting: trimming, losses, idle names, hot subjects."""
