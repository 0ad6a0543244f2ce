#!/bin/bash
# kd-precompute --inspect: says what a weight file is, exit 0 when it can be a teacher; when it can't, exit 2 (damaged: 1) and one sentence that names what is wrong. What it says of a
# teacher is what a run then does.
source "$(dirname "$0")/../lib.sh"
export LC_ALL=C

"$KD_TEST_DIR/cli/draw_weights" "$work/w" || exit 1
w=$work/w
inspect() { timeout 60 "$KD_BIN/kd-precompute" --inspect "$@" >"$work/out" 2>"$work/err" </dev/null; }
accepts() { inspect "$@" && [ ! -s "$work/err" ] && grep -q '^teacher  *yes$' "$work/out"; }
says() { # LABEL WORDS: that line of the last output
    sed -n "s/^$1  *//p" "$work/out" | head -n 1 | grep -qF -- "$2"
}
refused() { # STATUS WORDS...: as the last inspection ended; words on the error's line
    local got=$?
    [ "$(grep -c ': error: ' "$work/err")" = 1 ] && [ $got -eq "$1" ] && tail -n 1 "$work/err" | grep ': error: ' | grep -qF -- "$2"
}
refuses() { # STATUS WORDS ARGUMENTS...
    local status=$1 words=$2
    shift 2
    inspect "$@"
    refused "$status" "$words"
}
field() { sed -n "s/.*\"$1\":\(\"[^\"]*\"\|\[[^]]*\]\|[a-z0-9.+-]*\).*/\1/p" "$work/out" | head -n 1; }
has() { [ "$(field "$1")" = "$2" ] || { echo "$1 is $(field "$1")" >"$work/err"; false; }; }

# ---- teachers, for people ----
check 'DINOv2, official names' accepts "$w/dinov2.safetensors"
check 'the container and its tensors' says container safetensors
check 'the family and whose names' says family 'dinov2, official names'
check 'every number of the shape' says shape 'width 64, depth 2, heads 1, patch 14, GELU FFN of 256, LayerScale, 0 registers'
check 'the positions and their profile' says positions 'learned on a 5 x 5 grid; other sizes as official does'
check 'the normalisation and its source' says normalisation 'imagenet: mean 0.485 0.456 0.406'
check 'what a view costs' says 'a view' '224 x 224 pixels: 16 x 16 patches, 257 tokens'
check 'the memory in both types' says weights 'in f32,'
check 'what is not needed, by name' grep -q '^  *mask_token$' "$work/out"
check 'with registers' accepts "$w/dinov2_reg.safetensors"
check 'they are counted' says shape '4 registers'
check 'DINOv3' accepts "$w/dinov3.safetensors"
check 'its rotary positions' says positions 'rotary, 16 periods from the file'
check 'gated FFNs' accepts "$w/gated.safetensors"
check 'they are named' says shape 'SwiGLU FFN of 128'
check 'a plain ViT' accepts "$w/timm.safetensors"
check 'its family' says family timm
check 'its head is not needed' grep -q '^  *head.weight$' "$work/out"
check 'a training checkpoint: its teacher' accepts "$w/nested.safetensors"
check 'under the prefix' says family 'under teacher.backbone.'
check 'a folder of Hugging Face shards' accepts "$w/sharded"
check 'how many files' says container '2 files'
check 'their names' says family 'Hugging Face names'
check 'the index of the shards' accepts "$w/sharded/model.safetensors.index.json"
check 'as a value of --weights' accepts --weights "$w/dinov2.safetensors"
check 'a .pth' accepts "$top/tests/golden/models/tiny_dinov2.pth"
check 'and its container' says container 'PyTorch .pth'

# ---- as JSON: one object, with the user's choices ----
inspect "$w/dinov2_reg.safetensors" --json --image-size 70x42
check 'one line' test "$(wc -l <"$work/out")" = 1
check 'usable' has usable true
check 'family' has family '"dinov2"'
check 'registers' has registers 4
check 'view rows by columns' has image_size '[70,42]'
check 'tokens' has tokens $((1 + 4 + 5 * 3))
check 'nothing is missing' test "$(field problem)" = '""'
"$KD_TEST_DIR/demo/draw_pictures" "$work/pictures" 1 1 >/dev/null || exit 1
flops_of_a_run() { # FILE SIZE
    local flops
    inspect "$w/$1" --json --image-size "$2"
    flops=$(field flops)
    timeout 60 "$KD_BIN/kd-precompute" --images "$work/pictures/train" --weights "$w/$1" --cache "$work/x.kdc" --image-size "$2" --batch-size 2 --device cpu --dry-run --json \
        >"$work/out" 2>"$work/err"
    [ -n "$flops" ] && has flops_per_view "$flops"
}
check 'the FLOPs are those of a run' flops_of_a_run dinov2_reg.safetensors 70x42
check 'with gated FFNs too' flops_of_a_run gated.safetensors 32x48
check 'and of a plain ViT' flops_of_a_run timm.safetensors 224
check 'a guess of the normalisation is told' grep -q -- '--normalize imagenet' "$work/err"
inspect "$w/dinov2.safetensors" --json --positions hf --normalize 0.5,0.25,0.125/1,0.5,0.25
check '--positions is taken' has positions '"hf"'
check '--normalize is taken' has mean '[0.5,0.25,0.125]'
inspect "$w/two.safetensors" --json --weights-key right
check '--weights-key picks the model' has registers 4
inspect "$w/two.safetensors" --json --weights-key left.
check 'with its dot or without' has registers 0

# ---- what is no teacher: exit 2, and the sentence says what it is or lacks ----
check 'two ViTs: both are named' refuses 2 '--weights-key' "$w/two.safetensors"
check 'a key that no tensor has' refuses 2 middle "$w/two.safetensors" --weights-key middle
check 'a ResNet' refuses 2 ResNet "$w/resnet.safetensors"
check 'a text model' refuses 2 text "$w/text.safetensors"
check 'half a set of shards' refuses 2 'model-00002-of-00002.safetensors' "$w/half"
check 'one shard of a set' refuses 2 'model-00001-of-00002' "$w/sharded/model-00001-of-00002.safetensors"
check 'a missing tensor' refuses 2 "'blocks.1.ls1.gamma'" "$w/lacks.safetensors"
check 'it is listed' grep -q '^missing  *1$' "$work/out"
check 'everything else is printed all the same' says shape 'width 64'
check 'teacher: no' grep -q '^teacher  *no$' "$work/out"
check 'an unknown tensor' refuses 2 'blocks.1.adapter.down.weight' "$w/more.safetensors"
check 'a tensor of another shape' refuses 2 'pos_embed' "$w/shape.safetensors"
check 'not the teacher that was asked for' refuses 2 'not dinov3_vitb16' "$w/dinov2.safetensors" --teacher dinov3_vitb16
check 'but what it is, is printed' says model dinov2
check 'a size that the patch does not divide' refuses 2 14 "$w/dinov2.safetensors" --image-size 225
check 'TorchScript' refuses 2 TorchScript "$top/tests/golden/weights/script.pt"
mkdir "$work/tar" "$work/empty"
touch "$work/tar/storages" "$work/tar/tensors" "$work/tar/pickle"
tar -C "$work/tar" -cf "$work/old.pth" storages tensors pickle
check 'a tar of PyTorch 0.1' refuses 2 tar "$work/old.pth"
printf '<!DOCTYPE html>\n<html><body>Sign in to download</body></html>\n' >"$work/page.pth"
check 'a web page' refuses 2 'web page' "$work/page.pth"
check 'an empty folder' refuses 2 model.safetensors "$work/empty"
check 'JSON says it too' refuses 2 ResNet "$w/resnet.safetensors" --json
check 'as an object and an error line' test "$(sed -n '1s/.*"usable":\(false\).*/\1/p' "$work/out")$(grep -c '"type":"error"' "$work/out")" = false1

# ---- damaged or not there: exit 1; wrong use: exit 2 ----
head -c 5000 "$w/dinov2.safetensors" >"$work/cut.safetensors"
check 'a cut-off file' refuses 1 cut.safetensors "$work/cut.safetensors"
check 'no such file' refuses 1 nowhere "$work/nowhere.pth"
check 'nothing to look at' refuses 2 '--inspect FILE'
check 'two files' refuses 2 '--inspect FILE' "$w/dinov2.safetensors" --weights "$w/timm.safetensors"
check 'a wrong normalisation' refuses 2 halve "$w/dinov2.safetensors" --normalize halve
without_inspect() {
    "$KD_BIN/kd-precompute" --images x --cache x.kdc --weights "$w/dinov2.safetensors" "$w/dinov2.safetensors" >"$work/out" 2>"$work/err"
    refused 2 'is for --inspect'
}
check 'a file without --inspect' without_inspect
finish
