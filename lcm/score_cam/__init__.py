"""Score-CAM: the method, its figure, and pictures of one's own."""

from lcm.score_cam.method import ScoreCAM, score_cam

__all__ = ["ScoreCAM", "score_cam"]
