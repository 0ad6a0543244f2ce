#!/bin/bash
# Speed of the image pipeline (file -> decoded view -> hash) beside Pillow + torchvision, in one run: ours and theirs in turn on one pinned processor,
# medians, ratios. Writes tests/bench/results/loader.md.
#     IMAGES=DIR   a flat folder of JPEGs (required); PYTHON names the interpreter of the peer; TURNS=5; CORE=0 (pinned to it)
set -eu
cd "$(dirname "$0")/../.."
: "${KD_TEST_DIR:?run me through make bench-loader}"
: "${IMAGES:?make bench-loader IMAGES=DIR, a folder of JPEGs}"
python=${PYTHON:-python3}
turns=${TURNS:-5}
core=${CORE:-0}
bench=$KD_TEST_DIR/bench/bench_loader
out=tests/bench/results/loader.md
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
mkdir -p tests/bench/results

peer=
if $python -c 'import torchvision, PIL' 2>/dev/null; then
    coproc PEER { taskset -c "$core" "$python" tests/bench/peer_loader.py "$IMAGES" 2>/dev/null; }
    exec 8>&"${PEER[1]}" 9<&"${PEER[0]}" # a coprocess's own descriptors aren't open in subshells
    read -r -u 9 peer
fi

median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "-" }'; }
ours() { # PRESET THREADS PROCESSORS [PASSES]: the best pass counts
    taskset -c "$3" "$bench" "$IMAGES" "$1" 224 "$2" "${4:-1}"
}
speed() { sed 's/.*"images_per_s": *\([0-9.]*\).*/\1/'; }

# One row: our speed in alternation with theirs.
row() { # TITLE PRESET PEER-PRESET
    local mine="" pillow="" tensors="" p t i
    for ((i = 0; i < turns; i++)); do
        mine+="$(ours "$2" 1 "$core" | speed)"$'\n'
        [ -n "$peer" ] || continue
        echo "$3 224" >&8
        read -r -u 9 p t
        pillow+=$p$'\n' tensors+=$t$'\n'
    done
    mine=$(median <<<"${mine%$'\n'}")
    pillow=$(median <<<"${pillow%$'\n'}") tensors=$(median <<<"${tensors%$'\n'}")
    printf '| %s | %.0f | %.0f | %s | %.0f | %s |\n' "$1" "$mine" "${pillow:-0}" "$(ratio "$mine" "${pillow:-0}")" "${tensors:-0}" "$(ratio "$mine" "${tensors:-0}")"
}

# Two processors against one, in alternation, best of 2 passes each; the median of the quotients.
scaling() { # PRESET
    local i one two all=""
    for ((i = 0; i < turns; i++)); do
        one=$(ours "$1" 1 "$core" 2 | speed)
        two=$(ours "$1" 2 0,1 2 | speed)
        all+="$(ratio "$two" "$one")"$'\n'
    done
    printf '%s' "$all" | median
}

# Stage table: microseconds of processor time per image.
stages() { # PRESET
    ours "$1" 1 "$core" | sed 's/.*"us": {//; s/}}//' | tr ',' '\n' | sed 's/[" ]//g' | awk -F: -v p="$1" '{ v[$1] = $2 } END {
        c = v["colour"] > 0 ? v["colour"] : 0; printf "| %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f |\n", p, v["read"], v["id"], v["decode"], v["resample"], c, v["hash"] }'
}

{
    echo "# Views from files: images per second"
    echo
    echo "$(date -u +%Y-%m-%d), $cpu, $(nproc) processors; $(find -L "$IMAGES" -maxdepth 1 -type f | wc -l) originals in $(basename "$IMAGES"), page cache warm. One pinned processor; one view of 224 x 224 per"
    echo "decode; reading, the file's id and the view's hash are included. Ours and the peer's (${peer:-not installed here}) in turn, medians of $turns turns."
    echo "\"Tensors\" is torchvision.io.decode_jpeg and transforms v2 on uint8 tensors. The floor is our partial decode alone, beside their decode."
    echo
    echo "| views | kdcache | Pillow + torchvision | ratio | tensors | ratio |"
    echo "|---|---|---|---|---|---|"
    row crop-flip crop-flip crop-flip
    row lightly lightly lightly
    row "floor: decoding alone" floor decode
    echo
    if [ "$(nproc)" -ge 2 ]; then
        echo "Two threads on two processors against one: crop-flip $(scaling crop-flip), lightly $(scaling lightly)."
        echo
    fi
    echo "Processor time per image, microseconds:"
    echo
    echo "| views | read | id | decode | resample | flip and colour | hash |"
    echo "|---|---|---|---|---|---|---|"
    stages crop-flip
    stages lightly
    stages dino
} | tee "$out"
