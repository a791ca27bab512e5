"""The comparison of the S-DPO paper on MovieLens-100k: `python -m benchmarks.paper_table`."""
