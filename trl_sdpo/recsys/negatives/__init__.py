"""Who may be a negative, and which are drawn."""
