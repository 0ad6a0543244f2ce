#!/bin/bash
# What grows with the number of images: opening a cache, memory, cost per view, from 1,000 views to 1,000,000, on synthetic caches of small records; and kd-train on 1 and 2 processors, quiet and
# beside another process. The table goes to tests/bench/results/scaling.md. 25 minutes, most of them to make the largest caches; wants 5 GB in FOLDER (default: TMPDIR).
#     COUNTS="1000 10000 100000 1000000"   views in a shard;   TURNS=3;   STEPS=8 of a kd-train run;   OUT=FILE   another table
#     KD_TEST_DATA=DIR   photos of its caltech101.tar and its small teacher for the second part; without it drawn pictures and the tests' teacher
set -eu
cd "$(dirname "$0")/../.."
: "${KD_BIN:?run me through make bench-scaling}" "${KD_TEST_DIR:?run me through make bench-scaling}"
counts=${COUNTS:-1000 10000 100000 1000000} turns=${TURNS:-3} steps=${STEPS:-8}
bench=$KD_TEST_DIR/bench/bench_scaling
work=$(mktemp -d "${FOLDER:-${TMPDIR:-/tmp}}/kd-bench.XXXXXX")
busy=
trap '[ -z "$busy" ] || kill "$busy"; chmod -R u+w "$work"; rm -rf "$work"' EXIT
export XDG_CACHE_HOME=$work/verdicts
out=${OUT:-tests/bench/results/scaling.md}
mkdir -p tests/bench/results
. tests/bench/peak.sh

median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
field() { sed "s/.*\"$1\": *\([0-9.]*\).*/\1/"; }
mib() { awk -v b="$1" 'BEGIN { printf "%.1f", b / 1048576 }'; }
# Median over the lines of metrics.jsonl behind the first, which has the decoding.
speed() { sed -n 's/.*"images_per_s":\([0-9.]*\).*/\1/p' "$1/metrics.jsonl" | tail -n +2 | median; }

# ---- the number of images ----
base_open= base_epoch= base_train=
shape() { # VIEWS PER-IMAGE: a row of both tables; the first is what the others are compared with
    local views=$1 per=$2 images=$(($1 / $2)) cache=$work/x.kdc line first open="" i before anon rss opened sample_anon used epoch_rss us train ips
    mkdir -p "$work/images"
    timeout 1200 "$bench" make "$cache" "$work/images/p.tar" "$images" "$per" >/dev/null
    sleep 3 # a verdict about the pages needs a file that was left alone
    first=$(timeout 60 "$bench" open "$cache" anew | field seconds)
    for ((i = 0; i < turns; i++)); do
        line=$(timeout 60 "$bench" open "$cache")
        open+="$(field seconds <<<"$line")"$'\n'
    done
    before=$(field before_anon <<<"$line") anon=$(field anon <<<"$line") rss=$(field rss <<<"$line")
    opened=$((anon - before))
    line=$(timeout 300 "$bench" epoch "$cache")
    sample_anon=$(field sample_anon <<<"$line") used=$(field anon <<<"$line") epoch_rss=$(field rss <<<"$line") us=$(field us_per_view <<<"$line")
    rm -rf "$work/run"
    timeout 300 bash -c '. tests/bench/peak.sh; peak_of "$@"' - "$KD_BIN/kd-train" --cache "$cache" --images "$work/images" --student mobilenet_v3_small --patch-weight 0 --batch-size 50 --epochs 100 \
        --steps 20 --log-every 5 --val-fraction 0 --view-memory 0 --device cpu --threads 1 --out "$work/run" >"$work/peak" 2>"$work/err" || { cat "$work/err" >&2; exit 1; }
    train=$(sed -n 's/^anon //p' "$work/peak") ips=$(speed "$work/run")
    [ -n "$base_open" ] || base_open=$opened base_epoch=$((used - before)) base_train=$train
    reader+="| $views | $images | $first | $(printf '%s' "$open" | median) | $(mib "$opened") | $(mib $((sample_anon - before))) | $(mib $((used - before))) | $(per_view $((used - before)) "$base_epoch" "$views") | $(mib "$rss") | $(mib "$epoch_rss") | $us |"$'\n'
    trainer+="| $views | $images | $(printf %.0f "$ips") | $(mib "$train") | $(per_view "$train" "$base_train" "$views") | $(awk -v u="$us" -v i="$ips" 'BEGIN { printf "%.2f", 1e-4 * u * i }') |"$'\n'
    chmod -R u+w "$work"
    rm -rf "$work"/x.kdc* "$work/images" "$work/run"
}
per_view() { awk -v a="$1" -v b="$2" -v n="$3" 'BEGIN { printf "%.0f", (a - b) / n }'; }

# ---- processors ----
prepare_photos() {
    local data=${KD_TEST_DATA:-} weights=tests/golden/models/tiny_dinov2.pth
    if [ -n "$data" ] && [ -f "$data/caltech101.tar" ]; then
        what="photos of Caltech-101" weights=$data/teachers/vitt14_dinov2_layout.pth
        mkdir "$work/photos"
        tar -tf "$data/caltech101.tar" | grep -i '\.jpe\?g$' | awk 'NR % 20 == 1' | head -n 128 >"$work/list"
        tar -xf "$data/caltech101.tar" -C "$work/photos" -T "$work/list"
    else
        what="drawn pictures"
        "$KD_TEST_DIR/demo/draw_pictures" "$work/drawn" 11 1
        mv "$work/drawn/train" "$work/photos"
    fi
    timeout 300 "$KD_BIN/kd-precompute" --images "$work/photos" --weights "$weights" --cache "$work/p.kdc" --views 1 --device cpu 2>"$work/err" || { cat "$work/err" >&2; exit 1; }
}
train() { # PROCESSORS THREADS: images/s once views are in memory
    rm -rf "$work/run"
    timeout 300 taskset -c "$1" "$KD_BIN/kd-train" --cache "$work/p.kdc" --images "$work/photos" --student resnet18 --student-size 112 --batch-size 32 --epochs 100 --steps "$steps" --log-every 1 --val-fraction 0 \
        --device cpu --threads "$2" --out "$work/run" 2>"$work/err" || { cat "$work/err" >&2; exit 1; }
    speed "$work/run"
}
peak() { taskset -c "$1" "$KD_TEST_DIR/bench/bench_peak" f32 "$2" | field gflops; }
processors() {
    local i one="" two="" beside="" spin="" peak_one="" peak_two=""
    for ((i = 0; i < turns; i++)); do
        peak_one+="$(peak 0 1)"$'\n'
        peak_two+="$(peak 0,1 2)"$'\n'
        one+="$(train 0 1)"$'\n'
        two+="$(train 0,1 2)"$'\n'
        taskset -c 1 sh -c 'while :; do :; done' &
        busy=$!
        beside+="$(train 0,1 2)"$'\n'
        spin+="$(GOMP_SPINCOUNT=infinite train 0,1 2)"$'\n'
        kill "$busy"
        wait "$busy" 2>/dev/null || true
        busy=
    done
    one=$(printf '%s' "$one" | median) two=$(printf '%s' "$two" | median) beside=$(printf '%s' "$beside" | median) spin=$(printf '%s' "$spin" | median)
    peak_one=$(printf '%s' "$peak_one" | median) peak_two=$(printf '%s' "$peak_two" | median)
    awk -v a="$one" -v b="$two" -v c="$beside" -v d="$spin" -v p="$peak_one" -v q="$peak_two" 'BEGIN {
        printf "| 1 thread on one processor | %.1f | 1.00 |\n| 2 threads on two | %.1f | %.2f |\n| 2 threads on two, one of them shared with a busy loop | %.1f | %.2f |\n", a, b, b / a, c, c / a
        printf "| the same with GOMP_SPINCOUNT=infinite | %.1f | %.2f |\n\nBeside the busy loop: %.2f of the quiet run. Multiply-adds on registers alone (bench_peak) in the same turns: %.0f GFLOP/s on one processor, %.2f times as many on two.\n", d, d / a, c / b, p, q / p }'
}

reader= trainer=
for n in $counts; do shape "$n" 1; done
largest=${counts##* }
shape "$largest" 8
{
    echo "# Scaling"
    echo
    echo "$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) processors. Simulated: the caches hold CLS alone, width 64, i8, of a teacher that never ran; the pictures are 32 x 32 JPEGs"
    echo "of equal pixels in a tar. All else is real: each has an id of its own (plans and view hashes are equal, as the pixels are), and kd-train decodes and proves it. One view of each image, which is the worst case for tables of images;"
    echo "in the last row 8, the default. Memory is the process's own (RssAnon); \"resident\" counts pages of the mapped cache too, which the kernel takes back when it needs room."
    echo
    echo "## A reader, one thread"
    echo
    echo "Opening: medians of $turns. A sample is 1,000 views at random; an epoch is in kd-train's order, from the page cache. Own memory above what the process had before opening, in MiB."
    echo
    echo "| views | images | first opening (pages validated), s | opening, s | own memory, open | after a sample | after an epoch | bytes a view above the first row | resident, open | resident, after an epoch | us a view |"
    echo "|---|---|---|---|---|---|---|---|---|---|---|"
    printf '%s' "$reader"
    echo
    echo "## kd-train, mobilenet_v3_small at 32 px, one thread"
    echo
    echo "Whole program, its own memory at its peak: dataset, index of files, cache, order of an epoch, student. Every view is decoded (--view-memory 0)."
    echo
    echo "| views | images | images/s | own memory, MiB | bytes a view above the first row | the reader's share of the time, % |"
    echo "|---|---|---|---|---|---|"
    printf '%s' "$trainer"
    echo
    if [ "$(nproc)" -ge 2 ]; then
        prepare_photos
        echo "## Processors: kd-train, resnet18 at 112 px, batch 32, f32"
        echo
        echo "128 $what, views in memory; images/s, medians of $turns turns of medians of $((steps - 1)) steps, in turn."
        echo
        echo "| | images/s | against one |"
        echo "|---|---|---|"
        processors
    fi
} | tee "$out"
