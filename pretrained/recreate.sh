#!/usr/bin/env bash
# Recreate both pretrained aggregators: bash pretrained/recreate.sh IMAGES WEIGHTS TEST_SUBJECTS OUT
#   IMAGES: LFW's <subject>/<image>, aligned (two images of a subject or more); WEIGHTS: InsightFace's MobileFaceNet;
#   TEST_SUBJECTS: names, one per line, excluded from the second one; OUT: a folder. Run it again after an interruption.
set -euo pipefail
images=$1 weights=$2 test_subjects=$3 out=$4
python=${PYTHON:-python}
cd "$(dirname "$0")/.."
mkdir -p "$out"
recipe=(--start_from_model_statedict "$out/prepared.safetensors" --preset good --held_out 20 --gpus 0)
licence="weights MIT as this project; trained on LFW, which is for research"

"$python" convert.py --weights "$weights" "$out/prepared.safetensors" --normalise_illumination --auxiliary 256
for name in mobilefacenet mobilefacenet_evaluation; do
    if [ ! -f "$out/$name.safetensors" ]; then
        rm -rf "$out/$name"
        if [ "$name" = mobilefacenet ]; then
            data=(--train_data_path "$images" --cache_features "$out/features")
        else
            data=(--features "$out"/features/* --exclude_subjects "$test_subjects")
        fi
        "$python" main.py "${data[@]}" "${recipe[@]}" --out "$out/$name"
        "$python" convert.py --aggregator "$out/$name/run_0/last.ckpt" "$out/$name.safetensors" \
            --licence "$licence"
    fi
done
