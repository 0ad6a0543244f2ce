#!/bin/bash
# kd-train end to end on drawn pictures: interrupted runs end in the same bits, in whatever phase they were killed; changed options, folders and caches are refused.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 8 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
cache=$work/x.kdc
"$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --cache "$cache" --views 2 --image-size 56 --device cpu 2>"$work/err" || { cat "$work/err"; exit 1; }

# A student that is large enough for its checkpoint to take a moment, and a third held out so that validation does.
common=(--images "$pictures/train" --epochs 4 --batch-size 8 --val-fraction 0.3 --log-every 1 --device cpu)
args=("${common[@]}" --cache "$cache" --student dinov2_w192_d4 --threads 2)
train() { "$KD_BIN/kd-train" "${args[@]}" "$@"; }
# What must be equal: everything in the metrics but speeds.
numbers() { sed 's/,"images_per_s":[^,}]*//; s/,"data_wait":[^,}]*//' "$1/metrics.jsonl"; }
same_run() { # NAME DIR: the weights of both checkpoints and the metrics are those of the straight run
    for which in best latest; do
        "$KD_BIN/kd-export" --run "$2" --checkpoint $which --out "$work/b-$which" 2>"$work/err"
        check "$1: $which weights are bit-equal" cmp "$work/a-$which" "$work/b-$which"
    done
    numbers "$2" >"$work/b-metrics"
    check "$1: metrics are equal" cmp "$work/a-metrics" "$work/b-metrics"
}

train --out "$work/a" 2>"$work/err"
check "a run ends with 0" test $? -eq 0
for which in best latest; do "$KD_BIN/kd-export" --run "$work/a" --checkpoint $which --out "$work/a-$which" 2>"$work/err"; done
check "the last state is exported" cmp "$work/a/exported/dinov2_w192_d4.safetensors" "$work/a-latest"
check "and the best beside it" cmp "$work/a/exported/dinov2_w192_d4-best.safetensors" "$work/a-best"
numbers "$work/a" >"$work/a-metrics"
steps=$(grep -c '"lr"' "$work/a-metrics")
check "a line per step and per epoch" test "$(wc -l <"$work/a-metrics")" -eq $((steps + 4))
epoch=$((steps / 4))
train --out "$work/again" 2>"$work/err" && numbers "$work/again" | cmp -s - "$work/a-metrics"
check "the same run again gives the same numbers" test $? -eq 0
train --out "$work/a" 2>"$work/err"
check "a finished run is left as it is" test $? -eq 0 -a "$(wc -l <"$work/a/metrics.jsonl")" -eq $((steps + 4))

# ---- paused inside an epoch, and on its last step ----
train --out "$work/p" --steps 1 2>/dev/null
train --out "$work/p" --steps $((epoch + 2)) 2>/dev/null
train --out "$work/p" --steps $((2 * epoch)) 2>/dev/null
train --out "$work/p" 2>"$work/err"
check "a paused run goes on to its end" test $? -eq 0
same_run "paused three times" "$work/p"

# ---- SIGTERM and SIGINT: a checkpoint is written ----
wait_for_lines() { # DIR COUNT PID: until the metrics have that many lines
    while kill -0 "$3" 2>/dev/null && [ "$(cat "$1/metrics.jsonl" 2>/dev/null | wc -l)" -lt "$2" ]; do sleep 0.005; done
}
"$KD_BIN/kd-train" "${args[@]}" --out "$work/s" 2>"$work/err" & # not the function: $! must be the program
pid=$!
wait_for_lines "$work/s" 2 $pid
kill -TERM $pid
wait $pid
check "SIGTERM ends with 143" test $? -eq 143
check "and says how to go on" grep -q 'the same command goes on' "$work/err"
check "its checkpoint is there" test -s "$work/s/checkpoints/latest.kdt"
train --out "$work/s" 2>"$work/err"
same_run "after SIGTERM" "$work/s"

# ---- SIGKILL by phase ----
declare -A killed=([step]=0 [validation]=0 [checkpoint]=0)
phase_of() { # DIR: in which phase the run was when it died, from what it left behind
    if compgen -G "$1/checkpoints/*.tmp.*" >/dev/null; then
        echo checkpoint
    elif tail -n 1 "$1/metrics.jsonl" 2>/dev/null | grep -q "\"step\":\($epoch\|$((2 * epoch))\|$((3 * epoch))\|$steps\),.*\"lr\""; then
        echo validation
    else
        echo step
    fi
}
run_and_kill() { # DIR PHASE
    "$KD_BIN/kd-train" "${args[@]}" --out "$1" 2>/dev/null &
    local pid=$!
    case $2 in
        step) wait_for_lines "$1" $((epoch + 3)) $pid ;;
        validation) while kill -0 $pid 2>/dev/null && [ "$(phase_of "$1")" != validation ]; do :; done ;;
        checkpoint) while kill -0 $pid 2>/dev/null && ! compgen -G "$1/checkpoints/*.tmp.*" >/dev/null; do :; done ;;
    esac
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
}
for phase in checkpoint validation step; do
    for attempt in 1 2 3 4 5 6; do
        rm -rf "$work/k"
        run_and_kill "$work/k" $phase
        got=$(phase_of "$work/k")
        killed[$got]=$((killed[$got] + 1))
        [ "$got" = $phase ] && break
    done
    check "a run was killed during: $phase" test "$got" = $phase
    train --out "$work/k" 2>"$work/err"
    check "after SIGKILL ($phase) the same command completes" test $? -eq 0
    same_run "after SIGKILL ($phase)" "$work/k"
    check "no half-written file is left" test -z "$(find "$work/k" -name '*.tmp.*')"
done
echo "killed: ${killed[step]} in steps, ${killed[validation]} in validation, ${killed[checkpoint]} while writing a checkpoint"

# ---- what may not change within a run ----
train --out "$work/a" --clip 2 2>"$work/err"
check "a changed option is refused, exit 2" test $? -eq 2
check "by name, with both values" grep -q -- '--clip was 1.0 .* 2.0' "$work/err"
"$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --cache "$work/other.kdc" --views 2 --image-size 56 --seed 5 --device cpu 2>/dev/null
train --out "$work/p" --cache "$work/other.kdc" 2>"$work/err"
check "another cache beside the first is refused, exit 13" test $? -eq 13
"$KD_BIN/kd-train" "${common[@]}" --cache "$work/other.kdc" --student dinov2_w192_d4 --out "$work/p" 2>"$work/err"
check "another recipe is refused in a begun run, exit 13" test $? -eq 13
check "the field is named" grep -q 'cache was' "$work/err"
train --out "$work/thread" --threads 1 --steps 2 2>/dev/null
train --out "$work/thread" --threads 2 --steps 3 2>"$work/err"
check "another thread count is accepted and said" grep -q 'used 1 threads' "$work/err"
mkdir -p "$work/locked"
(
    exec 9<"$work/locked"
    flock 9
    train --out "$work/locked" 2>"$work/err"
    exit $?
)
check "a run directory that is in use is refused, exit 11" test $? -eq 11

# ---- damage ----
head -c 100000 "$work/s/checkpoints/latest.kdt" >"$work/cut.kdt"
cp "$work/cut.kdt" "$work/s/checkpoints/latest.kdt"
train --out "$work/s" 2>"$work/err"
check "a truncated checkpoint is refused, exit 1" test $? -eq 1
check "by name" grep -q 'latest.kdt' "$work/err"

# ---- several students share a pass and don't change each other ----
"$KD_BIN/kd-train" "${common[@]}" --cache "$cache" --student dinov2_w64_d1 --student dinov2_w192_d4 --threads 2 --out "$work/two" 2>"$work/err"
check "two students train together" test $? -eq 0
check "both are exported" test -s "$work/two/exported/dinov2_w64_d1.safetensors" -a -s "$work/two/exported/dinov2_w192_d4.safetensors"
grep dinov2_w192_d4 "$work/two/metrics.jsonl" | sed 's/,"images_per_s":[^,}]*//; s/,"data_wait":[^,}]*//' | cmp -s - "$work/a-metrics"
check "a student's numbers don't depend on its company" test $? -eq 0

# ---- plan, usage, numbers ----
train --out "$work/dry" --dry-run 2>"$work/err"
check "--dry-run prints the plan" grep -q 'each view is seen about' "$work/err"
check "and touches nothing" test ! -e "$work/dry"
train --out "$work/n" --lr 1e6 --clip 0 --warmup-epochs 0 2>"$work/err"
check "a run that leaves the numbers stops, exit 16" test $? -eq 16
check "and names the step and what to try" grep -q 'step .*--lr' "$work/err"
train --out "$work/n2" --batch-size 5000 2>"$work/err"
check "a batch larger than the set is a usage error" test $? -eq 2
train --out "$work/n2" --cls-weight 0 --patch-weight 0 2>"$work/err"
check "nothing to learn is a usage error" test $? -eq 2
rm "$pictures/train/disc/000.jpg"
train --out "$work/m" 2>"$work/err"
check "a missing image is refused, exit 13" test $? -eq 13
check "by path" grep -q 'disc/000.jpg' "$work/err"
train --out "$work/m" --allow-missing --steps 1 2>"$work/err"
check "--allow-missing trains on the rest" test $? -eq 0
finish
