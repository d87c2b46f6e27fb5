"""IJB-B, IJB-C and every set benchmark of their layout: images or features -> figures, 1:1 and 1:N.

python validate_ijb.py --data_root DATA --dataset_name IJBB --weights WEIGHTS
    embeds the images of DATA/IJBB, describes templates by the weights' own aggregator, else by media mean
python validate_ijb.py ... --aggregator coreset mean norm_weighted media_mean
    several aggregators share the features and are in one table; differences are to the first
python validate_ijb.py --data_root DATA --dataset_name IJBB --features FEATURES
    evaluates features that an earlier run left, or an npz of InsightFace's
"""

from __future__ import annotations

import sys
from pathlib import Path

# The packages of the project are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from validation.ijb import PROTOCOL

if __name__ == "__main__":
    sys.exit(PROTOCOL.main(__doc__))
