#!/bin/bash
# The memory plans that kd-train and kd-precompute print beside measured peaks, and beside PyTorch's growth over the same training step. The table goes to tests/bench/results/memory.md.
# 30 minutes on a quiet machine; wants 8 GB of memory.
#     PYTHON=python with torch, torchvision and timm (without it the peer's columns are empty, and the teacher is the tests' small one);   THREADS=1
#     KD_TEST_DATA=DIR   photos of its caltech101.tar; without it drawn pictures;   STUDENTS, SIZES, BATCHES   lists
set -eu
cd "$(dirname "$0")/../.."
: "${KD_BIN:?run me through make bench-memory}" "${KD_TEST_DIR:?run me through make bench-memory}"
python=${PYTHON:-python3} threads=${THREADS:-1}
students=${STUDENTS:-resnet18 vit_small_patch16_224 mobilenet_v3_small} sizes=${SIZES:-112 224} batches=${BATCHES:-16 64}
export GOMP_SPINCOUNT=1000
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-bench.XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
export XDG_CACHE_HOME=$work/verdicts
out=tests/bench/results/memory.md
mkdir -p tests/bench/results
peer=$("$python" -c 'import torch, torchvision, timm; print(torch.__version__)' 2>/dev/null) || peer=

field() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" "$2"; }
# Runs a command with a limit of seconds; its stdout in $work/lines, its peaks in $work/peak.
measure() { # SECONDS PROGRAM ARG...
    timeout "$1" bash -c '. tests/bench/peak.sh; lines=$1; shift; peak_of "$@"' - "$work/lines" "${@:2}" >"$work/peak" 2>"$work/err" || { cat "$work/err" >&2; return 1; }
}
compare() { # PLAN: plan, own peak, their ratio, resident peak
    awk -v plan="$1" '$1 == "anon" { a = $2 } $1 == "hwm" { h = $2 } END { printf "%.0f | %.0f | %.2f | %.0f", plan / 1048576, a / 1048576, plan / a, h / 1048576 }' "$work/peak"
}

if [ -n "${KD_TEST_DATA:-}" ] && [ -f "$KD_TEST_DATA/caltech101.tar" ]; then
    what="photos of Caltech-101"
    mkdir "$work/images"
    tar -tf "$KD_TEST_DATA/caltech101.tar" | grep -i '\.jpe\?g$' | awk 'NR % 30 == 1' | head -n 80 >"$work/list"
    tar -xf "$KD_TEST_DATA/caltech101.tar" -C "$work/images" -T "$work/list"
else
    what="drawn pictures"
    "$KD_TEST_DIR/demo/draw_pictures" "$work/drawn" 7 1
    mv "$work/drawn/train" "$work/images"
fi
weights=tests/golden/models/tiny_dinov2.pth teacher="the tests' small teacher"
if [ -n "$peer" ]; then
    weights=$work/vits16.pth teacher="ViT-S/16, generated weights"
    "$python" -c 'import sys, timm, torch; torch.manual_seed(0); torch.save(timm.create_model("vit_small_patch16_224", num_classes=0).state_dict(), sys.argv[1])' "$weights"
fi

precompute() { # BATCH VIEWS STORE
    local plan
    chmod -R u+w "$work"
    rm -rf "$work"/x.kdc*
    measure 900 "$KD_BIN/kd-precompute" --images "$work/images" --weights "$weights" --cache "$work/x.kdc" --views "$2" --store "$3" --batch-size "$1" --device cpu --threads "$threads" --json || exit 1
    plan=$(($(field device_model_bytes "$work/lines") + $(field planned_bytes "$work/lines")))
    echo "| $1 | $2, $3 | $(compare "$plan") |"
}
# Growth per image between the two batches: what does not depend on the batch drops out.
student() { # NAME SIZE
    local batch plan students row theirs first_ours= first_theirs= first_batch= each
    for batch in $batches; do
        rm -rf "$work/run"
        measure 900 "$KD_BIN/kd-train" --cache "$work/x.kdc" --images "$work/images" --student "$1" --student-size "$2" --batch-size "$batch" --epochs 1 --val-fraction 0.05 --device cpu --threads "$threads" --json \
            --out "$work/run" || exit 1
        plan=$(field peak_bytes "$work/lines") students=$(field students_bytes "$work/lines") row=$(compare "$plan") theirs= each=
        [ -z "$peer" ] || theirs=$(timeout 900 "$python" tests/bench/peer_memory.py "$1" "$batch" "$2" 2>/dev/null) || theirs=
        if [ -n "$first_batch" ]; then
            each=$(awk -v a="$students" -v b="$first_ours" -v c="${theirs:-0}" -v d="${first_theirs:-0}" -v n=$((batch - first_batch)) \
                'BEGIN { printf "%.2f | ", (a - b) / n / 1048576; if (c > 0 && d > 0) printf "%.2f | %.2f", (c - d) / n / 1048576, (a - b) / (c - d); else printf "- | -" }')
        fi
        echo "| $1 | $2 | $batch | $((students / 1048576)) | $row | ${theirs:+$((theirs / 1048576))} | $([ -z "$theirs" ] || awk -v a="$students" -v b="$theirs" 'BEGIN { printf "%.2f", a / b }') | ${each:- | | } |"
        first_batch=${first_batch:-$batch} first_ours=${first_ours:-$students} first_theirs=${first_theirs:-$theirs}
    done
}
{
    echo "# Memory"
    echo
    echo "$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) processors, $threads thread(s), f32. MiB. The plan is what the programs print before they begin: the process's own memory"
    echo "(RssAnon: heap, arenas, kept views; no pages of mapped files). \"Peak\" is that, sampled every 20 ms over the whole command with validation, checkpoints and exports; \"resident\" is VmHWM, which counts the"
    echo "programs' and libraries' code and the mapped cache too. $(find "$work/images" -type f | wc -l) $what."
    echo
    echo "## kd-precompute, $teacher"
    echo
    echo "| batch | views, store | plan | peak | plan / peak | resident |"
    echo "|---|---|---|---|---|---|"
    precompute 64 1 i8
    precompute 16 3 f16
    precompute 16 1 i8
    echo
    echo "## kd-train"
    echo
    echo "\"Student\" is its share of the plan: weights, gradients, AdamW's two moments, packed weights, activations. PyTorch ${peer:-(not installed here)}: growth of its own memory from after the imports, two steps of"
    echo "the same student (channels_last, AdamW, no heads), no data loading. Per image: (largest batch - first batch) / difference, so activations and their gradients alone."
    echo
    echo "| student | px | batch | student | plan | peak | plan / peak | resident | PyTorch | student / PyTorch | per image | PyTorch | ratio |"
    echo "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for name in $students; do
        for size in $sizes; do student "$name" "$size"; done
    done
} | tee "$out"
