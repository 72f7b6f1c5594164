#!/usr/bin/env bash
# All that a GPU is to show, in at most 8 minutes, with what is installed: tests, bundles, one training step of each kind, speed.
# Pages go to $OUT (by default the folder cuda_check here). Exit status: 0 all well; 1 something failed, its page says what; 77
# this machine has no CUDA device, and nothing was run.
# MONAI_DIFFEO_TEST_DEVICE=cpu runs it on a CPU, to see that it runs. With pytest-xdist and several cores, what only checks runs
# side by side; what is timed runs alone.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-cuda_check}
python=${PYTHON:-python}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MONAI_DIFFEO_TEST_DEVICE=${MONAI_DIFFEO_TEST_DEVICE:-cuda}
where=$MONAI_DIFFEO_TEST_DEVICE
began=$SECONDS

device=$where
[ "$where" = cpu ] || device=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")') || exit 1
if [ -z "$device" ]; then
    echo "cuda_check: no CUDA device here: unmeasured. Run it where there is one." | tee "$out/summary.txt"
    exit 77
fi

part() {  # NAME SECONDS COMMAND...: its output goes to a page, and its status to the summary
    local name=$1 most=$2 start=$SECONDS status
    shift 2
    [ $((SECONDS - began + most)) -gt 480 ] && most=$((480 - SECONDS + began))
    if [ "$most" -lt 5 ]; then status=skipped; else timeout "$most" "$@" > "$out/$name.txt" 2>&1; status=$?; fi
    echo "$name: $([ "$status" = 0 ] && echo passed || echo "not passed, status $status"), $((SECONDS - start)) s" | tee -a "$out/summary.txt"
}

bundle() {  # FOLDER: its main command
    part "run_$(basename "$1")" 90 "$python" -W ignore -m monai.bundle run --config_file "$1/configs/inference.json" --bundle_root "$1" \
        --workflow_type infer --output_dir "$out/$(basename "$1")" --device "$where"
}

{ echo "$device"; "$python" -c 'import monai, torch; print("torch", torch.__version__, "monai", monai.__version__)'; date -u +%F; } > "$out/summary.txt"
cat "$out/summary.txt"
tests=(-m pytest -q -p no:cacheprovider tests/test_cuda.py --durations=10)
if "$python" -c 'import xdist' 2> /dev/null && [ "$(nproc)" -ge 8 ]; then tests+=(-n 6); fi
for folder in "$PWD"/bundles/*/; do
    if [ "$(nproc)" -ge 8 ]; then bundle "$folder" & else bundle "$folder"; fi
done
part tests 240 "$python" "${tests[@]}"
wait
part speed 240 "$python" -m docs.experiments.benchmark --device "$where" --only exp warp step films growth gpu --seconds 1 \
    --output "$out/speed_gpu.md"
! grep -q "not passed" "$out/summary.txt"
