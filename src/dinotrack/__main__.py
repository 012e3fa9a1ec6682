"""`python -m dinotrack` is the console script; Lightning begins the processes of further devices by the path of this file."""

import sys

if not __package__:  # by its path: the package's own folder would hide standard modules of the same names
    del sys.path[0]

from dinotrack.cli import main

main()
