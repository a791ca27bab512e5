"""
A prompt and its 1 + K completions in one row: the rows, their attention masks, the collator that makes them, and the scores of
their completions. Knows no trainer.
"""
