#!/bin/bash
# The truth modes of kd-train on drawn pictures: what they print, that they touch nothing, that they fail when they should.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 4 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
cache=$work/x.kdc
"$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --cache "$cache" --views 1 --image-size 56 --device cpu 2>"$work/err" || { cat "$work/err"; exit 1; }

train() { "$KD_BIN/kd-train" --cache "$cache" --images "$pictures/train" --epochs 2 --batch-size 8 --val-fraction 0 --device cpu --threads 2 "$@" >"$work/out" 2>"$work/err"; }
vit=(--student dinov2_w64_d2)

# ---- two backends ----
train "${vit[@]}" --out "$work/none" --compare-backends
check "cpu agrees with the reference" test $? -eq 0
check "every op's result is listed" grep -qE '^ +[0-9.e-]+  linear blocks.0.attn.qkv$' "$work/out"
check "and every gradient" grep -q 'gradient of kd_head.cls.linear.weight$' "$work/out"
check "the first beyond is named: none" grep -q 'first beyond 1e-04: none$' "$work/out"
train "${vit[@]}" --out "$work/none" --compare-backends --json
check "as JSON" grep -q '"check":"compare-backends"' <(tr -d ' ' <"$work/out")
train "${vit[@]}" --out "$work/none" --compare-backends --device ref
check "the reference isn't compared with itself" test $? -eq 2

# ---- time ----
train "${vit[@]}" --out "$work/none" --profile
check "the table of times" test $? -eq 0
share() { sed -nE 's/^ *([0-9.]+) ms +[0-9.]+%  (forward|backward) .*\[.*/\1/p' "$work/out"; }
check "has every op, forward and backward" test "$(share | wc -l)" -gt 40
check "the longest first" test "$(share)" = "$(share | sort -rg)"
check "with rates" grep -q 'GFLOP/s' "$work/out"

# ---- one batch ----
train "${vit[@]}" --out "$work/none" --overfit-batch 200 --lr 2e-3 --patch-weight 0
check "a student that can learn does" test $? -eq 0
check "and that is said" grep -q 'can learn' "$work/out"
train "${vit[@]}" --out "$work/none" --overfit-batch 20 --lr 0
check "one that doesn't move is told" test $? -eq 1
check "and what to try" grep -q -- '--lr' "$work/err"
check "nothing was touched" test ! -e "$work/none"

# ---- finite numbers ----
train "${vit[@]}" --out "$work/finite" --check-finite --steps 2
check "a sound run isn't stopped" test $? -eq 0
fill() { # FILE TENSOR: every value of a tensor of a .safetensors file becomes 3e38: finite in the file, infinite as soon as it is multiplied
    local header offsets begin
    header=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    offsets=$(head -c $((8 + header)) "$1" | tail -c "$header" | grep -oE "\"$2\":[^}]*" | grep -oE 'data_offsets":\[[0-9]+,[0-9]+' | grep -oE '[0-9]+,[0-9]+')
    begin=$((8 + header + ${offsets%,*}))
    printf '\xe6\xb1\x61\x7f' >"$work/value"
    while [ "$(wc -c <"$work/value")" -lt $((${offsets#*,} - ${offsets%,*})) ]; do cat "$work/value" "$work/value" >"$work/more" && mv "$work/more" "$work/value"; done
    head -c $((${offsets#*,} - ${offsets%,*})) "$work/value" | dd of="$1" bs=1 seek="$begin" conv=notrunc status=none
}
train "${vit[@]}" --out "$work/one" --epochs 1
cp "$work/one/exported/dinov2_w64_d2.safetensors" "$work/huge.safetensors" && chmod u+w "$work/huge.safetensors" && fill "$work/huge.safetensors" blocks.1.mlp.fc1.weight
train "${vit[@]}" --out "$work/huge" --init "$work/huge.safetensors" --check-finite
check "a number that overflows stops the run with 16" test $? -eq 16
check "at the op where it does" grep -q 'linear blocks.1.mlp.fc1 is -\?\(inf\|nan\) at element' "$work/err"
train "${vit[@]}" --out "$work/huge2" --init "$work/huge.safetensors"
check "without the option it is found by the loss" test $? -eq 16

# ---- dumps ----
train "${vit[@]}" --out "$work/d" --steps 2 --dump "$work/dump"
check "a dump of the first two steps" test $? -eq 0 -a "$(ls "$work/dump/dinov2_w64_d2" | tr '\n' ' ')" = 'step-0000.safetensors step-0001.safetensors step-0002.safetensors '
has() { head -c 200000 "$work/dump/dinov2_w64_d2/$1" | tr -d '\0' | grep -qaF "\"$2\""; }
check "has the inputs" has step-0001.safetensors input/images
check "the targets" has step-0002.safetensors input/target.patch
check "the losses" has step-0002.safetensors output/loss.cls
check "the gradients" has step-0001.safetensors grad/blocks.0.attn.qkv.weight
check "the results of the ops of step 1" has step-0001.safetensors 'op/0001 patch_embed.proj'
check "the first weights" has step-0000.safetensors param/kd_head.patch.linear.weight
train "${vit[@]}" --out "$work/d0" --steps 2
for d in d d0; do "$KD_BIN/kd-export" --run "$work/$d" --checkpoint latest --out "$work/$d.safetensors" 2>"$work/err"; done
check "looking changes nothing" cmp "$work/d.safetensors" "$work/d0.safetensors"
train "${vit[@]}" --out "$work/a" --steps 1 --dump "$work/dump2" --accumulate 2
check "a step of several batches is refused" test $? -eq 2
finish
