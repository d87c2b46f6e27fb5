"""Identification in surveillance video: IJB-S, five protocols, closed and open set, by any aggregator.

python validate_IJB_S.py --weights WEIGHTS --data_root FOLDER
    FOLDER/<SUBJECT>/videos_<VIDEO>_<FRAME>.jpg, FOLDER/<SUBJECT>/img_<NUMBER>.jpg: aligned faces
    FOLDER/protocols/: the csv files of the data set; see README.md
python validate_IJB_S.py --weights WEIGHTS --data_root FOLDER --aggregator norm_weighted media_mean
    several ways to fuse the faces of a set share the features and are in one table
"""

from __future__ import annotations

import sys
from pathlib import Path

# The packages of the project are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from validation.ijb_s import PROTOCOL

if __name__ == "__main__":
    sys.exit(PROTOCOL.main(__doc__))
