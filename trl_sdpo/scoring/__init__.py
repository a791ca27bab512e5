"""
A language model on candidates and on whole catalogues: likelihoods, answers, the tree of titles, beam search, hard negatives.

Enters: records or histories, a model and its tokenizer. Leaves: numbers or titles. Knows no trainer.
"""
