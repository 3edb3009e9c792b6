"""The gateway beside its floors: `python -m benchmarks.run`, figures in RESULTS.md."""
