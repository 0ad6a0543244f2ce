#!/bin/sh
# The whole job on a small set: draw pictures, cache the demo teacher's features, train a ResNet-18 from the cache, measure.
#
#   make demo                              # drawn pictures, the demo teacher that ships with the project
#   make demo IMAGES=dir WEIGHTS=file      # your own (k-NN is measured when dir has train/CLASS/ and test/CLASS/ folders)
#
# Everything goes to build/demo, with your own to build/demo-own (DEMO_DIR to change it); running it again goes on where it stopped. Environment: DRAW = the picture drawing program; STUDENT, EPOCHS, VIEWS,
# STUDENT_SIZE, PRECISION: other settings than the demo's.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
# Own pictures or weights make another cache and another run.
own=
[ -n "${IMAGES:-}${WEIGHTS:-}" ] && own=-own
dir=${DEMO_DIR:-$top/build/demo$own}
bin=${KD_BIN:-$top/bin}
weights=${WEIGHTS:-$top/tests/golden/demo_teacher/demo_teacher.safetensors}
views=${VIEWS:-6}
epochs=${EPOCHS:-24}
size=${STUDENT_SIZE:-64} # these epochs took 5.6 processor minutes on AVX2 cores
student=${STUDENT:-resnet18}
precision=${PRECISION:-}
if [ -z "$precision" ]; then
    precision=f32
    grep -qs avx512_bf16 /proc/cpuinfo && precision=bf16
fi
mkdir -p "$dir"

say() { printf '\n== %s\n' "$*"; }
field() { sed -n "s/.*\"$2\": *\"\{0,1\}\([^,\"}]*\).*/\1/p" "$1" | tail -n 1; }   # field FILE NAME: last value of a JSON member
run() { printf '$ %s\n' "$(printf '%s ' "$@" | sed "s|$top/||g")"; "$@"; }

images=${IMAGES:-}
if [ -z "$images" ]; then
    images=$dir/pictures
    say "drawing pictures: 12 classes, varied in colour, size, place, background"
    [ -e "$images/.done" ] || { "$DRAW" "$images" 40 20; : > "$images/.done"; }
    echo "$(find "$images" -name '*.jpg' | wc -l) JPEG files in ${images#"$top"/}"
fi
train=$images
[ -d "$images/train" ] && train=$images/train
labelled=no
[ -d "$images/train" ] && [ -d "$images/test" ] && labelled=yes

knn() { # knn NAME MODEL WEIGHTS SIZE
    "$bin/kd-eval" knn -q --model "$2" --weights "$3" --student-size "$4" --train "$images/train" --test "$images/test" --k 10 --precision "$precision" --json > "$dir/knn-$1.json" || [ $? -eq 3 ] # 3: some pictures could not be read
}

say "teacher: features of $views augmented views per image, once"
run "$bin/kd-precompute" --images "$train" --weights "$weights" --cache "$dir/demo.kdc" --views "$views" --max-skipped 100% --precision "$precision" --json > "$dir/precompute.json"
"$bin/kd-cache" info "$dir/demo.kdc"
"$bin/kd-cache" check "$dir/demo.kdc" --images "$train"

say "student: $student from random weights, trained from the cache"
run "$bin/kd-train" --cache "$dir/demo.kdc" --images "$train" --student "$student" --out "$dir/run" --epochs "$epochs" --val-fraction 0.1 --log-every 5 --student-size "$size" --precision "$precision"

say "what happened"
if [ -s "$dir/precompute.json" ] && [ -n "$(field "$dir/precompute.json" bytes_per_view)" ]; then
    awk -v b="$(field "$dir/precompute.json" bytes)" -v p="$(field "$dir/precompute.json" bytes_per_view)" -v r="$(field "$dir/precompute.json" views_per_s)" \
        'BEGIN { printf "cache              %.1f MB, %.0f bytes a view; teacher %.1f views/s\n", b / 1e6, p, r }'
fi
awk -v r="$(field "$dir/run/metrics.jsonl" images_per_s)" -v c="$(field "$dir/run/metrics.jsonl" val_r2_cls)" -v p="$(field "$dir/run/metrics.jsonl" val_r2_patch)" \
    'BEGIN { printf "student            %.1f images/s; held-out R2 (0 = predicts the mean, 1 = equals the teacher): CLS %.3f, patches %.3f\n", r, c, p }'
if [ $labelled = yes ]; then
    knn teacher auto "$weights" 0
    knn before "$student" random "$size"
    knn after "$student" "$dir/run/exported/$student.safetensors" "$size"
    for who in teacher before after; do
        awk -v n="$who" -v t="$(field "$dir/knn-$who.json" top1)" 'BEGIN { split("teacher student_before student_after", x, " "); i = n == "teacher" ? 1 : n == "before" ? 2 : 3; gsub("_", " ", x[i]); printf "k-NN %-16s %5.1f %%\n", x[i], 100 * t }'
    done
fi
echo "student weights    ${dir#"$top"/}/run/exported/$student.safetensors (torchvision names, loads strictly)"
