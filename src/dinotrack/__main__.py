"""`python -m dinotrack` is the console script."""

from dinotrack.cli import main

main()
