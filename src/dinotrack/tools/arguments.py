"""What options of more than one tool are made of: a word of the command line to a value, or argparse's complaint."""

import argparse


def numbers(text: str) -> list[int]:
    """Whole numbers between commas: 0,5,9."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers between commas, as in 0,5,9") from error
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers from 0")
    return found


def query(text: str) -> tuple[float, float, float]:
    """t,x,y."""
    try:
        t, x, y = (float(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected t,x,y, as in 0,120.5,80") from error
    return t, x, y


def size(text: str) -> tuple[int, int]:
    """WxH."""
    try:
        width, height = (int(word) for word in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected WxH in pixels, as in 854x480") from error
    if min(width, height) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected sides of at least 1 pixel")
    return width, height
