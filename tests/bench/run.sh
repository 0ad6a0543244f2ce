#!/bin/bash
# Speed of the models on this machine, beside PyTorch in the same run where one is installed (PYTHON names the interpreter).
# Runs each pair in turn (ours, theirs, ours, theirs, ...) and prints medians and their ratio; the table goes to tests/bench/results/.
set -eu
cd "$(dirname "$0")/../.."
: "${KD_TEST_DIR:?run me through make bench}"
python=${PYTHON:-python3}
turns=${TURNS:-3}
threads=${THREADS:-$(nproc)}
# The peer's BLAS has a pool of its own.
export GOMP_SPINCOUNT=1000 OPENBLAS_NUM_THREADS=1
peer=$($python -c 'import torch, torchvision, timm; print(torch.__version__)' 2>/dev/null | tail -n 1) || peer=
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
mkdir -p tests/bench/results
out=tests/bench/results/models.md

median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
row() { # NAME BATCH SIZE PRECISION MODE THREADS
    local ours="" theirs="" i
    for ((i = 0; i < turns; i++)); do
        ours+="$("$KD_TEST_DIR/bench/bench_model" "$@" cpu 5 | sed 's/.*"images_per_s": *\([0-9.]*\).*/\1/')"$'\n'
        [ -n "$peer" ] && theirs+="$($python tests/bench/peer_torch.py "$@" 5 2>/dev/null | tail -n 1)"$'\n'
    done
    ours=$(printf '%s' "$ours" | median)
    if [ -n "$peer" ]; then
        theirs=$(printf '%s' "$theirs" | median)
        printf '| %s | %s | %s | %s | %s | %.1f | %.1f | %.2f |\n' "$1" "$5" "$3" "$2" "$4, $6 thread$([ "$6" = 1 ] || echo s)" "$ours" "$theirs" "$(echo "$ours $theirs" | awk '{ print $1 / $2 }')"
    else
        printf '| %s | %s | %s | %s | %s | %.1f | - | - |\n' "$1" "$5" "$3" "$2" "$4, $6 thread$([ "$6" = 1 ] || echo s)" "$ours"
    fi
}
{
    echo "# Models: images per second"
    echo
    echo "$(date -u +%Y-%m-%d), $cpu, $(nproc) processors. Medians of $turns turns, ours and PyTorch ${peer:-(not installed here)} one after the other."
    echo
    echo "| model | mode | px | batch | precision | kdcache | PyTorch | ratio |"
    echo "|---|---|---|---|---|---|---|---|"
    row resnet18 64 112 bf16 train 1
    row resnet18 64 112 f32 train 1
    row resnet18 64 112 bf16 train "$threads"
    row resnet18 64 112 f32 train "$threads"
    row dinov2_w192_d12 16 224 bf16 infer 1
    row dinov2_vits14 8 224 bf16 infer 1
    row dinov2_vits14 8 224 bf16 infer "$threads"
    row dinov2_vitb14 8 224 bf16 infer "$threads"
} | tee "$out"
