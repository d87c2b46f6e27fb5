"""Ten-fold accuracy on YouTube Faces: 5,000 pairs of videos, each video a set of frames, by any aggregator.

python validate_ytf.py --weights WEIGHTS --data_root YouTubeFaces
    YouTubeFaces/aligned_images_DB/<NAME>/<VIDEO>/<frame>.jpg and YouTubeFaces/splits.txt
python validate_ytf.py --weights WEIGHTS --data_root YouTubeFaces --aggregator mean norm_weighted --frames 50
    several ways to fuse the frames of a video share the features; 50 frames of each video, evenly spaced
"""

from __future__ import annotations

import sys
from pathlib import Path

# The packages of the project are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from validation.youtube_faces import PROTOCOL

if __name__ == "__main__":
    sys.exit(PROTOCOL.main(__doc__))
