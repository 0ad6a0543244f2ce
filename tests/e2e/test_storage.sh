#!/bin/bash
# Element types and patch targets from kd-precompute to the reader: what was asked for is stored, proves itself, and costs what it should.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 2 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
pre() { "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --threads 2 --images "$pictures/train" --views 2 "$@"; }
refused() { # NAME WORDS OPTION ..
    local name=$1 words=$2
    shift 2
    pre --cache "$work/refused.kdc" "$@" >"$work/out" 2>"$work/err"
    check "$name is refused, exit 2" test $? -eq 2
    check "and said why" grep -qF -- "$words" "$work/err"
    check "and nothing is left" eval '! ls "$work"/refused* 2>/dev/null'
}

for store in f16 bf16 i8; do
    pre --cache "$work/$store.kdc" --store $store --patch-target full,pool:4,adjoint:7,adjoint:3x5 2>"$work/err"
    check "$store: four targets of one run are sealed" test $? -eq 0
    "$KD_BIN/kd-cache" check "$work/$store.kdc" --read-data >"$work/out" 2>"$work/err"
    check "$store: every record proves itself" test $? -eq 0
    "$KD_BIN/kd-cache" info "$work/$store.kdc" --json >"$work/info"
    check "$store: the recipe says how" eval 'grep -q "\"patch_targets\":\[\"full\",\"pool:4\",\"adjoint:7\",\"adjoint:3x5\"\]" "$work/info" && grep -q "\"store\":{\"dtype\":\"'$store'\"}" "$work/info"'
    check "$store: fidelity stands for every target" eval '[ "$(grep -o "\"worst_token\":" "$work/info" | wc -l)" -eq 5 ]'
done
bytes() { stat -c %s "$work/$1.kdc"; }
check "i8 is smaller than 0.7 of f16, small records and scales of narrow tokens included" test $(($(bytes i8) * 10)) -lt $(($(bytes f16) * 7))
pre --cache "$work/adjoint.kdc" --store i8 --patch-target adjoint:7 2>/dev/null
check "adjoint:7 in i8 takes less than a sixth of the four in f16" test $(($(bytes adjoint) * 6)) -lt "$(bytes f16)"
pre --cache "$work/again.kdc" --store i8 --patch-target full,pool:4,adjoint:7,adjoint:3x5 2>/dev/null
check "the same command gives the same sealed bytes" cmp "$work/i8.kdc" "$work/again.kdc"

refused 'a target that is none' 'did you mean adjoint' --patch-target ajoint:7
refused 'a target larger than the grid' 'and pool:17 is larger' --patch-target pool:17
refused 'one target twice' 'adjoint:7 is given twice' --patch-target adjoint:7,full,adjoint:7
refused 'a fifth target' 'at most 4 targets' --patch-target full,pool:1,pool:2,pool:3,pool:4
refused 'an unknown element type' 'is not one of auto|f16|bf16|i8' --store f8
finish
