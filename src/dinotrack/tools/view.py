"""`dinotrack view RUN_FOLDER [--compare OTHER] [--objects FILE] [--output view.html]`."""

import argparse
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from dinotrack.progress import shown
from dinotrack.viewer import NO_OBJECTS, open_sources, read_objects, tracks_file, write_view


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="dinotrack view", description="write a page that plays a run in the browser")
    parser.add_argument("run", type=Path, help="a run folder, or a file of tracks (.npz)")
    parser.add_argument("--compare", type=Path, metavar="OTHER", help="another run folder or file, of the same video")
    parser.add_argument(
        "--objects", type=Path, help="labels or masks (.npy), a folder of masks, or a .csv point,object"
    )
    parser.add_argument("--video", help="where the video is, if not where it was tracked")
    parser.add_argument("--start", type=int, help="first frame that was tracked, if the run folder does not say")
    parser.add_argument("--output", type=Path, help="default: view.html beside the tracks")
    parser.add_argument("--max-side", type=int, default=960, help="long side of the frames in the page, pixels")
    parser.add_argument("--quality", type=int, default=85, help="of the frames in the page, JPEG's 1 to 95")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    options = parser.parse_args(arguments)

    sources = [options.run, *([options.compare] if options.compare else [])]
    video, sets = open_sources(*sources, video=options.video, start=options.start, max_side=options.max_side)
    objects = read_objects(options.objects, sets[0].tracks, video) if options.objects else NO_OBJECTS
    output = options.output or tracks_file(options.run).parent / "view.html"
    sizes = {"max_side": options.max_side, "quality": options.quality}
    write_view(video, sets, output, objects=objects, progress=shown, **sizes)
    print(output)
    if options.open:
        webbrowser.open(output.resolve().as_uri())
