#!/bin/bash
# Bad input from outside: each ends with the exit code of the contract and one sentence that names what is wrong; what was there before stays as it was.
# Bad images among good ones and interrupted runs: tests/e2e. Weight files byte by byte: tests/fault.
source "$(dirname "$0")/../lib.sh"
export LC_ALL=C

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 1 1 >"$work/out" || exit 1
"$KD_TEST_DIR/cli/draw_weights" "$work/w" || exit 1
images=$pictures/train
weights=$top/tests/golden/models/tiny_dinov2.pth
cache=$work/x.kdc
pre() { timeout 120 "$KD_BIN/kd-precompute" --views 1 --image-size 70 --device cpu --threads 1 "$@"; }
# Batches of one: every image is trained on or validated with, whichever a test has changed.
train() { timeout 120 "$KD_BIN/kd-train" --student dinov2_w64_d1 --batch-size 1 --epochs 1 --device cpu --threads 1 "$@"; }
evaluate() { timeout 120 "$KD_BIN/kd-eval" "$@" --image-size 70 --device cpu --threads 1; }

# refused NAME STATUS WORDS COMMAND...: that exit status, and as the last line on stderr the only error, with WORDS in it.
refused() {
    local name=$1 status=$2 words=$3 got
    shift 3
    "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    [ $got -eq "$status" ] || echo "ended with $got" >>"$work/err"
    check "$name: exit $status and why" explained $got "$status" "$words"
}
explained() { # got, wanted, words
    [ "$1" -eq "$2" ] && [ "$(grep -c ': error: ' "$work/err")" = 1 ] && tail -n 1 "$work/err" | grep ': error: ' | grep -qF -- "$3"
}

pre --images "$images" --weights "$weights" --cache "$cache" 2>"$work/err" || { cat "$work/err"; exit 1; }
train --images "$images" --cache "$cache" --out "$work/run" 2>"$work/err" || { cat "$work/err"; exit 1; }
student=$work/run/exported/dinov2_w64_d1.safetensors
cp "$cache" "$work/first.kdc"
mkdir -p "$work/empty" "$work/texts" "$work/broken"
echo text >"$work/texts/readme.txt"
echo text >"$work/file"
: >"$work/broken/a.jpg"
head -c 2000 "$images/disc/000.jpg" >"$work/broken/b.jpg"

# ---- weights ----
make_cache() { pre --images "$images" --cache "$work/n.kdc" --weights "$@"; }
sed 's/\[1,26,64\]/[1,64,26]/' "$student" >"$work/shape.safetensors"
sed 's/blocks\.0\.ls1\.gamma/blocks.0.ls1.gammb/' "$student" >"$work/name.safetensors"
refused 'no such weight file' 1 "$work/nope.pth: can't be opened" make_cache "$work/nope.pth"
refused 'weights are an empty folder' 2 'a folder without model.safetensors' make_cache "$work/empty"
refused 'weights are a picture' 2 'neither a PyTorch .pth nor .safetensors' make_cache "$images/disc/000.jpg"
refused 'weights are a cache' 2 'neither a PyTorch .pth nor .safetensors' make_cache "$cache"
refused 'weights of something else' 2 'reference.safetensors' make_cache "$top/tests/golden/weights/reference.safetensors"
mkdir "$work/half" && cp "$top"/tests/golden/weights/sharded/*.json "$top"/tests/golden/weights/sharded/*-00001-* "$work/half"
head -c 700 "$top/tests/golden/weights/legacy_views.pth" >"$work/cut.pth"
refused 'half a set of shards' 2 'shard model-00002-of-00003.safetensors is missing (1 of 3 are there)' make_cache "$work/half"
refused 'weights are a TorchScript program' 2 'TorchScript program' make_cache "$top/tests/golden/weights/script.pt"
refused 'weights are a pickled module that is no ViT' 2 "none of its 2 tensors is a patch embedding (the first is 'weight')" make_cache "$top/tests/golden/weights/whole_module.pth"
refused 'a checkpoint without tensors' 2 'hold no tensors' make_cache "$top/tests/golden/weights/no_tensors.pth"
refused 'half a download' 1 'the file is damaged' make_cache "$work/cut.pth"
refused 'a tensor with another shape' 2 "'pos_embed' has shape [1, 64, 26]" make_cache "$work/shape.safetensors"
refused 'a tensor is missing' 2 "'blocks.0.ls1.gamma'" make_cache "$work/name.safetensors"
refused 'a ResNet' 2 ResNet make_cache "$work/w/resnet.safetensors"
refused 'a text model' 2 text make_cache "$work/w/text.safetensors"
refused 'half a set of shards' 2 model-00002-of-00002.safetensors make_cache "$work/w/half"
refused 'a checkpoint with two ViTs' 2 --weights-key make_cache "$work/w/two.safetensors"
refused 'TorchScript' 2 TorchScript make_cache "$top/tests/golden/weights/script.pt"
refused 'not the teacher that was asked for' 2 'not dinov2_vits14' make_cache "$weights" --teacher dinov2_vits14
refused 'no such start for a student' 1 'nope.pth' train --images "$images" --cache "$cache" --out "$work/r1" --init "$work/nope.pth"
refused 'a start of another depth' 2 'depth 2' train --images "$images" --cache "$cache" --out "$work/r1" --init "$weights"
refused 'a start with another shape' 2 "'pos_embed'" train --images "$images" --cache "$cache" --out "$work/r1" --init "$work/shape.safetensors"
check 'no cache was begun' test ! -e "$work/n.kdc" -a ! -e "$work/n.kdc.partial"

# ---- a cache of something else ----
refused 'another teacher' 13 'teacher.' pre --images "$images" --weights "$student" --cache "$cache"
refused 'another augmentation' 13 'augment.' pre --images "$images" --weights "$weights" --cache "$cache" --augment crop-flip
refused 'other features' 13 'features' pre --images "$images" --weights "$weights" --cache "$cache" --features cls
refused 'another size than the views have' 13 'image_size is 70' train --images "$images" --cache "$cache" --out "$work/r1" --image-size 84
refused 'a larger size than the views have' 2 '--student-size 140' train --images "$images" --cache "$cache" --out "$work/r1" --student-size 140
refused 'more views than the sealed cache has' 13 'sealed with 1 view per image' pre --images "$images" --weights "$weights" --cache "$cache" --views 2
refused 'other images than those of the sealed cache' 13 'none of the 12 files' pre --images "$pictures/test" --weights "$weights" --cache "$cache"
check 'the cache is as it was' cmp "$cache" "$work/first.kdc"

# ---- where to write ----
refused 'a cache in a folder that is not there' 1 "there is no folder $work/nowhere" pre --images "$images" --weights "$weights" --cache "$work/nowhere/n.kdc"
refused 'a cache below a file' 1 'there is no folder' pre --images "$images" --weights "$weights" --cache "$work/file/n.kdc"
refused 'a run that is a file' 1 "the folder can't be created" train --images "$images" --cache "$cache" --out "$work/file"
refused 'features in a folder that is not there, said first' 1 'there is no folder' evaluate features --weights "$work/nope" --images "$images" --out "$work/nowhere/f.safetensors"
refused 'an export in a folder that is not there' 1 'there is no folder' "$KD_BIN/kd-export" --run "$work/run" --out "$work/nowhere/e.safetensors"
if [ "$(id -u)" -ne 0 ]; then
    mkdir "$work/readonly"
    chmod 555 "$work/readonly"
    refused 'a folder without permission' 1 'ermission' pre --images "$images" --weights "$weights" --cache "$work/readonly/n.kdc"
    refused 'features in a folder without permission' 1 'ermission' evaluate features --weights "$student" --images "$images" --out "$work/readonly/f.safetensors"
else
    skip permissions 'a user other than root'
fi

# ---- a second writer ----
"$KD_BIN/kd-precompute" --views 800 --image-size 70 --device cpu --threads 1 --images "$images" --weights "$weights" --cache "$work/busy.kdc" 2>/dev/null &
writer=$!
while kill -0 $writer 2>/dev/null && [ ! -e "$work/busy.kdc.partial" ]; do sleep 0.01; done
kill -STOP $writer
refused 'a second writer' 11 "pid $writer on" pre --images "$images" --weights "$weights" --cache "$work/busy.kdc"
refused 'a second writer with another recipe' 11 "pid $writer on" pre --images "$images" --weights "$weights" --cache "$work/busy.kdc" --seed 1
refused 'training on a cache that is still being written' 10 'busy.kdc' train --images "$images" --cache "$work/busy.kdc" --out "$work/r1"
kill -KILL $writer
wait $writer 2>/dev/null

# ---- images ----
use() { pre --weights "$weights" --cache "$work/n.kdc" --images "$1"; }
refused 'an empty folder' 2 'holds no images' use "$work/empty"
refused 'a folder without images' 2 '1 other files' use "$work/texts"
refused 'nothing but broken images' 1 'none of the 2 files' use "$work/broken"
check 'each is listed' test "$(grep -c 'skipped: ' "$work/err")" -eq 2
refused 'a picture in place of a list' 2 "isn't a list of paths" use "$images/disc/000.jpg"
refused 'training: an empty folder' 2 'holds no images' train --cache "$cache" --images "$work/empty" --out "$work/r2"
refused 'training: another folder' 13 "none of the cache's 12 images" train --cache "$cache" --images "$pictures/test" --out "$work/r2"
cp -r "$images" "$work/changed"
printf XXXX | dd of="$work/changed/disc/000.jpg" bs=1 seek=3000 conv=notrunc 2>/dev/null
refused 'training: a changed image' 13 'disc/000.jpg: image' train --cache "$cache" --images "$work/changed" --out "$work/r3"
refused 'training: a changed image, the index of files is there' 13 'disc/000.jpg: image' train --cache "$cache" --images "$work/changed" --out "$work/r3"
"$KD_BIN/kd-cache" check "$cache" --images "$work/changed" >"$work/out" 2>"$work/err"
check 'kd-cache check: an image is missing, exit 3' test $? -eq 3
cp -r "$images" "$work/moved"
mv "$work/moved/disc" "$work/moved/elsewhere"
cp "$pictures/test/ring/000.jpg" "$work/moved/extra.jpg"
train --cache "$cache" --images "$work/moved" --out "$work/r4" 2>"$work/err"
check 'training: moved and extra images are accepted' test $? -eq 0
check 'the extra one is counted' grep -q '1 .*ignored' "$work/err"
cmp -s "$work/r4/exported/dinov2_w64_d1.safetensors" "$student"
check 'and the student is the same' test $? -eq 0
mkdir "$work/flat"
cp "$images/disc/000.jpg" "$work/broken/b.jpg" "$work/flat"
refused 'features: a broken image' 3 '1 files could not be read' evaluate features --weights "$student" --images "$work/flat" --out "$work/f.safetensors"
refused 'features: nothing but broken images' 1 'none of the' evaluate features --weights "$student" --images "$work/broken" --out "$work/g.safetensors"
refused 'k-NN: no class folders' 2 'no class folder' evaluate knn --weights "$student" --train "$work/flat" --test "$work/flat"
refused 'k-NN: more neighbours than images' 2 '--k 20' evaluate knn --weights "$student" --train "$images" --test "$pictures/test"

# ---- damaged caches: info may not see it, check and training must ----
damaged() { # NAME FILE WORDS
    refused "$1: kd-cache check" 12 "$3" "$KD_BIN/kd-cache" check "$2" --read-data
    refused "$1: training" 12 "$4" train --cache "$2" --images "$images" --out "$work/r5"
}
copy() { # NAME: a writable copy of the cache with its manifest
    cp "$cache" "$work/$1.kdc"
    cp "$cache.json" "$work/$1.kdc.json"
    chmod u+w "$work/$1.kdc" "$work/$1.kdc.json"
}
copy payload
frame=$(grep -obUaP '\x28\xb5\x2f\xfd' "$cache" | sed -n '6s/:.*//p')
printf XXXXXXXX | dd of="$work/payload.kdc" bs=1 seek=$((frame + 20)) conv=notrunc 2>/dev/null
damaged 'bytes of a record' "$work/payload.kdc" 'problems' 'checksum'
copy meta
printf XXXXXXXX | dd of="$work/meta.kdc" bs=1 seek=16 conv=notrunc 2>/dev/null
damaged 'the first page' "$work/meta.kdc" 'not an LMDB' 'not an LMDB'
copy cut
truncate -s 50000 "$work/cut.kdc"
damaged 'cut off' "$work/cut.kdc" 'cut.kdc' 'cut.kdc'
copy zero
: >"$work/zero.kdc"
damaged 'empty' "$work/zero.kdc" 'zero.kdc' 'zero.kdc'
copy alone
rm "$work/alone.kdc.json"
damaged 'without its manifest' "$work/alone.kdc" 'alone.kdc.json is missing' 'alone.kdc.json is missing'
cp "$images/disc/000.jpg" "$work/picture.kdc"
refused 'not a cache at all, given to write' 12 'picture.kdc' pre --images "$images" --weights "$weights" --cache "$work/picture.kdc"
check 'and left alone' cmp "$images/disc/000.jpg" "$work/picture.kdc"

# ---- no cache, image, view, run ----
id=$("$KD_BIN/kd-cache" list "$cache" --json | sed -n '1s/.*"id":"\([0-9a-f]*\)".*/\1/p')
show() { "$KD_BIN/kd-cache" view "$cache" --images "$images" --out "$work/v.png" "$@"; }
refused 'no such cache' 10 'no such cache' "$KD_BIN/kd-cache" info "$work/nope.kdc"
refused 'a folder without caches' 10 'holds no sealed cache' "$KD_BIN/kd-cache" info "$work/empty"
refused 'training: no such cache' 10 'kd-precompute' train --cache "$work/nope.kdc" --images "$images" --out "$work/r6"
refused 'no such image' 10 'has no image' show --id 00112233445566778899aabbccddeeff --view 0
refused 'no such view' 10 'has views 0 to 0' show --id "$id" --view 1
refused 'an id that is none' 2 '32 hexadecimal digits' show --id xyz --view 0
refused 'export: not a run' 2 'no such checkpoint; --run is' "$KD_BIN/kd-export" --run "$work/empty" --out "$work/e.safetensors"
refused 'export: no such student' 2 'resnet18' "$KD_BIN/kd-export" --run "$work/run" --student resnet18 --out "$work/e.safetensors"
refused 'export: not a checkpoint' 1 'no checkpoint metadata' "$KD_BIN/kd-export" --run "$work/run" --checkpoint "$student" --out "$work/e.safetensors"
finish
