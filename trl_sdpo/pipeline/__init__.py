"""A run from records to an evaluated model: the stages that the commands, the examples and the benchmarks share."""
