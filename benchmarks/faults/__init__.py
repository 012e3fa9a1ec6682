"""What may happen to a run, made to happen: a module for each row of the table in docs/reliability.md.

python -m benchmarks.faults            # all rows, some twenty minutes; keeps docs/results/faults.json and fills the table
python -m benchmarks.faults --short    # each a few times, as the tests do; keeps nothing
python -m benchmarks.faults killed     # one row
"""
