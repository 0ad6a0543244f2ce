#!/bin/bash
# All benches one after the other, each with its peers in the same run; each writes its table to tests/bench/results/. README.md here says what they measure.
#     make bench [BENCH="models loader"] [PYTHON=interpreter with the peers] [TURNS=5] [KD_TEST_DATA=DIR] [IMAGES=DIR]
# BENCH: which ones, all by default. IMAGES: a flat folder of JPEGs for the loader; without it the photos of KD_TEST_DATA's imagenet-sample.tar, without that drawn pictures. STAGE_LIMIT=240 minutes for each bench.
# A bench that fails (one whose peer isn't installed, say) doesn't stop the others; the status is 1 then.
set -u
cd "$(dirname "$0")/../.." || exit 1
: "${KD_BIN:?run me through make bench}" "${KD_TEST_DIR:?run me through make bench}"
all="models loader cache knn students end-to-end scaling memory"
# Minutes with 5 turns on two cores of 90 GFLOP/s. The models say their own once the peak is known; torch.compile's first run is half of it.
declare -A minutes=([models]=90 [loader]=5 [cache]=10 [knn]=10 [students]=20 [end-to-end]=35 [scaling]=30 [memory]=10)
export TURNS=${TURNS:-5} PYTHON=${PYTHON:-python3}
images=${IMAGES:-}
unset IMAGES # means something else to other benches
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-bench.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

script() { [ "$1" = models ] && echo models.py || echo "${1//-/_}.sh"; }

loader_images() {
    if [ -n "$images" ]; then
        echo "$images"
    elif [ -n "${KD_TEST_DATA:-}" ] && [ -f "$KD_TEST_DATA/imagenet-sample.tar" ]; then
        mkdir "$work/imagenet-sample" && tar -xf "$KD_TEST_DATA/imagenet-sample.tar" -C "$work/imagenet-sample" --transform='s,.*/,,' --wildcards '*.jpg' '*.JPEG' 2>/dev/null
        echo "$work/imagenet-sample"
    else
        "$KD_TEST_DIR/demo/draw_pictures" "$work/drawn" 20 1 >&2 && mkdir "$work/drawn-pictures"
        for f in "$work"/drawn/train/*/*.jpg; do mv "$f" "$work/drawn-pictures/$(basename "$(dirname "$f")")-$(basename "$f")"; done
        echo "$work/drawn-pictures"
    fi
}

run() { # BENCH
    local limit=(timeout -k 10 "$((${STAGE_LIMIT:-240} * 60))")
    case $1 in
    models) "${limit[@]}" "$PYTHON" tests/bench/models.py ;;
    loader) IMAGES=$(loader_images) "${limit[@]}" tests/bench/loader.sh ;;
    *) "${limit[@]}" "tests/bench/$(script "$1")" ;;
    esac
}

for b in ${BENCH:=$all}; do
    [ -n "${minutes[$b]:-}" ] || { echo "BENCH: there is no bench \"$b\"; there are: $all" >&2; exit 2; }
done
total=0
for b in $BENCH; do total=$((total + minutes[$b])); done
echo "bench: $BENCH; about $total minutes with 5 turns on two cores of 90 GFLOP/s, on an otherwise idle machine" >&2
failed=
for b in $BENCH; do
    echo "bench: $b, about ${minutes[$b]} minutes" >&2
    begin=$SECONDS
    run "$b"
    status=$?
    [ "$status" -eq 0 ] || failed+=" $b (status $status)"
    [ "$status" -ne 124 ] || echo "bench: $b was stopped after ${STAGE_LIMIT:-240} minutes" >&2
    echo "bench: $b took $(((SECONDS - begin + 59) / 60)) minutes" >&2
done
[ -z "$failed" ] || { echo "bench: failed:$failed" >&2; exit 1; }
