"""Benchmarks against pip-installable peers, in the same run. Results: benchmarks/RESULTS.md. No test is ever timed."""
