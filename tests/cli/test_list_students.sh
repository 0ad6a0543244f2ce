#!/bin/bash
# kd-train --list-students needs nothing else, names every student once, and says what the libraries say of them.
source "$(dirname "$0")/../lib.sh"

list() { "$KD_BIN/kd-train" --list-students "$@" >"$work/out" 2>"$work/err" && [ ! -s "$work/err" ]; }
row() { tr -s ' ' <"$work/out" | grep -qE "^$1"; } # the line of a student, with single spaces
has_json() { grep -F "\"student\":\"$1\"" "$work/json" | grep -qF -- "$2"; }

check 'the list is data: stdout, status 0' list
for name in resnet18 resnet34 resnet50 resnet101 mobilenet_v3_small mobilenet_v3_large convnext_tiny convnext_small vit_tiny_patch16_224 vit_small_patch16_224 vit_base_patch16_224 dinov2_vits14; do
    check "$name is listed once" [ "$(grep -c "^$name " "$work/out")" = 1 ]
done
check 'DINOv3 is no student' eval '! grep -q dinov3 "$work/out"'
# torchvision's own numbers: 11.69 M parameters less the classifier's 0.51 M; 1.814, 4.089, 0.057 and 4.456 billion multiply-adds.
check 'resnet18: parameters, FLOPs, width, sizes, maps' row 'resnet18 torchvision 11\.18 3\.63 at 224 512 all from 32 on 56x56x64 28x28x128 14x14x256 7x7x512$'
check 'resnet50: a wide feature' row 'resnet50 torchvision 23\.51 8\.17 at 224 2048 '
check 'mobilenet_v3_small: grouped convolutions count by group' row 'mobilenet_v3_small torchvision 0\.93 0\.11 at 224 576 '
check 'convnext_tiny: the norm before the classifier is part of the pooled feature' row 'convnext_tiny torchvision 27\.82 8\.91 at 224 768 '
check 'a plain ViT, by the size in its name' row 'vit_tiny_patch16_224 timm 5\.52 2\.51 at 224 192 multiples of 16 14x14x192$'
check 'a ViT of any multiple of its patch' row 'dinov2_vits14 dinov2 .* multiples of 14 16x16x384$'
cp "$work/out" "$work/table"
check 'the list as JSON' list --json
cp "$work/out" "$work/json"
check 'a line of JSON for each' [ "$(wc -l <"$work/json")" = "$(grep -c '  ' "$work/table" | awk '{ print $1 - 1 }')" ]
check 'with the parameters to the last one' has_json resnet18 '"parameters":11176512,'
check 'and maps by name' has_json resnet34 '{"tap":"layer3","h":14,"w":14,"channels":256}'
finish
