#!/bin/bash
# kd-export's formats hold the same weights, say how to feed them and are a function of the checkpoint; docs/export.md shows the loaders that tests/interop/check_loaders.py runs.
. "$(dirname "$0")/../lib.sh"

"$KD_TEST_DIR/demo/draw_pictures" "$work/pictures" 3 1 || exit 1
"$KD_BIN/kd-precompute" --images "$work/pictures/train" --weights "$top/tests/golden/models/tiny_dinov2.pth" --cache "$work/x.kdc" --views 1 --image-size 28 --device ref 2>"$work/err" || { cat "$work/err"; exit 1; }
"$KD_BIN/kd-train" --cache "$work/x.kdc" --images "$work/pictures/train" --student dinov2_w64_d1 --out "$work/run" --epochs 2 --batch-size 4 --val-fraction 0.3 --device ref --threads 1 2>"$work/err" || { cat "$work/err"; exit 1; }
export_as() { # NAME WORDS...: into $work/NAME
    local name=$1
    shift
    "$KD_BIN/kd-export" --run "$work/run" --out "$work/$name" "$@" 2>"$work/err"
}
same_features() { # FILE FILE: of the test pictures
    for i in 1 2; do
        "$KD_BIN/kd-eval" features --model dinov2_w64_d1 --weights "$work/${!i}" --image-size 28 --images "$work/pictures/test" --out "$work/$i.safetensors" --device ref 2>"$work/err" || return 1
        tail -c 2000 "$work/$i.safetensors" >"$work/$i" # behind the header, which names the weights
    done
    cmp "$work/1" "$work/2"
}

# ---- the files ----
check "safetensors is written" export_as a.safetensors
check "it is what the run left" cmp "$work/a.safetensors" "$work/run/exported/dinov2_w64_d1.safetensors"
check ".pth is written" export_as a.pth --format pth
check "under another name it has the same bytes" sh -c "'$KD_BIN/kd-export' --run '$work/run' --out '$work/b.pth' --format pth 2>/dev/null && cmp '$work/a.pth' '$work/b.pth'"
check "it gives the same features" same_features a.pth a.safetensors
check "a folder for timm is written" export_as hf --format hf --license apache-2.0
check "it gives the same features" same_features hf a.safetensors
check "ONNX is written" export_as a.onnx --format onnx
check "under another name it has the same bytes" sh -c "'$KD_BIN/kd-export' --run '$work/run' --out '$work/b.onnx' --format onnx 2>/dev/null && cmp '$work/a.onnx' '$work/b.onnx'"
check "half precision is half as large" sh -c "'$KD_BIN/kd-export' --run '$work/run' --out '$work/h.pth' --format pth --dtype f16 2>/dev/null && test \$((2 * \$(stat -c %s '$work/h.pth'))) -lt \$((\$(stat -c %s '$work/a.pth') * 6 / 5))"

# ---- how to feed them ----
for file in a.safetensors a.pth; do
    check "$file states its normalisation" grep -aq '"image_mean": *"\[0.485, 0.456, 0.406\]"' "$work/$file"
    check "$file states what made it" grep -aqE '"kdcache_teacher_sha256": *"[0-9a-f]{64}"' "$work/$file"
done
check "ONNX states its normalisation" sh -c "tr '\\0-\\37' '\\n' <'$work/a.onnx' | grep -aqxF '[0.485, 0.456, 0.406]'"
check "config.json names timm's architecture" grep -q '"architecture": "vit_small_patch14_dinov2"' "$work/hf/config.json"
check "and a headless model" grep -q '"num_classes": 0' "$work/hf/config.json"
check "the card has the license" grep -qx 'license: apache-2.0' "$work/hf/README.md"
r2=$(sed -n 's/.*"val_r2_cls":\([-0-9.e]*\),.*/\1/p' "$work/run/metrics.jsonl" | tail -n 1)
check "and the last epoch's measured figures" grep -qF "| $(printf '%.4g' "$r2") |" "$work/hf/README.md"
check "without --license it says that none is stated" sh -c "'$KD_BIN/kd-export' --run '$work/run' --out '$work/bare' --format hf 2>/dev/null && grep -q 'License: not stated' '$work/bare/README.md' && ! grep -q '^license:' '$work/bare/README.md'"

# ---- refusals ----
export_as c.pth --format pth --license mit
check "a license has no place in a .pth" test $? -eq 2 -a ! -e "$work/c.pth"
export_as c.onnx --format onnx --onnx-size dynamic
check "a ViT has one size in ONNX too" test $? -eq 2 -a ! -e "$work/c.onnx"
export_as c.onnx --format onnx --dtype f16
check "ONNX is f32" test $? -eq 2 -a ! -e "$work/c.onnx"
export_as c.pth --format pth --onnx-size dynamic
check "weights alone have no size of images" test $? -eq 2 -a ! -e "$work/c.pth"
export_as pictures/train/none/c.pth --format pth
check "a folder that isn't there is said" test $? -eq 1
: >"$work/file"
export_as file --format hf
check "a file where the folder should be is said" test $? -eq 1

# ---- the page ----
page=$top/docs/export.md
sections=$(awk '/^## /{title=substr($0, 4)} /^```python/{print title}' "$page")
check "the page's loaders are those that check_loaders.py runs" test "$sections" = "$(sed -n '/^LOADERS/,/^}/s/^    "\([^"]*\)":.*/\1/p' "$top/tests/interop/check_loaders.py")"
check "none is longer than ten lines" awk '/^```python/{n=0; inside=1; next} /^```/{inside=0} inside{n++; if (n > 10) exit 1}' "$page"
finish
