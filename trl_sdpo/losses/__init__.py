"""Losses over one chosen and several rejected completions, as pure functions: tensors in, one loss per record out."""
