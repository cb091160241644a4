"""Benchmarks: `python -m tests.bench`. Every figure is measured in the run that prints it; CI times nothing."""
