"""
Widths, quotes, missing values, ids and times of delimited text, JSON lines and frames, decided once for all sources.
"""
