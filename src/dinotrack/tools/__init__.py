"""Small commands with argparse, one module each: `main(arguments)` of `tools/NAME.py` is `dinotrack NAME`."""
