#!/bin/bash
# Several recipes of one teacher in one run, end to end on drawn pictures: global and local crops as two caches, at two sizes of one convolutional student; an interrupted run ends in the same bits.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 4 1 >"$work/out" || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
device=(--device cpu --threads 2)
pre() { "$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" "${device[@]}" "$@"; }
both=(--cache "$work/global.kdc" --cache "$work/local.kdc")
train() { "$KD_BIN/kd-train" --images "$pictures/train" --epochs 2 --batch-size 8 --val-fraction 0.2 --log-every 1 "${device[@]}" "$@"; }
says() { # STATUS WORDS COMMAND...: that exit status, and WORDS on stderr
    local status=$1 words=$2 got
    shift 2
    "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    [ $got -eq "$status" ] && grep -qF -- "$words" "$work/err"
}
numbers() { sed 's/,"images_per_s":[^,}]*//; s/,"data_wait":[^,}]*//' "$1/metrics.jsonl"; }

pre --cache "$work/global.kdc" --image-size 112 --augment dino-1 --views 2 2>"$work/err" &&
    pre --cache "$work/local.kdc" --image-size 56 --augment "$top/docs/augment/local.yaml" --views 3 2>"$work/err" || { cat "$work/err"; exit 1; }

# ---- the plan ----
cnn=("${both[@]}" --student mobilenet_v3_small --student-size 64)
check "the plan shows both recipes" says 0 'recipe 2 of 2: cache' train "${cnn[@]}" --out "$work/dry" --dry-run
check "and that the second is reduced like the first" grep -q 'student mobilenet_v3_small at 64 and 32 px' "$work/err"
check "and how often its views are seen" grep -q 'and from recipe 2 with one of its 3 views' "$work/err"
check "and touches nothing" test ! -e "$work/dry"

# ---- training ----
check "a CNN learns from both" says 0 'exported' train "${cnn[@]}" --out "$work/a"
numbers "$work/a" >"$work/a-metrics"
check "each step logs both losses" test "$(grep -c '"loss_recipe_1":.*"loss_recipe_2":' "$work/a-metrics")" -eq "$(grep -c '"lr"' "$work/a-metrics")"
check "the export is of the first size" grep -aq '"kdcache_image_size":"64"' "$work/a/exported/mobilenet_v3_small.safetensors"
train "${cnn[@]}" --out "$work/p" --steps 1 2>/dev/null
train "${cnn[@]}" --out "$work/p" --steps 3 2>/dev/null
check "a paused run goes on to its end" says 0 'resuming after step 3' train "${cnn[@]}" --out "$work/p"
check "with the same weights" cmp "$work/a/exported/mobilenet_v3_small.safetensors" "$work/p/exported/mobilenet_v3_small.safetensors"
check "and the same numbers" test "$(numbers "$work/p")" = "$(cat "$work/a-metrics")"
"$KD_BIN/kd-train" --images "$pictures/train" --epochs 2 --batch-size 8 --val-fraction 0.2 --log-every 1 "${device[@]}" "${cnn[@]}" --out "$work/k" 2>/dev/null & # not the function: $! must be the program
pid=$!
while kill -0 $pid 2>/dev/null && [ "$(cat "$work/k/metrics.jsonl" 2>/dev/null | wc -l)" -lt 2 ]; do sleep 0.005; done
kill -KILL $pid 2>/dev/null
wait $pid 2>/dev/null
check "after SIGKILL the same command completes" says 0 'exported' train "${cnn[@]}" --out "$work/k"
check "with the same weights as the straight run" cmp "$work/a/exported/mobilenet_v3_small.safetensors" "$work/k/exported/mobilenet_v3_small.safetensors"
check "the run doesn't go on with one recipe, exit 13" says 13 'cache_2 was' train --cache "$work/global.kdc" --student mobilenet_v3_small --student-size 64 --out "$work/a"

# ---- what can't be ----
check "a ViT can't see two sizes: exit 2, by name" says 2 '--student dinov2_w64_d1: the caches' train "${both[@]}" --student dinov2_w64_d1 --out "$work/no"
check "and is told what can" grep -q 'caches of one view size, or train a convolutional student' "$work/err"
pre --cache "$work/flip.kdc" --image-size 112 --augment crop-flip --views 1 2>/dev/null
check "views of one size and two recipes do for a ViT" says 0 'at 112 and 112 px' train --cache "$work/global.kdc" --cache "$work/flip.kdc" --student dinov2_w64_d1 --out "$work/v"
pre --cache "$work/layer.kdc" --image-size 56 --layers 2 --views 1 2>/dev/null
check "another layer is refused, exit 13, by field" says 13 'layers is [1] in' train --cache "$work/global.kdc" --cache "$work/layer.kdc" --student resnet18 --out "$work/no"
check "nothing was begun" test ! -e "$work/no"

# ---- images that a recipe lacks ----
find "$pictures/train" -name '*.jpg' | sort | head -n 10 >"$work/some.txt"
"$KD_BIN/kd-precompute" --images "$work/some.txt" --weights "$weights" --cache "$work/some.kdc" --image-size 56 --views 1 "${device[@]}" 2>"$work/err" || { cat "$work/err"; exit 1; }
check "images that a recipe lacks are left out and counted" says 0 'are left out because another recipe lacks them' \
    train --cache "$work/global.kdc" --cache "$work/some.kdc" --student mobilenet_v3_small --student-size 64 --batch-size 4 --out "$work/s" --dry-run
check "and the rest is trained on" grep -qE '(8|9) images to train on, (1|2) held out|10 images to train on' "$work/err"
finish
