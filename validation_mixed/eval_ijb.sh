#!/usr/bin/env bash
# IJB-B and IJB-C, 1:1 and 1:N, of a backbone and one or more aggregators. Runs from any directory; paths in the
# flags are relative to where it is called. With --dataset_name only that data set is evaluated.
#   bash eval_ijb.sh --data_root DATA/ijb --weights adaface_ir101_webface4m.ckpt --protocol adaface
set -euo pipefail
command=("${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/validate_ijb.py")
for flag in "$@"; do
  case $flag in
    # A flag without values is wrong for both in the same way: once is enough.
    --dataset_name | --dataset_name=* | --out | --out=* | --features | --features=* | --help | -h) exec "${command[@]}" "$@" ;;
  esac
done
if (($# == 0)); then
  exec "${command[@]}"
fi
for name in IJBB IJBC; do
  "${command[@]}" --dataset_name "$name" "$@"
done
