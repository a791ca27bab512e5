"""What can be recommended: items in memory, and those of a file that is larger than one wants to read."""
