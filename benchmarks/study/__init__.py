"""Where a text model earns its place: `python -m benchmarks.study`."""
