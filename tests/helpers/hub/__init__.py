"""A Hub on this machine, over HTTP, and processes that talk to it as to the real one."""
