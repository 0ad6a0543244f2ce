#!/bin/bash
# kd-train is killed again and again, at random and at chosen points, and runs out of disk: whatever ends it, the same command goes on, and the weights, the best state and the metrics are those of a run that nobody
# disturbed, for every optimizer, several losses and both kinds of students, with moving average, accumulation and drop path. KD_LONG=1: every combination, two kills each. docs/resume.md has the counts.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 3 1 || exit 1
cache=$work/x.kdc
"$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$top/tests/golden/models/tiny_dinov2.pth" --cache "$cache" --views 2 --image-size 56 --layers 2 --device cpu 2>"$work/err" ||
    { cat "$work/err"; exit 1; }
common=(--cache "$cache" --images "$pictures/train" --batch-size 2 --accumulate 2 --epochs 3 --val-fraction 0.3 --log-every 1 --device cpu --threads 1 --ema 0.9 --checkpoint-epochs 1 --keep 2)

# optimizer, loss, student: one with running statistics, and one with drop path
cases=("adamw std-mse mobilenet_v3_small" "sgd kl-queue mobilenet_v3_small" "lars kl-queue+intra dinov2_w64_d2")
kills=9
if [ -n "$KD_LONG" ]; then
    cases=()
    for optimizer in adamw sgd lars; do
        for loss in std-mse mse kl-queue kl-queue+intra mse-normalized cosine cos-sl1 smooth-l1 gram; do
            for student in mobilenet_v3_small dinov2_w64_d2; do cases+=("$optimizer $loss $student"); done
        done
    done
    kills=$((2 * ${#cases[@]}))
fi

arguments() { # OPTIMIZER LOSS STUDENT
    args=("${common[@]}" --optimizer "$1" --loss "$2" --student "$3")
    [ "$3" = mobilenet_v3_small ] && args+=(--student-size 32) || args+=(--drop-path 0.3)
    [[ $2 == kl-queue* ]] && args+=(--queue-size 8)
    student=$3
}
numbers() { sed 's/,"images_per_s":[^,}]*//; s/,"data_wait":[^,}]*//' "$1/metrics.jsonl"; }
same() { # A B: exports, metrics and the kept states of two runs
    cmp "$1/exported/$student.safetensors" "$2/exported/$student.safetensors" &&
        cmp "$1/exported/$student-best.safetensors" "$2/exported/$student-best.safetensors" &&
        cmp <(numbers "$1") <(numbers "$2") &&
        [ "$(cd "$1/checkpoints" && ls)" = "$(cd "$2/checkpoints" && ls)" ]
}

declare -A ends=()
phase_of() { # DIR: where a run was when it died, from what it left behind
    if compgen -G "$1/exported/*" >/dev/null; then echo export
    elif compgen -G "$1/checkpoints/*.tmp.*" >/dev/null; then echo checkpoint
    elif [ ! -s "$1/metrics.jsonl" ]; then echo "start or first steps"
    elif tail -n 1 "$1/metrics.jsonl" | grep -q '"val_loss"'; then echo "after a validation"
    else echo "steps or validation"
    fi
}

# Until a run is to be killed: at a random moment, when it writes a checkpoint, when it exports. A run may end before; the next one has another point.
wait_for_point() { # POINT DIR PID
    local after=$((RANDOM * took / 32768))
    case $1 in
        0) sleep "$(printf '%d.%03d' $((after / 1000)) $((after % 1000)))" ;;
        1) while kill -0 "$3" 2>/dev/null && ! compgen -G "$2/checkpoints/*.tmp.*" >/dev/null; do :; done ;;
        2) while kill -0 "$3" 2>/dev/null && ! compgen -G "$2/exported/*" >/dev/null; do :; done ;;
    esac
}

RANDOM=6
done_kills=0 rounds=0
per_case=$(((kills + ${#cases[@]} - 1) / ${#cases[@]}))
for c in "${cases[@]}"; do
    read -r -a words <<<"$c"
    arguments "${words[@]}"
    rm -rf "$work/a" "$work/k"
    begin=$(date +%s%N)
    "$KD_BIN/kd-train" "${args[@]}" --out "$work/a" 2>"$work/err"
    check "$c: a run ends with 0" test $? -eq 0
    took=$((($(date +%s%N) - begin) / 1000000))
    for ((n = 0; n < per_case && done_kills < kills;)); do
        "$KD_BIN/kd-train" "${args[@]}" --out "$work/k" 2>/dev/null &
        pid=$!
        wait_for_point $((rounds % 3)) "$work/k" $pid
        rounds=$((rounds + 1))
        if kill -KILL $pid 2>/dev/null; then
            wait $pid 2>/dev/null
            phase=$(phase_of "$work/k")
            ends[$phase]=$((${ends[$phase]:-0} + 1))
            n=$((n + 1)) done_kills=$((done_kills + 1))
        else # it had come to its end: once more from the beginning
            wait $pid
            same "$work/a" "$work/k" >/dev/null || break
            rm -rf "$work/k"
        fi
    done
    "$KD_BIN/kd-train" "${args[@]}" --out "$work/k" 2>"$work/err"
    check "$c: after its kills the same command completes" test $? -eq 0
    same "$work/a" "$work/k"
    check "$c: weights, best state, metrics and kept states equal those of the undisturbed run" test $? -eq 0
    check "$c: no half-written file is left" test -z "$(find "$work/k" -name '*.tmp.*')"
done
echo "killed $done_kills times in $rounds runs of ${#cases[@]} cases:"
for phase in "${!ends[@]}"; do echo "  ${ends[$phase]} $phase"; done
check "the last --keep epochs are kept" test "$(cd "$work/a/checkpoints" && echo epoch-*)" = "epoch-0002.kdt epoch-0003.kdt"

# ---- writes that fail: a limit on the size of files, which the exit code takes for a full disk ----
arguments sgd std-mse dinov2_w64_d2
"$KD_BIN/kd-train" "${args[@]}" --out "$work/whole" 2>"$work/err"
check "a run for the failing writes" test $? -eq 0
state=$(stat -c %s "$work/whole/checkpoints/latest.kdt")
best=$(stat -c %s "$work/whole/checkpoints/best-$student.kdt")
failed=0
limited() { # KILOBYTES DIR OPTIONS...
    local limit=$1 out=$2
    shift 2
    (ulimit -f "$limit"; exec "$KD_BIN/kd-train" "${args[@]}" --out "$out" "$@") 2>"$work/err"
}
for limit in 1 $((best / 2048)) $((best / 1024 + 8)) $((state / 2048)) $((state / 1024 - 4)); do
    rm -rf "$work/f"
    "$KD_BIN/kd-train" "${args[@]}" --out "$work/f" --steps 1 2>/dev/null
    cp "$work/f/checkpoints/latest.kdt" "$work/before"
    for attempt in 1 2; do # the disk is still full when the user tries again
        limited "$limit" "$work/f"
        code=$?
        check "limit of $limit KiB, attempt $attempt: exit 14" test $code -eq 14
        check "limit of $limit KiB, attempt $attempt: the file system is named" grep -q 'file system' "$work/err"
        check "limit of $limit KiB, attempt $attempt: the last state is as it was" cmp "$work/before" "$work/f/checkpoints/latest.kdt"
        failed=$((failed + 1))
    done
    "$KD_BIN/kd-train" "${args[@]}" --out "$work/f" 2>"$work/err"
    check "limit of $limit KiB: with room the same command completes" test $? -eq 0
    same "$work/whole" "$work/f"
    check "limit of $limit KiB: as if nothing had happened" test $? -eq 0
done
echo "$failed runs without room"

# ---- SIGTERM in the middle of a long step ----
"$KD_BIN/kd-train" "${args[@]}" --out "$work/t" --accumulate 4 --epochs 4 2>/dev/null &
pid=$!
while kill -0 $pid 2>/dev/null && [ ! -s "$work/t/metrics.jsonl" ]; do sleep 0.01; done
kill -TERM $pid
wait $pid
check "SIGTERM between the batches of a step ends with 143" test $? -eq 143
check "with a state" test -s "$work/t/checkpoints/latest.kdt"
"$KD_BIN/kd-train" "${args[@]}" --out "$work/t" --accumulate 4 --epochs 4 2>"$work/err"
check "and the same command completes" test $? -eq 0
"$KD_BIN/kd-train" "${args[@]}" --out "$work/u" --accumulate 4 --epochs 4 2>"$work/err"
same "$work/u" "$work/t"
check "with the weights of an undisturbed run" test $? -eq 0

# ---- SIGTERM inside a step of many seconds: one of a network that is small and slow ----
mkdir "$work/eight"
find "$pictures/train" -name '*.jpg' | head -n 8 | while read -r f; do cp "$f" "$work/eight/$(basename "$(dirname "$f")")-$(basename "$f")"; done
"$KD_BIN/kd-precompute" --images "$work/eight" --weights "$top/tests/golden/models/tiny_dinov2.pth" --cache "$work/large.kdc" --views 1 --image-size 644 --features cls --device cpu --threads 2 2>"$work/err" || cat "$work/err"
long=(--cache "$work/large.kdc" --images "$work/eight" --student yolov8n --student-size 640 --patch-weight 0 --batch-size 8 --epochs 1 --val-fraction 0 --device cpu --threads 1 --out "$work/long")
# A fast processor is done with the step before the signal: once more, sooner.
for delay in 1 0.5 0.25 0.1; do
    rm -rf "$work/long"
    "$KD_BIN/kd-train" "${long[@]}" 2>"$work/err" &
    pid=$!
    while kill -0 $pid 2>/dev/null && ! grep -q 'device: ' "$work/err"; do sleep 0.01; done
    sleep $delay
    begin=$(date +%s%N)
    kill -TERM $pid 2>/dev/null
    wait $pid
    code=$?
    took=$((($(date +%s%N) - begin) / 1000000))
    grep -q 'interrupted after step 0 of 1;' "$work/err" && break
done
check "SIGTERM inside a long step ends with 143" test $code -eq 143
echo "left a step of yolov8n, 8 images of 640 px on one thread, $took ms after SIGTERM"
check "within 25 s" test $took -lt 25000
check "the step was left and undone" grep -q 'interrupted after step 0 of 1;' "$work/err"
check "with a state" test -s "$work/long/checkpoints/latest.kdt"
finish
