"""Ten-fold accuracy of a backbone on pairs of faces: LFW, CFP-FP, CPLFW, CALFW, AgeDB-30, or one's own.

python validate_pairs.py --weights WEIGHTS --data_root FOLDER
    all pair sets (lfw.bin, ...) of a folder
python validate_pairs.py --weights WEIGHTS --pairs FOLDER LIST
    a folder of aligned faces and a list of pairs, in LFW's layout or 'FILE1 FILE2 0|1'
"""

from __future__ import annotations

import sys
from pathlib import Path

# The packages of the project are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from validation.pairs import PROTOCOL

if __name__ == "__main__":
    sys.exit(PROTOCOL.main(__doc__))
