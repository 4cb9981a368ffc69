"""What collection costs, measured: ``python -m benchmarks --help``."""
