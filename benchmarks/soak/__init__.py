"""Load and faults: `python -m benchmarks.soak`. See docs/soak.md."""
