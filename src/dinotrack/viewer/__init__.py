"""A run in the browser: one HTML file that holds the video, the tracks and what draws them, and asks no network for anything."""

from dinotrack.viewer.objects import NO_OBJECTS, Objects, read_objects
from dinotrack.viewer.page import write_view
from dinotrack.viewer.points import TrackSet
from dinotrack.viewer.sources import described, open_sources, tracks_file

__all__ = [
    "NO_OBJECTS",
    "Objects",
    "TrackSet",
    "described",
    "open_sources",
    "read_objects",
    "tracks_file",
    "write_view",
]
