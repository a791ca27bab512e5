"""Recommenders without a language model: (histories, candidates) in, scores out; and scores of any system on disk."""
