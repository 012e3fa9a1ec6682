"""Track any point through a video, trained at test time on that one video."""

__version__ = "0.1.0"
