#!/bin/bash
# Peak resident memory of kd-precompute with a full-size teacher: at most 1.15 x the model in its compute type, plus what the plan says about activations and buffers.
#
#   check_memory.sh DRAW_PICTURES WEIGHTS... [-- options of kd-precompute]
#
# DRAW_PICTURES is build/obj/*/tests/demo/draw_pictures; WEIGHTS come from draw_large_teacher.py. Every file runs in f32 and in bf16, with --batch-size 1 on a few drawn pictures;
# the peak is the kernel's (getrusage), the model's bytes and the planned ones are those that the program prints. Status 1 when a run is above the limit.
bin=${KD_BIN:-$(cd "$(dirname "$0")/../.." && pwd)/bin}
draw=${1:?check_memory.sh DRAW_PICTURES WEIGHTS...}
shift
files=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    files+=("$1")
    shift
done
[ "$1" = -- ] && shift
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-memory.XXXXXX") || exit 1
trap 'chmod -R u+rwX "$work"; rm -rf "$work"' EXIT
"$draw" "$work/pictures" 1 1 >/dev/null || exit 1
find "$work/pictures/train" -name '*.jpg' | sort | head -n 3 >"$work/list"

cat >"$work/run.py" <<'PYTHON'
"""Runs a command, then prints its peak resident memory in bytes and its seconds."""
import resource, subprocess, sys, time
begin = time.time()
status = subprocess.call(sys.argv[2:], stdout=open(sys.argv[1], "w"))
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, "%.1f" % (time.time() - begin))
sys.exit(status)
PYTHON
field() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" "$work/out" | head -n 1; }

worst=0
printf '%-32s %-5s %8s %12s %12s %12s %12s %7s\n' file type seconds model_MiB planned_MiB peak_MiB limit_MiB ratio
for file in "${files[@]}"; do
    for type in f32 bf16; do
        rm -f "$work"/x.kdc*
        read -r peak seconds < <(python3 "$work/run.py" "$work/out" "$bin/kd-precompute" --images "$work/list" --weights "$file" --cache "$work/x.kdc" --views 1 --batch-size 1 \
            --precision $type --device cpu --json "$@" 2>"$work/err")
        model=$(field model_bytes) planned=$(field planned_bytes)
        if [ ! -e "$work/x.kdc" ] || [ -z "$model" ]; then
            tail -n 2 "$work/err"
            worst=1
            continue
        fi
        limit=$((model * 115 / 100 + planned))
        [ "$peak" -le "$limit" ] || worst=1
        printf '%-32s %-5s %8s %12d %12d %12d %12d %7s\n' "$(basename "$file")" $type "$seconds" $((model >> 20)) $((planned >> 20)) $((peak >> 20)) $((limit >> 20)) \
            "$(awk "BEGIN { printf \"%.3f\", ($peak - $planned) / $model }")"
    done
done
exit $worst
