"""`SoftmaxDPOTrainer` and what it is made of. Its public names are those of `trl_sdpo`."""
