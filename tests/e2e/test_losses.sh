#!/bin/bash
# kd-train under every --loss and under pairs, on drawn pictures: it trains, and metrics.jsonl has the terms of that loss and no other; what a cache or a begun run can't serve is refused by name.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 2 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
pre() { "$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --views 1 --image-size 56 --device cpu --layers 1,2 "$@" 2>"$work/err" || { cat "$work/err"; exit 1; }; }
pre --cache "$work/x.kdc"
pre --cache "$work/adjoint.kdc" --patch-target adjoint:4
common=(--images "$pictures/train" --student dinov2_w64_d1 --batch-size 8 --val-fraction 0.3 --log-every 1 --device cpu --threads 2)
train() { "$KD_BIN/kd-train" "${common[@]}" --cache "$work/x.kdc" --epochs 2 "$@"; }
keys() { # DIR PATTERN: the keys of the terms in the lines that have PATTERN, in their order
    grep -F -- "$2" "$1/metrics.jsonl" | head -n 1 | grep -o '"[a-z_]*loss_[a-z0-9_]*"' | tr -d '"' | tr '\n' ' ' | sed 's/ $//'
}
# check_terms NAME DIR TERM...: steps have loss_TERM, validation val_loss_TERM, all finite
check_terms() {
    local name=$1 dir=$2 steps= epochs= t
    shift 2
    for t in "$@"; do steps+="loss_$t " epochs+="val_loss_$t "; done
    check "$name: its terms, and no other, are in the steps" test "$(keys "$dir" '"lr"')" = "${steps% }"
    check "$name: and in validation" test "$(keys "$dir" '"val_loss"' | tr ' ' '\n' | grep '^val_' | tr '\n' ' ' | sed 's/ $//')" = "${epochs% }"
    check "$name: its numbers are numbers" test "$(grep -ciE 'nan|inf' "$dir/metrics.jsonl")" -eq 0
}

# ---- a classifier of three classes on the teacher's CLS ----
width=$("$KD_BIN/kd-cache" info "$work/x.kdc" --json | sed -n 's/.*"width": *\([0-9]*\).*/\1/p' | head -n 1)
bytes=$((3 * width * 4))
header="{\"fc.weight\":{\"dtype\":\"F32\",\"shape\":[3,$width],\"data_offsets\":[0,$bytes]}}"
{
    printf "\\x$(printf %02x ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"
    for ((i = 0; i < bytes; i += 20)); do printf '\0\0\200\076\0\0\0\277\0\0\200\277\0\0\0\077\0\0\300\077'; done | head -c $bytes # 0.25 -0.5 -1 0.5 1.5
} >"$work/head.safetensors"

# ---- every name ----
declare -A terms=(
    [std-mse]="cls patch" [mse]="patch_1 patch_2" [kl-queue]=global [kl-queue+intra]="global local" [mse-normalized]="cls patch" [cosine]="cls patch"
    [cos-sl1]="cls_cosine cls_smooth_l1 patch_cosine patch_smooth_l1" [radio]="cls patch_cosine patch_smooth_l1" [unic]="cls_cosine cls_smooth_l1 patch_cosine patch_smooth_l1"
    [smooth-l1]="cls patch" [gram]=patch [kl-logits]=logits [none]="pair1")
declare -A extra=([kl-logits]="--teacher-head $work/head.safetensors" [none]="--pair teacher=patch")
names=$("$KD_BIN/kd-train" --help | tr '\n' ' ' | grep -o -- '--loss [a-z0-9+|-]*' | head -n 1 | cut -d' ' -f2 | tr '|' ' ')
check "the help names the losses that are tried here" test "$(tr ' ' '\n' <<<"$names" | sort | tr '\n' ' ')" = "$(printf '%s\n' "${!terms[@]}" | sort | tr '\n' ' ')"
for loss in $names; do
    # shellcheck disable=SC2086
    train --out "$work/$loss" --loss "$loss" ${extra[$loss]} 2>"$work/err"
    check "--loss $loss trains" test $? -eq 0
    # shellcheck disable=SC2086
    check_terms "$loss" "$work/$loss" ${terms[$loss]}
done
check "the plan says what is learnt, with weights" grep -q 'student dinov2_w64_d1 learns radio: cls 1, patch_cosine 0.9, patch_smooth_l1 0.1' "$work/radio/train.log"
check "R2 isn't said of directions" test "$(grep -c 'val_r2' "$work/cosine/metrics.jsonl")" -eq 0 -a "$(grep -c 'val_r2' "$work/std-mse/metrics.jsonl")" -gt 0
train --out "$work/none2" --loss kl-logits 2>"$work/err"
check "kl-logits without a head is refused, exit 2" test $? -eq 2
check "and says what it needs" grep -q -- '--teacher-head FILE' "$work/err"
train --out "$work/none2" --loss kl-logits --teacher-head "$weights" 2>"$work/err"
check "a file that is no classifier is refused, exit 2" test $? -eq 2

cp "$work/head.safetensors" "$work/moved.safetensors"
train --out "$work/kl-logits" --loss kl-logits --teacher-head "$work/moved.safetensors" 2>"$work/err"
check "a begun run goes on when its classifier has moved" test $? -eq 0
printf '\0\0\0\0' | dd of="$work/moved.safetensors" bs=1 seek=$((8 + ${#header})) conv=notrunc 2>/dev/null
train --out "$work/kl-logits" --loss kl-logits --teacher-head "$work/moved.safetensors" 2>"$work/err"
check "and is refused, exit 13, when it has other values" test $? -eq 13
check "naming it" grep -q 'teacher_head was .* when the run was begun' "$work/err"

# ---- add-ons, pairs ----
train --out "$work/add" --gram-weight 0.5 --koleo-weight 0.1 2>"$work/err"
check_terms "add-ons" "$work/add" cls patch gram koleo
pair=(--loss none --pair "student=map,teacher=patch:2,loss=cosine:0.9+smooth-l1:0.1,weight=0.5,head=mlp,hidden=32" --pair "name=whole,student=mean,teacher=cls,scaling=raw,weight=0.5")
train --out "$work/pairs" "${pair[@]}" 2>"$work/err"
check_terms "pairs" "$work/pairs" pair1_cosine pair1_smooth_l1 whole
cat >"$work/pairs.yaml" <<YAML
loss: none
pair:
  - {student: map, teacher: "patch:2", loss: "cosine:0.9+smooth-l1:0.1", weight: 0.5, head: mlp, hidden: 32}
  - {name: whole, student: mean, teacher: cls, scaling: raw, weight: 0.5}
YAML
train --out "$work/yaml" --config "$work/pairs.yaml" 2>"$work/err"
check "the same pairs as mappings in a config file" test $? -eq 0
check "give the same weights, bit for bit" cmp "$work/pairs/exported/dinov2_w64_d1.safetensors" "$work/yaml/exported/dinov2_w64_d1.safetensors"
train --out "$work/own" --student "dinov2_w64_d1,name=second,loss=none,pair=[student=map,teacher=patch:2,loss=cosine:0.9+smooth-l1:0.1,weight=0.5,head=mlp,hidden=32],pair=[name=whole,student=mean,teacher=cls,scaling=raw,weight=0.5]" 2>"$work/err"
numbers() { grep -F "\"student\":\"$2\"" "$1/metrics.jsonl" | sed 's/,"images_per_s":[^,}]*//; s/,"data_wait":[^,}]*//; s/"student":"[^"]*"//'; }
check "pairs can be one student's own, with the same metrics" test "$(numbers "$work/own" second | grep -c .)" -gt 2 -a "$(numbers "$work/own" second)" = "$(numbers "$work/pairs" dinov2_w64_d1)"
train --out "$work/none2" --loss none --pair teacher=patch,student=layer9 2>"$work/err"
check "a feature that the student lacks is refused, exit 2" test $? -eq 2
check "with those that it has" grep -q 'isn.t a feature of dinov2_w64_d1 .* it has map' "$work/err"
check "heads are no part of what is exported" test "$(grep -c kd_head "$work/pairs/exported/dinov2_w64_d1.safetensors")" -eq 0

# ---- a begun run keeps its loss ----
train --out "$work/std-mse" --loss cosine 2>"$work/err"
check "another --loss is refused in a begun run, exit 2" test $? -eq 2
check "with both values" grep -q -- '--loss was "std-mse" when .* is "cosine" now' "$work/err"
train --out "$work/pairs" --loss none --pair "student=map,teacher=patch:2" 2>"$work/err"
check "another --pair is refused in a begun run, exit 2" test $? -eq 2
check "by name" grep -q -- '--pair was' "$work/err"
train --out "$work/part" "${pair[@]}" --steps 1 2>/dev/null
train --out "$work/part" "${pair[@]}" 2>"$work/err"
check "an interrupted run of pairs ends in the same bits" cmp "$work/pairs/exported/dinov2_w64_d1.safetensors" "$work/part/exported/dinov2_w64_d1.safetensors"
train --out "$work/queue" --loss kl-queue+intra --steps 3 2>/dev/null
train --out "$work/queue" --loss kl-queue+intra 2>"$work/err"
check "and one whose queue went on" cmp "$work/kl-queue+intra/exported/dinov2_w64_d1.safetensors" "$work/queue/exported/dinov2_w64_d1.safetensors"

# ---- adjoint targets hold no single tokens ----
plan() { "$KD_BIN/kd-train" "${common[@]}" --cache "$work/adjoint.kdc" --epochs 1 --out "$work/none2" --dry-run "$@" 2>"$work/err"; }
for loss in std-mse mse kl-queue; do
    plan --loss $loss
    check "an adjoint cache serves --loss $loss" test $? -eq 0
done
for loss in kl-queue+intra mse-normalized cosine cos-sl1 radio unic smooth-l1 gram; do
    plan --loss $loss
    check "and refuses --loss $loss, exit 2" test $? -eq 2
    check "by name" grep -qE -- "--loss ${loss/+/.}: pair (patch|local) compares single patch tokens" "$work/err"
    plan --loss $loss --patch-weight 0
    check "its CLS side serves --loss $loss" test $? -eq $([ $loss = gram ] && echo 2 || echo 0)
done
plan --gram-weight 1
check "an add-on of single tokens is refused too" test $? -eq 2
check "and named" grep -q 'compares single patch tokens (gram)' "$work/err"
finish
