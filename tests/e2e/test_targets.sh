#!/bin/bash
# Patch targets end to end on drawn pictures: one cache of several, two students of one run that learn different ones, and the same student from the full grid and from its adjoint.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 2 1 >"$work/out" || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
device=(--device cpu --threads 2)
pre() { "$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --image-size 112 --views 2 "${device[@]}" "$@"; }
train() { "$KD_BIN/kd-train" --images "$pictures/train" --epochs 2 --batch-size 4 --val-fraction 0.3 --log-every 1 "${device[@]}" "$@"; }
says() { # STATUS WORDS COMMAND...: that exit status, and WORDS on stderr
    local status=$1 words=$2 got
    shift 2
    "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    [ $got -eq "$status" ] && grep -qF -- "$words" "$work/err"
}
value() { # DIR STUDENT KEY: of the last epoch
    grep "\"student\":\"$2\"" "$1/metrics.jsonl" | grep '"val_loss"' | tail -n 1 | sed 's/.*"'"$3"'":\([-0-9.e]*\).*/\1/'
}
near() { awk -v a="$1" -v b="$2" -v d="$3" 'BEGIN { exit !(a != "" && b != "" && a - b < d && b - a < d) }'; }

# The grid is 8 x 8; at 112 px mobilenet_v3_small's map is 4 x 4 and a ViT's the grid itself.
pre --cache "$work/all.kdc" --patch-target full,adjoint:4,pool:2 2>"$work/err" && pre --cache "$work/adjoint.kdc" --patch-target adjoint:4,adjoint:8 2>"$work/err" || { cat "$work/err"; exit 1; }

# ---- the plan ----
two=(--student mobilenet_v3_small --student dinov2_w64_d1)
check "the plan says what each student learns" says 0 'patch target adjoint:4' train --cache "$work/adjoint.kdc" "${two[@]}" --out "$work/dry" --dry-run
check "of two targets" grep -q 'student dinov2_w64_d1 .* patch target adjoint:8$' "$work/err"
check "where no adjoint fits it is the full grid" says 0 'patch target full' train --cache "$work/all.kdc" --student dinov2_w64_d1 --out "$work/dry" --dry-run
check "a named one is taken" says 0 'patch target pool:2' train --cache "$work/all.kdc" --student mobilenet_v3_small --patch-target pool:2 --out "$work/dry" --dry-run
check "nothing was touched" test ! -e "$work/dry"

# ---- what can't be ----
check "a map that nothing fits: exit 2, with the map" says 2 'its feature map at 64 px is 2x2' train --cache "$work/adjoint.kdc" --student mobilenet_v3_small --student-size 64 --out "$work/no"
check "and what would fit" grep -q -- '--patch-target adjoint:2' "$work/err"
check "an adjoint target of another map, by name" says 2 "isn't served by adjoint:4" train --cache "$work/all.kdc" --student dinov2_w64_d1 --patch-target adjoint:4 --out "$work/no"
check "a target that the cache hasn't lists those that it has" says 2 'holds full, adjoint:4, pool:2' train --cache "$work/all.kdc" --student mobilenet_v3_small --patch-target adjoint:7 --out "$work/no"
check "no target at all" says 2 '--patch-target adjoint: expected' train --cache "$work/all.kdc" --student mobilenet_v3_small --patch-target adjoint --out "$work/no"

# ---- training ----
check "two students learn different targets in one pass" says 0 'exported' train --cache "$work/adjoint.kdc" "${two[@]}" --out "$work/two"
check "a student alone learns the same" says 0 'exported' train --cache "$work/adjoint.kdc" --student dinov2_w64_d1 --out "$work/one"
check "bit for bit" cmp "$work/two/exported/dinov2_w64_d1.safetensors" "$work/one/exported/dinov2_w64_d1.safetensors"
check "pooled patches are learnt" says 0 'exported' train --cache "$work/all.kdc" --student dinov2_w64_d1 --patch-target pool:2 --out "$work/pool"
train --cache "$work/all.kdc" --student mobilenet_v3_small --patch-target full --out "$work/full" 2>"$work/err"
train --cache "$work/all.kdc" --student mobilenet_v3_small --out "$work/adjoint" 2>"$work/err"
check "auto is written down as what it was" grep -q 'patch-target: .*adjoint:4' "$work/adjoint/config.resolved.yaml"
for key in train_loss val_loss val_r2_patch seen_r2_patch; do
    a=$(value "$work/full" mobilenet_v3_small $key) b=$(value "$work/adjoint" mobilenet_v3_small $key)
    echo "$key: full $a, adjoint $b"
    check "$key of the adjoint is that of the full grid" near "$a" "$b" 0.02
done
check "a run doesn't go on with another target" says 2 '--patch-target was "adjoint:4"' train --cache "$work/all.kdc" --student mobilenet_v3_small --patch-target full --out "$work/adjoint"
finish
