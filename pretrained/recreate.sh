#!/usr/bin/env bash
# Makes both published aggregators again: bash pretrained/recreate.sh IMAGES WEIGHTS JUDGED_SUBJECTS OUT
#   IMAGES: LFW's <subject>/<image>, aligned (two images of a subject or more); WEIGHTS: InsightFace's MobileFaceNet;
#   JUDGED_SUBJECTS: names, one a line, that the second one never sees; OUT: a folder. A kill loses little: run it again.
set -euo pipefail
images=$1 weights=$2 judged=$3 out=$4
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
            data=(--features "$out"/features/* --exclude_subjects "$judged")
        fi
        "$python" main.py "${data[@]}" "${recipe[@]}" --out "$out/$name"
        "$python" convert.py --aggregator "$out/$name/run_0/last.ckpt" "$out/$name.safetensors" \
            --licence "$licence"
    fi
done
