"""The commands of `trl-sdpo`: a module each, with `make_parser` and `run`."""
