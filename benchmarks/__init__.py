"""Programs that print times, ratios and tables; never timed tests. Each says in its first lines how it is run."""
