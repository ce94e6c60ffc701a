"""One command a file, named as the command; none imports another: what they share is in the package above."""
