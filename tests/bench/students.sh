#!/bin/bash
# Time of 1, 2 and 4 students in one pass beside a run for each: whole kd-train commands, in turn, medians; the table goes to tests/bench/results/students.md.
#     KD_TEST_DATA=DIR   photos of its caltech101.tar and its small teacher; without it drawn pictures and the tests' teacher
#     COUNT=192 images, EPOCHS=2, TURNS=2, SIZE=112 (of the students' views), THREADS=all
set -eu
cd "$(dirname "$0")/../.."
: "${KD_BIN:?run me through make bench-students}" "${KD_TEST_DIR:?run me through make bench-students}"
count=${COUNT:-192} epochs=${EPOCHS:-2} turns=${TURNS:-2} size=${SIZE:-112} threads=${THREADS:-$(nproc)}
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-bench.XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
out=tests/bench/results/students.md
mkdir -p tests/bench/results

data=${KD_TEST_DATA:-}
if [ -n "$data" ] && [ -f "$data/caltech101.tar" ]; then
    what="photos of Caltech-101"
    weights=$data/teachers/vitt14_dinov2_layout.pth
    mkdir "$work/images"
    tar -tf "$data/caltech101.tar" | grep -i '\.jpe\?g$' | awk -v n="$count" '{ name[NR] = $0 } END { for (i = 0; i < n && i < NR; i++) print name[1 + int(i * NR / n)] }' | sort -u >"$work/list"
    tar -xf "$data/caltech101.tar" -C "$work/images" -T "$work/list"
else
    what="drawn pictures"
    weights=tests/golden/models/tiny_dinov2.pth
    "$KD_TEST_DIR/demo/draw_pictures" "$work/drawn" $(((count + 11) / 12)) 1
    mv "$work/drawn/train" "$work/images"
fi
"$KD_BIN/kd-precompute" --images "$work/images" --weights "$weights" --cache "$work/x.kdc" --views 2 --device cpu --threads "$threads" 2>"$work/err" || { cat "$work/err" >&2; exit 1; }

students=(resnet18 mobilenet_v3_small resnet18,name=r18-cosine,loss=cosine mobilenet_v3_small,name=mnv3-queue,loss=kl-queue+intra)
# Seconds of one command: VIEW-MEMORY STUDENT...
run() {
    local memory=$1 args=() s begin
    shift
    for s in "$@"; do args+=(--student "$s"); done
    rm -rf "$work/run"
    begin=$(date +%s.%N)
    "$KD_BIN/kd-train" --cache "$work/x.kdc" --images "$work/images" "${args[@]}" --student-size "$size" --epochs "$epochs" --batch-size 32 --val-fraction 0.05 --view-memory "$memory" --device cpu \
        --threads "$threads" --out "$work/run" 2>"$work/err" || { cat "$work/err" >&2; exit 1; }
    awk -v a="$begin" -v b="$(date +%s.%N)" 'BEGIN { printf "%.3f\n", b - a }'
}
median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

row() { # TITLE VIEW-MEMORY
    local title=$1 memory=$2 n i turn alone=() pass=() sum
    for ((turn = 0; turn < turns; turn++)); do
        for i in 0 1 2 3; do alone[i]+="$(run "$memory" "${students[i]}")"$'\n'; done
        for n in 2 4; do pass[n]+="$(run "$memory" "${students[@]:0:n}")"$'\n'; done
    done
    pass[1]=${alone[0]}
    for n in 1 2 4; do
        sum=$(for ((i = 0; i < n; i++)); do printf '%s' "${alone[i]}" | median; done | awk '{ s += $1 } END { print s }')
        awk -v title="$title" -v n="$n" -v one="$(printf '%s' "${pass[n]}" | median)" -v apart="$sum" 'BEGIN { printf "| %s | %d | %.1f | %.1f | %.2f |\n", title, n, one, apart, apart / one }'
    done
}
{
    echo "# Several students in one pass"
    echo
    echo "$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $threads threads. $(find "$work/images" -type f | wc -l) $what, 2 cached views of 224 px, seen at $size px; $epochs epochs, batch 32,"
    echo "f32; whole commands, start and exports included, medians of $turns turns. Students in this order: resnet18 and mobilenet_v3_small with std-mse, resnet18 with cosine, mobilenet_v3_small with kl-queue+intra."
    echo
    echo "| views | students | one pass, s | a run for each, s | times faster |"
    echo "|---|---|---|---|---|"
    row "kept in memory after the first time" auto
    row "decoded every time (--view-memory 0)" 0
} | tee "$out"
