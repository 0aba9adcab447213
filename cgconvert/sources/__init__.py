"""From what a user typed to files on the disk."""
