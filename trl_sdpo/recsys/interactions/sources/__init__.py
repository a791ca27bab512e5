"""One module for each publisher, on the shared readers."""
