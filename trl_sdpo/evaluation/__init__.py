"""
Several systems on the same records: metrics with chance and intervals, paired tests, breakdowns, and the report of it all.

Enters: records, and the scores or answers of systems. Leaves: `results.json`, `report.md`, `report.html`. Names that are public here
need no torch; [`RankingCallback`] is imported from `trl_sdpo`.
"""
