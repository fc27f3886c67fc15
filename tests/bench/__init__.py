"""The parts of benchmark.py: floors, measures, and the report."""
