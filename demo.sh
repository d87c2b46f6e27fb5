#!/usr/bin/env bash
# The complete workflow on synthetic faces: no download, no GPU, a few minutes.
set -euo pipefail
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python}
DEMO=${DEMO:-demo}
# A network this small gains little from a second thread; the loader process uses that core.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-} OMP_NUM_THREADS=1

run() {
  echo
  echo "\$ python $*"
  "$PYTHON" "$@"
}

rm -rf "$DEMO/faces" "$DEMO/backbone_0" "$DEMO/coreset_0"
run convert.py --synthetic_faces "$DEMO/faces" --subjects 200 --seed 0
run convert.py --rec_path "$DEMO/faces" --num_workers 2
run main.py --stage backbone --arch ir_tiny --data_root "$DEMO/faces" --train_data_path imgs --val_data_path . \
  --batch_size 64 --epochs 10 --lr_milestones 6,9 --m 0.2 --s 32 --num_workers 1 --out "$DEMO" --prefix backbone
run main.py --stage coreset --start_from_model_statedict "$DEMO/backbone_0/best.ckpt" \
  --data_root "$DEMO/faces" --train_data_path imgs --held_out 50 --max_template_size 20 --coreset_size 6 \
  --epochs 20 --lr 3e-3 --lr_milestones 14,18 --m 0.2 --h 0.333 --s 32 --num_workers 1 --out "$DEMO" --prefix coreset
run inference.py --weights "$DEMO/coreset_0/best.ckpt" --out "$DEMO/inference"
