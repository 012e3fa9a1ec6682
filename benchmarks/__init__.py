"""How fast each stage is, beside a plain reference of it in the same run: `python -m benchmarks.run --size M`."""
