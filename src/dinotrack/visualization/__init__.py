"""Pictures that show why a track is right or wrong: tracks over their video, and what the features see."""

from dinotrack.visualization.layout import (
    contact_sheet,
    enlarge,
    resized,
    save_png,
    tile,
    titled,
)
from dinotrack.visualization.matches import best_buddies_between, draw_matches, on_mask, spread, tracklets_between
from dinotrack.visualization.overlay import draw_tracks, render_overlay
from dinotrack.visualization.palette import COLOURINGS, confidence_colours, row_colours, start_colours
from dinotrack.visualization.pca import pca_frames
from dinotrack.visualization.pen import opencv_points
from dinotrack.visualization.side_by_side import compare_tracks
from dinotrack.visualization.similarity import Look, heat_frames, similarity_maps, similarity_picture

__all__ = [
    "COLOURINGS",
    "Look",
    "best_buddies_between",
    "compare_tracks",
    "confidence_colours",
    "contact_sheet",
    "draw_matches",
    "draw_tracks",
    "enlarge",
    "heat_frames",
    "on_mask",
    "opencv_points",
    "pca_frames",
    "render_overlay",
    "resized",
    "row_colours",
    "save_png",
    "similarity_maps",
    "similarity_picture",
    "spread",
    "start_colours",
    "tile",
    "titled",
    "tracklets_between",
]
