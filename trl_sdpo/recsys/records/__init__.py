"""
From interactions to multi-preference records: sequences, splits, targets, rows, the report; and what travels with a model.
"""
