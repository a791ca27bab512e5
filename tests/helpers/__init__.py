"""What tests of more than one file need."""
