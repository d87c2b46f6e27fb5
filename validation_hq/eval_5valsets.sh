#!/usr/bin/env bash
# LFW, CFP-FP, CPLFW, CALFW and AgeDB-30: ten-fold accuracy of a backbone. Runs from any directory; paths in the
# flags are relative to where it is called.
#   bash validation_hq/eval_5valsets.sh --weights adaface_ir101_webface4m.ckpt --data_root faces_emore
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/validate_pairs.py" "$@"
