"""Records of more events than memory holds: from Parquet files of some users each, one at a time, with the steps of the way in memory."""
