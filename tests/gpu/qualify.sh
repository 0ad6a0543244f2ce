#!/bin/bash
# The standing qualification of the cuda backend on a machine with a device. Needs no network and installs nothing: programs and libraries come from a `make bundle` folder; nvcc isn't needed, PyTorch,
# torchvision, timm and safetensors are (for the comparisons: without them their rows say so).
#
#     tests/gpu/qualify.sh [BUNDLE]          BUNDLE: dist/kdcache-bundle, or a .tar.xz of it
#
#   STAGES="facts ops teacher training resume sanitizer bench online files profile"   only these       REPORT=FILE   where the table goes (tests/gpu/results/DATE-DEVICE.md)
#   SECONDS_EACH=120   a stage that takes longer is stopped, and says so                                  DEVICE=cuda:0
#
# Ends with one table of what was checked, and with status 1 when a row missed its limit. A speed below its target is a miss in the table, and not a failure.
cd "$(dirname "$0")/../.." || exit 1
top=$PWD
bundle=${1:-dist/kdcache-bundle}
stages=${STAGES:-facts ops teacher training resume bench online files sanitizer profile}
limit=${SECONDS_EACH:-120}
device=${DEVICE:-cuda:0}
python=${PYTHON:-python3}
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-qualify.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
if [ -f "$bundle" ]; then
    tar -xf "$bundle" -C "$work" || exit 1
    bundle=$(dirname "$(find "$work" -maxdepth 2 -name REQUIRES.txt | head -n 1)")
fi
[ -x "$bundle/bin/kd-train" ] || { echo "$bundle: no bundle (make bundle)" >&2; exit 2; }
bundle=$(cd "$bundle" && pwd)
bin=$bundle/bin tests=$bundle/tests
export KD_LIB_DIR=$bundle/lib GOMP_SPINCOUNT=1000
# cuBLASLt and cuDNN where PyTorch's wheels have them.
wheels=$($python -c 'import nvidia, glob; print(":".join(sorted({d for p in nvidia.__path__ for d in glob.glob(p + "/*/lib")})))' 2>/dev/null)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$wheels
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
report=${REPORT:-tests/gpu/results/$(date -u +%Y-%m-%d)-$(printf '%s' "${name:-no-device}" | tr ' /' '--').md}
mkdir -p "$(dirname "$report")"
rows=$work/rows notes=$work/notes
: >"$rows" >"$notes"
failures=0

row() { # STAGE WHAT VALUE WANTED ok|FAILED|below|-
    printf '| %s | %s | %s | %s | %s |\n' "$@" | tee -a "$rows"
    [ "$5" = FAILED ] && failures=$((failures + 1))
}
note() { printf '%s\n' "$@" >>"$notes"; }
# Runs a command with the stage's time limit and its output in $work/log; status 124: it ran out of time.
limited() { timeout -k 10 "$limit" "$@" >"$work/log" 2>&1; }
verdict() { [ "$1" -eq 0 ] && echo ok || echo FAILED; }
took() { [ "$1" -eq 124 ] && echo "stopped after $limit s" || echo "status $1"; }

stage_facts() {
    note '## Machine' '' '```' "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv 2>&1)" "$($python -c 'import torch, torchvision, timm; print("torch", torch.__version__, "cuDNN", torch.backends.cudnn.version(), "torchvision", torchvision.__version__, "timm", timm.__version__)' 2>&1)" \
        "$(nproc) processors, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" '```' ''
    limited "$tests/bench_model" resnet18 8 64 bf16 infer 1 "$device" 2
    row facts "the module loads and runs a ResNet-18" "$(tail -n 1 "$work/log" | cut -c1-120)" "" "$(verdict $?)"
}

stage_ops() {
    local status counts
    CMOCKA_MESSAGE_OUTPUT=TAP KD_OPS_MEASURE=1 limited "$tests/test_ops_cuda"
    status=$?
    counts="$(grep -c '^ok' "$work/log") passed, $(grep -c '^not ok.*# SKIP' "$work/log") skipped, $(grep '^not ok' "$work/log" | grep -vc SKIP) failed"
    grep -q '# SKIP backend_is_present' "$work/log" && status=1
    row ops "every op case against ref, f32 and bf16" "$counts; $(took $status)" "tests/ops/tolerances.c" "$(verdict $status)"
    note '## Ops: largest errors, and cases that failed' '' '```' "$(grep '^measured' "$work/log")" "$(grep -A3 '^not ok' "$work/log" | grep -v SKIP | head -n 60)" '```' ''
}

# Rows from a script that prints "ok  WHAT  VALUE limit ..." or "NOT OK  WHAT ..." lines.
rows_of() { # STAGE STATUS
    local line lines=0
    while IFS= read -r line; do
        case $line in
        "ok "*) row "$1" "$(echo "${line#ok}" | sed 's/^ *//; s/   .*//')" "$(echo "$line" | sed 's/.*   *//')" "" ok ;;
        "NOT OK "*) row "$1" "$(echo "${line#NOT OK}" | sed 's/^ *//; s/   .*//')" "$(echo "$line" | sed 's/.*   *//')" "" FAILED ;;
        *) continue ;;
        esac
        lines=$((lines + 1))
    done <"$work/log"
    if [ "$lines" -eq 0 ] || [ "$2" -eq 124 ]; then
        row "$1" "the stage ran to its end" "$(took "$2"): $(tail -n 1 "$work/log" | cut -c1-200)" "" FAILED
    fi
}

pictures() { # made once
    [ -d "$work/pictures" ] || "$tests/draw_pictures" "$work/pictures" "${PICTURES:-100}" 5 >"$work/log" 2>&1
}

stage_teacher() {
    pictures
    limited "$python" tests/gpu/check_teacher_gpu.py --bin "$bin" --device "$device" --images "$work/pictures" --threads 8
    rows_of teacher $?
}


stage_training() {
    local against=ref
    [ -f "$bundle/lib/libkd_cpu.so" ] && against=cpu
    pictures
    "$bin/kd-precompute" --images "$work/pictures/train" --weights tests/golden/demo_teacher/demo_teacher.safetensors --cache "$work/train.kdc" --views 2 --device "$device" -q 2>"$work/log"
    row training "kd-precompute of the drawn pictures" "$(took $?)" "" "$(verdict $?)"
    limited "$python" tests/gpu/check_training_gpu.py --bin "$bin" --cache "$work/train.kdc" --images "$work/pictures/train" --work "$work/training" --device "$device" --against $against
    rows_of training $?
}

# A cache of the same pictures made twice, once interrupted, has the same content.
stage_resume() {
    pictures
    local options=(--images "$work/pictures/train" --weights tests/golden/demo_teacher/demo_teacher.safetensors --views 4 --device "$device" --precision bf16 -q) a b
    "$bin/kd-precompute" "${options[@]}" --cache "$work/a.kdc" 2>"$work/log"
    timeout -s KILL 2 "$bin/kd-precompute" "${options[@]}" --cache "$work/b.kdc" 2>>"$work/log"
    "$bin/kd-precompute" "${options[@]}" --cache "$work/b.kdc" 2>>"$work/log"
    a=$("$bin/kd-cache" digest "$work/a.kdc") b=$("$bin/kd-cache" digest "$work/b.kdc")
    [ -n "$a" ] && [ "${a##* }" = "${b##* }" ]
    row resume "two caches of the same pictures, one of them killed after 2 s" "digest ${a:0:24}" "equal" "$(verdict $?)"
}

value() { sed -n 's/.*"'"$2"'": *\([0-9.]*\).*/\1/p' "$1" | tail -n 1; }
speed() { # MODEL BATCH SIZE MODE TARGET RATIO-EAGER RATIO-COMPILED
    local ours eager compiled text state=ok
    limited "$tests/bench_model" "$1" "$2" "$3" bf16 "$4" 8 "$device" 30 || { row bench "$1 $4, batch $2" "$(tail -n 1 "$work/log" | cut -c1-160)" "" FAILED; return; }
    ours=$(value "$work/log" images_per_s)
    limited "$python" tests/gpu/peer_torch_gpu.py "$1" "$2" "$3" "$4" eager 30 && eager=$(value "$work/log" images_per_s)
    [ -n "$NO_COMPILE" ] || { limited "$python" tests/gpu/peer_torch_gpu.py "$1" "$2" "$3" "$4" compile 30 && compiled=$(value "$work/log" images_per_s); }
    text=$(awk -v o="$ours" -v e="${eager:-0}" -v c="${compiled:-0}" 'BEGIN { printf "%.0f images/s; PyTorch %.0f, compiled %.0f: %.2f x, %.2f x", o, e, c, e > 0 ? o / e : 0, c > 0 ? o / c : 0 }')
    awk -v o="$ours" -v t="$5" -v e="${eager:-0}" -v re="$6" -v c="${compiled:-0}" -v rc="$7" 'BEGIN { exit !(o >= t && o >= re * e && o >= rc * c) }' || state=below
    row bench "$1 $4, batch $2, bf16" "$text" "$5 images/s, $6 x eager, $7 x compiled" $state
}

stage_bench() {
    speed dinov2_vits14 256 224 features 24000 1.2 1.0
    speed dinov2_vitb14 128 224 features 9600 1.2 1.0
    speed dinov2_vitl14 64 224 features 3400 1.05 1.0
    speed resnet18 256 224 train 12000 1.2 1.0
    speed resnet50 128 224 train 3500 1.2 1.0
    speed vit_small_patch16_224 128 224 train 9000 1.2 1.0
    speed dinov2_vitg14 32 224 features 960 1.05 1.0
}

# A step of a ResNet-18 from the cache against the same step with the teacher in it.
stage_online() {
    local ours online teacher want
    limited "$tests/bench_model" resnet18 128 224 bf16 train 8 "$device" 30 || { row online "resnet18 train" "$(tail -n 1 "$work/log" | cut -c1-160)" "" FAILED; return; }
    ours=$(value "$work/log" images_per_s)
    for teacher in dinov2_vitb14:2 dinov2_vitl14:4 dinov2_vitg14:10; do
        want=${teacher#*:}
        limited "$python" tests/gpu/peer_torch_gpu.py resnet18 128 224 "online:${teacher%:*}" eager 20
        online=$(value "$work/log" images_per_s)
        row online "a ResNet-18's step, ${teacher%:*} cached against in the step" "$(awk -v o="$ours" -v t="${online:-0}" 'BEGIN { printf "%.0f and %.0f images/s: %.1f x", o, t, t > 0 ? o / t : 0 }')" "$want x" \
            "$(awk -v o="$ours" -v t="${online:-0}" -v w="$want" 'BEGIN { print t > 0 && o >= w * t ? "ok" : "below" }')"
    done
}

stage_files() {
    local ours theirs
    pictures
    $python - "$work/vits14.safetensors" <<'PYTHON' 2>"$work/log" || { row files "weights of a ViT-S/14" "$(tail -n 1 "$work/log")" "" FAILED; return; }
import sys
sys.path[:0] = ["tests/golden/models"]
import torch
from generate import DinoV2
from safetensors.torch import save_file
torch.manual_seed(0)
save_file({k: v.contiguous() for k, v in DinoV2(384, 12, 6, 14, 37, 1536).state_dict().items()}, sys.argv[1])
PYTHON
    limited "$bin/kd-precompute" --images "$work/pictures/train" --weights "$work/vits14.safetensors" --cache "$work/files.kdc" --views 8 --device "$device" --precision bf16 --batch-size 128 --json || \
        { row files "kd-precompute, ViT-S/14" "$(tail -n 1 "$work/log" | cut -c1-160)" "" FAILED; return; }
    ours=$(value "$work/log" views_per_s)
    limited "$python" tests/gpu/peer_torch_gpu.py dinov2_vits14 64 224 "files:$work/pictures/train" eager && theirs=$(value "$work/log" images_per_s)
    row files "JPEG files to features, ViT-S/14, $(nproc) processors: kd-precompute (8 views of an image, stored) and PyTorch" "$(awk -v o="$ours" -v t="${theirs:-0}" 'BEGIN { printf "%.0f views/s and %.0f images/s: %.1f x", o, t, t > 0 ? o / t : 0 }')" "" ok
}

stage_sanitizer() {
    command -v compute-sanitizer >/dev/null || { row sanitizer "compute-sanitizer" "not installed here" "" -; return; }
    local tool ops
    for tool in memcheck racecheck; do
        ops=linear,layer_norm,batch_norm,attention,max_pool,kl_intra
        [ $tool = racecheck ] && ops=layer_norm,batch_norm,attention
        KD_OPS=$ops limited compute-sanitizer --tool $tool --error-exitcode 9 "$tests/$([ -d "$tests/real" ] && echo real/)test_ops_cuda"
        row sanitizer "$tool: $ops" "$(took $?); $(grep -c '=========' "$work/log") lines" "clean" "$(grep -q 'ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards' "$work/log" && echo ok || echo FAILED)"
    done
}

stage_profile() {
    local m
    note '## Where the time goes (each op waited for)' ''
    for m in "dinov2_vits14 256 224 bf16 infer" "dinov2_vitb14 128 224 bf16 infer" "dinov2_vitl14 64 224 bf16 infer" "dinov2_vitg14 32 224 bf16 infer" "resnet18 256 224 bf16 train" \
        "resnet50 128 224 bf16 train" "vit_small_patch16_224 128 224 bf16 train"; do
        # shellcheck disable=SC2086
        limited "$tests/bench_model" $m 8 "$device" 5 profile
        note "$m" '' '```' "$(head -n 45 "$work/log")" '```' ''
    done
}

for stage in $stages; do
    begin=$SECONDS
    "stage_$stage"
    echo "-- $stage: $((SECONDS - begin)) s"
done
{
    echo "# Qualification on ${name:-no device}"
    echo
    echo "$(date -u '+%Y-%m-%d %H:%M') UTC, stages: $stages. Made by tests/gpu/qualify.sh."
    echo
    echo '| stage | what | measured | wanted | |'
    echo '|---|---|---|---|---|'
    cat "$rows"
    echo
    cat "$notes"
} >"$report"
echo
sed -n '/^| stage/,/^$/p' "$report"
echo "$report: $failures failed"
[ "$failures" -eq 0 ]
