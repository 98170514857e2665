"""Fault harness: `python -m tests.faults` injects what clusters do to runs and holds each fault to its declared
outcome."""
