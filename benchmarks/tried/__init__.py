"""Inputs of every kind, right and wrong, each made here and handed to dinotrack: `python -m benchmarks.tried.run`."""
