#!/bin/bash
# Views that aren't square, end to end on drawn pictures: precompute, kd-cache, kd-train, kd-export and kd-eval; sizes that can't be are refused by name.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 2 1 >"$work/out" || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
cache=$work/wide.kdc
device=(--device cpu --threads 2)
pre() { "$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --views 2 "${device[@]}" "$@"; }
train() { "$KD_BIN/kd-train" --images "$pictures/train" --epochs 1 --batch-size 8 --val-fraction 0.2 "${device[@]}" "$@"; }
evaluate() { "$KD_BIN/kd-eval" "$@" "${device[@]}"; }
says() { # STATUS WORDS COMMAND...: that exit status, and WORDS on stderr
    local status=$1 words=$2 got
    shift 2
    "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    [ $got -eq "$status" ] && grep -qF -- "$words" "$work/err"
}
shape() { # FILE TENSOR: its shape in a .safetensors header
    head -c 65536 "$1" | tr -d '\0' | grep -ao "\"$2\":{[^}]*}" | grep -o '"shape":\[[0-9,]*\]' | head -n 1 | sed 's/.*\[\(.*\)\]/\1/'
}
png_size() { od -An -tu1 -j16 -N8 "$1" | awk '{ print $5 * 16777216 + $6 * 65536 + $7 * 256 + $8 "x" $1 * 16777216 + $2 * 65536 + $3 * 256 + $4 }'; } # rows x columns

# ---- the cache ----
check "views of 112 x 168 are cached" says 0 '112x168 px' pre --cache "$cache" --image-size 112x168
"$KD_BIN/kd-cache" info "$cache" --all >"$work/info" 2>"$work/err"
check "the recipe says so" grep -qE 'image_size +\[112,168\]' "$work/info"
check "on a grid of 8 x 12" grep -qE 'grid +\[8,12\]' "$work/info"
"$KD_BIN/kd-cache" list "$cache" --json >"$work/list" 2>"$work/err"
check "every plan makes a view of 112 rows and 168 columns" test "$(grep -c '"out":\[0,0,168,112\]' "$work/list")" -eq 48
id=$(sed -n '1s/.*"id":"\([0-9a-f]*\)".*/\1/p' "$work/list")
"$KD_BIN/kd-cache" view "$cache" --images "$pictures/train" --id "$id" --view 1 --out "$work/v.png" 2>"$work/err"
check "kd-cache view proves and writes one" test $? -eq 0 -a "$(png_size "$work/v.png")" = 112x168
"$KD_BIN/kd-cache" dump "$cache" --id "$id" --view 1 --out "$work/v.safetensors" 2>"$work/err"
check "kd-cache dump gives its 96 patches" test "$(shape "$work/v.safetensors" patch)" = 1,96,64
check "another size of the same cache is refused, exit 13" says 13 'image_size is [112,168]' pre --cache "$cache" --image-size 168x112
pre --cache "$work/eval.kdc" --image-size 112x168 --augment eval --views 1 2>"$work/err"
check "the eval policy has non-square views too" test $? -eq 0
pre --cache "$work/square.kdc" --image-size 112 2>/dev/null && pre --cache "$work/square2.kdc" --image-size 112x112 2>"$work/err"
check "112 and 112x112 are the same size" cmp "$work/square.kdc" "$work/square2.kdc"

# ---- sizes that can't be ----
for size in 224x x224 0x224 224X112 '224 x 112' 4097 -14; do
    check "--image-size $size is a usage error" says 2 "--image-size $size: expected a side" pre --cache "$work/no.kdc" --image-size="$size"
done
check "0 is no size for precompute" says 2 'outside 1..4096' pre --cache "$work/no.kdc" --image-size 0
check "a height that the patch doesn't divide names the nearest" says 2 'the nearest is 224' pre --cache "$work/no.kdc" --image-size 225x112
check "and so does a width" says 2 'width 165 isn'"'"'t a multiple of 14 from 14 to 8192; the nearest is 168' pre --cache "$work/no.kdc" --image-size 112x165
check "no cache was begun" test ! -e "$work/no.kdc" -a ! -e "$work/no.kdc.partial"

# ---- training ----
check "a ResNet learns at 56 x 84" says 0 'student resnet18 at 56x84 px' train --cache "$cache" --student resnet18 --student-size 56x84 --out "$work/r"
check "its export says at what size" grep -aq '"kdcache_image_size":"56x84"' "$work/r/exported/resnet18.safetensors"
check "a ViT learns at the views' own size" says 0 'at 112x168 px' train --cache "$cache" --student dinov2_w64_d1 --out "$work/v" --image-size 112x168
vit=$work/v/exported/dinov2_w64_d1.safetensors
check "its positions are of 8 x 12 patches" test "$(shape "$vit" pos_embed)" = 1,97,64
check "a ViT starts from square positions" says 0 'at 56x84 px' train --cache "$cache" --student auto --init "$weights" --student-size 56x84 --out "$work/i"
check "the same command finds its run finished" says 0 '' train --cache "$cache" --student auto --init "$weights" --student-size 56x84 --out "$work/i"
check "views of another size than --image-size: exit 13" says 13 'image_size is 112x168' train --cache "$cache" --student resnet18 --image-size 112 --out "$work/no"
check "and when rows and columns are swapped" says 13 '--image-size says 168x112' train --cache "$cache" --student resnet18 --image-size 168x112 --out "$work/no"
check "students can't see more rows than the teacher" says 2 'measure 112x168 and can only be reduced' train --cache "$cache" --student resnet18 --student-size 113x84 --out "$work/no"
check "nor more columns" says 2 'can only be reduced' train --cache "$cache" --student resnet18 --student-size 56x169 --out "$work/no"
check "a ViT's patch must divide both sides" says 2 'the nearest is 84' train --cache "$cache" --student dinov2_w64_d1 --student-size 56x85 --out "$work/no"
check "timm's ViT without weights has the positions of its images" says 0 'vit_tiny_patch16_224 at 96x144 px' train --cache "$cache" --student vit_tiny_patch16_224 --student-size 96x144 --out "$work/vt" --steps 1
check "which are 6 x 9 and a class token" test "$(shape "$work/vt/checkpoints/latest.kdt" vit_tiny_patch16_224/pos_embed)" = 1,55,192
check "a size that is none is a usage error" says 2 '--student-size 56x: expected a side' train --cache "$cache" --student resnet18 --student-size 56x --out "$work/no"
check "squeezed views are said to be" says 0 'squeezed to 56 px' train --cache "$cache" --student resnet18 --student-size 56 --out "$work/squeezed" --dry-run

# ---- export and evaluation ----
"$KD_BIN/kd-export" --run "$work/r" --out "$work/r.safetensors" 2>"$work/err"
check "kd-export writes the same weights" cmp "$work/r.safetensors" "$work/r/exported/resnet18.safetensors"
check "features of the teacher at 112 x 168" says 0 '96 patches' evaluate features --weights "$weights" --images "$pictures/test" --image-size 112x168 --out "$work/t.safetensors"
check "as 12 pictures of 96 patches" test "$(shape "$work/t.safetensors" patch)" = 12,96,64
check "features of the student at 56 x 84" says 0 '6 patches' evaluate features --model resnet18 --weights "$work/r.safetensors" --images "$pictures/test" --image-size 112x168 \
    --student-size 56x84 --out "$work/s.safetensors"
check "features of the ViT with positions of 8 x 12" says 0 '96 patches' evaluate features --weights "$vit" --images "$pictures/test" --image-size 112x168 --out "$work/p.safetensors"
check "and at another size, from them" says 0 '54 patches' evaluate features --weights "$vit" --images "$pictures/test" --image-size 126x84 --out "$work/p.safetensors"
check "the ViT is a start for another" says 0 'at 84x126 px' train --cache "$cache" --student auto --init "$vit" --student-size 84x126 --out "$work/j"
check "k-NN at 56 x 84" says 0 '' evaluate knn --model resnet18 --weights "$work/r.safetensors" --train "$pictures/train" --test "$pictures/test" --image-size 56x84 --k 1 --json
check "and reports all pictures" grep -q '"test":12' "$work/out"
check "a reduction can't enlarge" says 2 'can only be reduced' evaluate features --model resnet18 --weights random --images "$pictures/test" --image-size 56x84 --student-size 56x85 --out "$work/no.safetensors"
finish
