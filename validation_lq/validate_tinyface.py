"""Closed-set identification of tiny faces among 153,428 distractors: TinyFace, rank 1, 5 and 20.

python validate_tinyface.py --weights WEIGHTS --data_root FOLDER
    FOLDER/tinyface/Testing_Set/ as it is published, and an aligned copy beside it; see README.md
"""

from __future__ import annotations

import sys
from pathlib import Path

# The packages of the project are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from validation.tinyface import PROTOCOL

if __name__ == "__main__":
    sys.exit(PROTOCOL.main(__doc__))
