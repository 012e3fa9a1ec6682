"""A run that is asked to stop saves, says so in one line, and goes on by the same command."""

from functools import partial

from benchmarks.faults import killed
from benchmarks.faults.trying import Row

ROW = Row(
    "asked to stop at a random moment (SIGTERM); then the same command",
    "one line and exit code 143, the step at hand saved, no temporary file; then as above",
    partial(killed.tries, number=15),
    short=1,
    long=20,
)
