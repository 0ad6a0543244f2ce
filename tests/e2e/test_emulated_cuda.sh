#!/bin/bash
# Whole programs on the emulated CUDA device (tests/gpu/emulator): caches and students like the cpu backend's, interruptions that leave no trace, --device cuda:all.
. "$(dirname "$0")/../lib.sh"

export KD_LIB_DIR=$KD_TEST_DIR/gpu/emulator

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 2 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
cache_args=(--images "$pictures/train" --weights "$weights" --views 2 --image-size 56 --batch-size 8) # several batches: one is with the device while another one is stored
make_cache() { "$KD_BIN/kd-precompute" "${cache_args[@]}" "$@" 2>"$work/err"; }
digest() { "$KD_BIN/kd-cache" digest "$@" 2>"$work/err" | awk '{ print $NF }'; }

# ---- teachers ----
"$KD_BIN/kd-eval" features --model auto --weights "$weights" --images "$pictures/test" --image-size 56 --out "$work/cpu.csv" --device cpu 2>"$work/err"
check "features on cpu" test $? -eq 0
for precision in f32 bf16; do
    "$KD_BIN/kd-eval" features --model auto --weights "$weights" --images "$pictures/test" --image-size 56 --out "$work/cuda-$precision.csv" --device cuda:1 --precision $precision 2>"$work/err"
    check "features on cuda:1, $precision" test $? -eq 0
done
# Cosine of all numbers of two CSV files, at least LIMIT.
near() { # A B LIMIT
    paste -d, "$1" "$2" | awk -F, -v limit="$3" '
        NR > 1 { for (i = 2; i <= NF / 2; i++) { a = $i; b = $(i + NF / 2); if (a + 0 == a && b + 0 == b) { n++; ab += a * b; aa += a * a; bb += b * b } } }
        END { exit !(n > 100 && ab / sqrt(aa * bb) >= limit) }'
}
check "f32 features are the cpu backend's" near "$work/cpu.csv" "$work/cuda-f32.csv" 0.9999999
check "bf16 features are near them" near "$work/cpu.csv" "$work/cuda-bf16.csv" 0.999

# ---- caches ----
make_cache --device cuda --cache "$work/a.kdc"
check "a cache on cuda" test $? -eq 0
for signal in KILL TERM; do # in the middle
    "$KD_BIN/kd-precompute" "${cache_args[@]}" --device cuda --cache "$work/$signal.kdc" 2>"$work/err" &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ ! -s "$work/$signal.kdc.partial" ]; do sleep 0.02; done
    kill -$signal $pid 2>/dev/null
    wait $pid 2>/dev/null
    make_cache --device cuda --cache "$work/$signal.kdc"
    check "one that got SIG$signal goes on" test $? -eq 0
    check "and has the same content" test -n "$(digest "$work/a.kdc")" -a "$(digest "$work/a.kdc")" = "$(digest "$work/$signal.kdc")"
done
make_cache --device cuda --batch-size 0 --cache "$work/auto.kdc"
check "a batch size from the device's memory" grep -q 'batch size 256, from the device' "$work/err"
check "changes nothing here" test "$(digest "$work/a.kdc")" = "$(digest "$work/auto.kdc")"
make_cache --device cuda:all --cache "$work/all"
check "cuda:all" test $? -eq 0
check "each device has written its part" test "$(ls "$work/all"/part-0000[12]-of-00002-00000.kdc 2>/dev/null | wc -l)" -eq 2
check "messages carry the device" grep -q '^cuda:1  ' "$work/err"
check "together they hold what one device stores" test "$(digest "$work/a.kdc")" = "$(digest "$work/all")"
make_cache --device cuda:all --cache "$work/all"
check "once more: nothing to do" test $? -eq 0
make_cache --device cuda:all --cache "$work/one.kdc"
check "cuda:all needs a folder" test $? -eq 2
"$KD_BIN/kd-eval" features --model auto --weights "$weights" --images "$pictures/test" --out "$work/x.csv" --device cuda:all 2>"$work/err"
check "cuda:all is kd-precompute's" test $? -eq 2

# ---- students ----
train() { # OUT STUDENT... -- OPTIONS
    local out=$1 args=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do args+=(--student "$1"); shift; done
    exec "$KD_BIN/kd-train" --cache "$work/a.kdc" --images "$pictures/train" --student-size 56 --out "$work/$out" "${args[@]}" --epochs 3 --batch-size 6 --val-fraction 0.2 --log-every 1 --device cuda "${@:2}" 2>"$work/err"
}
for student in resnet18 dinov2_w64_d2; do
    "$KD_BIN/kd-train" --cache "$work/a.kdc" --images "$pictures/train" --student $student --student-size 56 --out "$work/x" --batch-size 3 --device cuda --compare-backends >"$work/out" 2>"$work/err"
    check "$student: forward and backward are ref's" test $? -eq 0
done
(train a dinov2_w64_d2)
check "a run on cuda" test $? -eq 0
(train c dinov2_w64_d2 mobilenet_v3_small)
check "two students" test $? -eq 0
check "each as if it were alone" cmp "$work/a/exported/dinov2_w64_d2.safetensors" "$work/c/exported/dinov2_w64_d2.safetensors"
(train p dinov2_w64_d2 -- --steps 2)
(train p dinov2_w64_d2)
check "a paused run ends in the same weights" cmp "$work/a/exported/dinov2_w64_d2.safetensors" "$work/p/exported/dinov2_w64_d2.safetensors"
train t dinov2_w64_d2 &
pid=$!
while kill -0 $pid 2>/dev/null && [ ! -s "$work/t/metrics.jsonl" ]; do sleep 0.02; done
kill -TERM $pid 2>/dev/null
wait $pid
check "a run that got SIGTERM stops" test $? -eq 143 -a ! -e "$work/t/exported"
(train t dinov2_w64_d2)
check "and ends in the same weights" cmp "$work/a/exported/dinov2_w64_d2.safetensors" "$work/t/exported/dinov2_w64_d2.safetensors"
(train h dinov2_w64_d2 -- --precision bf16)
check "a run in bf16" test $? -eq 0
finish
