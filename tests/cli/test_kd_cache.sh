#!/bin/bash
# kd-cache as a user meets it: outputs that others rely on, exit codes, sentences.
. "$(dirname "$0")/../lib.sh"
kd=$KD_BIN/kd-cache
c=$work/photos.kdc
"$KD_TEST_DIR/cli/draw_cache" "$work" >"$work/ids" 2>"$work/err" || exit 1
id=$(awk '/plain/ { print $1 }' "$work/ids")

# says CODE TEXT COMMAND...: ends with that exit code and says the text on stderr or stdout
says() {
    local code=$1 text=$2 got
    shift 2
    "$@" >"$work/out" 2>"$work/err"
    got=$?
    [ $got = "$code" ] || { echo "exit $got instead of $code" >>"$work/err"; return 1; }
    [ -z "$text" ] || grep -qF -- "$text" "$work/out" "$work/err" || { echo "nothing says: $text" >>"$work/err"; return 1; }
}
# holds NAME TYPE SHAPE: a tensor of x.safetensors
holds() { grep -aqF "\"$1\":{\"dtype\":\"$2\",\"shape\":[$3]" "$work/x.safetensors" || { echo "no $1 $2 [$3]" >>"$work/err"; return 1; }; }
count() { [ "$(grep -cF -- "$2" "$work/out")" = "$1" ] || { echo "not $1 times in the output: $2" >>"$work/err"; return 1; }; }

check "help goes to stdout with status 0" says 0 "usage: kd-cache COMMAND" "$kd" --help
check "each command has help" eval 'for x in info list check dump view estimate digest export; do says 0 "usage: kd-cache $x" "$kd" $x --help || exit 1; done'
check "no command is a usage error" says 2 "no command given" "$kd"
check "an unknown command suggests the nearest" says 2 "did you mean check" "$kd" chekc
check "commands of later versions are not pretended" says 2 "unknown command serve" "$kd" serve
check "an unknown option suggests the nearest" says 2 "--threads" "$kd" check "$c" --thread 2
check "the page and the completion are printed" eval 'says 0 ".SH NAME" "$kd" --man && says 0 "complete -o filenames" "$kd" --completion && bash -n "$work/out"'

check "info names the set and the counts" eval 'says 0 "5 images, 10 views" "$kd" info "$c" && count 1 "views          lightly, 70 px, seed 7" && count 1 "note           drawn" && count 1 "license        (not said)"'
check "info tells the teacher" eval 'says 0 "teacher  dinov2: width 48, depth 6, heads 3, patch 14, registers 4" "$kd" info "$c" && count 1 "mean 0.485 0.456 0.406, std 0.229 0.224 0.225; positions official; layer norm eps 1e-06" && count 1 "weights sha256 0011223344"'
check "info lists features and layers" eval 'says 0 "stored   f16" "$kd" info "$c" && count 1 "layers         1, 4 (1 = last), each through the final norm" && count 1 "  patch [25 x 48] full " && count 1 "  mean [1 x 48] " && count 1 "  registers [4 x 48] "'
check "info says what it can train, and how" eval 'says 0 "  patch full         std-mse, mse, kl-queue+intra, mse-normalized, cosine, cos-sl1, radio, unic, smooth-l1, gram:" "$kd" info "$c" && says 0 "every student" "$kd" info "$c" && count 1 "\$ kd-train --cache $c --images IMAGES --student resnet18 --out RUN" && count 1 "\$ kd-cache check $c"'
check "info fits on a screen" eval 'says 0 "" "$kd" info "$c" && [ "$(wc -l <"$work/out")" -le 40 ] && [ "$(grep -v "\\$ kd-" "$work/out" | wc -L)" -le 120 ]'
check "info --all has statistics of each feature and layer, the recipe and each shard" eval 'says 0 "statistics, by layer" "$kd" info "$c" --all && [ "$(grep -c "\"1\":{\"mean_square_norm\":.*\"4\":{" "$work/out")" = 4 ] && count 1 "  decoder  " && count 1 "shard    $c"'
check "info --json is one line of JSON" eval 'says 0 "\"images\":5" "$kd" info "$c" --json && [ "$(wc -l <"$work/out")" = 1 ] && count 1 "\"type\":\"result\"" && count 1 "\"uses\":[{"'
check "list has a line for each view" eval 'says 0 "$id    0 " "$kd" list "$c" && [ "$(wc -l <"$work/out")" = 10 ]'
check "list --json has id, path, view, hash and plan" eval 'says 0 "\"path\":\"a/with space.jpg\"" "$kd" list "$c" --json && [ "$(wc -l <"$work/out")" = 10 ] && count 10 "\"plan\":{" && count 10 "\"hash\":\"" && count 2 "\"id\":\"$id\""'
check "names that are not UTF-8 are escaped" eval 'says 0 "latin\\xe9.jpg" "$kd" list "$c" && says 0 "new\\nline.jpg" "$kd" list "$c"'

check "check finds nothing in a sound cache" says 0 "80 records" "$kd" check "$c" --read-data
check "check --images replays every view" says 0 "10 views replayed: 0 differ, 0 more lack" "$kd" check "$c" --images "$work/images" --threads 2
check "check --json ends with a summary" says 0 '{"type":"summary","images":5,"views":10,"records":80' "$kd" check "$c" --read-data --json
mkdir "$work/moved" && cp -r "$work/images/a" "$work/images/b" "$work/moved/" && mv "$work/moved/a/plain.jpg" "$work/moved/elsewhere.jpg"
check "images are found under other names; missing ones are exit 3" says 3 "8 views replayed: 0 differ, 2 more lack" "$kd" check "$c" --images "$work/moved"
check "those that moved and those that are missing are counted and named" eval 'says 3 "of the 5 images 3 at their recorded paths, 1 moved or renamed, 1 missing (first: c.jpg)" "$kd" check "$c" --images "$work/moved" && count 1 "c.jpg: missing: nothing under"'
cp -r "$work/images" "$work/swapped" && cp "$work/images/c.jpg" "$work/swapped/a/plain.jpg"
check "another file under a recorded path is not taken for it" says 3 "8 views replayed" "$kd" check "$c" --images "$work/swapped"
check "it is said to have changed" eval 'says 3 "4 at their recorded paths, 1 changed (first: a/plain.jpg)" "$kd" check "$c" --images "$work/swapped" && count 1 "a/plain.jpg: changed after the cache was made"'
check "so does --json" says 3 '"in_place":4,"moved":0,"changed":1,"missing":0' "$kd" check "$c" --images "$work/swapped" --json
tar -C "$work/images" -cf "$work/all.tar" .
check "a tar of the images serves as well" says 0 "of the 5 images 5 moved or renamed" "$kd" check "$c" --images "$work/all.tar"
(cd "$work/images" && find . -type f -print0) >"$work/images/list0"
check "so does a list whose paths end in NUL" eval 'says 0 "10 views replayed: 0 differ" "$kd" check "$c" --images "$work/images/list0" --null'

digest=$("$kd" digest "$c")
check "digest is that of the manifest" eval '[ ${#digest} = 64 ] && grep -qF "\"$digest\"" "$c.json" && says 0 "$digest  $c" "$kd" digest "$c" --shards && says 0 "\"digest\":\"$digest\",\"images\":5,\"views\":10" "$kd" digest "$c" --json'
check "digest --json has each shard" eval 'says 0 "\"shards\":[{" "$kd" digest "$c" --json --shards && count 1 "\"path\":\"$c\""'

check "export writes one safetensors file" eval 'says 0 "10 views in 1 file" "$kd" export "$c" --safetensors "$work/x.safetensors" && holds cls F16 "10,2,48" && holds patch F16 "10,2,25,48" && holds registers F16 "10,2,4,48" && holds view I32 10 && holds id U8 "10,16"'
check "export chooses features, views and layers" eval 'says 0 "5 views in 1 file" "$kd" export "$c" --safetensors "$work/x.safetensors" --features cls --views 1 --layers 4 && holds cls F16 "5,1,48" && ! grep -aq "\"patch\"" "$work/x.safetensors"'
mkdir "$work/tars"
check "export writes tars whose members belong together up to the first dot" eval 'says 0 "10 views in 1 file" "$kd" export "$c" --webdataset "$work/tars" && [ "$(tar -tf "$work/tars/views-000000.tar" | grep -c "^$id-0000[01]\.\(cls.npy\|json\|mean.npy\|patch.npy\|registers.npy\)$")" = 10 ] && tar -tf "$work/tars/views-000000.tar" | LC_ALL=C sort -c'
check "export rotates tars" eval 'says 0 "10 views in 10 files" "$kd" export "$c" --webdataset "$work/tars/r-%03d.tar" --shard-size 1 && [ "$(ls "$work"/tars/r-00[0-9].tar | wc -l)" = 10 ]'
check "the JSON of a view has its path and plan" eval 'tar -xOf "$work/tars/views-000000.tar" "$id-00001.json" >"$work/out" && count 1 "\"path\":\"a/plain.jpg\"" && count 1 "\"plan\":{"'
check "export wants one kind of file" eval 'says 2 "one of them" "$kd" export "$c" && says 2 "one of them" "$kd" export "$c" --webdataset "$work/a%d.tar" --safetensors "$work/y"'
check "and a place for the number of the tar" eval 'says 2 "number of the tar" "$kd" export "$c" --webdataset "$work/tars/x.tar" && says 2 "number of the tar" "$kd" export "$c" --webdataset "$work/tars/%s.tar" && [ ! -e "$work/tars/x.tar" ]'
check "a layer or view that is not stored is exit 10" eval 'says 10 "no layer 2" "$kd" export "$c" --safetensors "$work/y" --layers 2 && says 10 "no image has such a view" "$kd" export "$c" --safetensors "$work/y" --views 7 && [ ! -e "$work/y" ]'

estimate() { "$kd" estimate --images 1281167 --teacher dinov2_vitb14 "$@"; }
check "estimate has a line for each way and marks one" eval 'says 0 "-> i8 full " estimate && count 1 "   f16 full " && count 1 "   i8 pool:8 " && count 1 "-> i8 full x 8 views" && count 1 "kd-precompute --dry-run"'
check "a budget moves the mark" eval 'says 0 "-> i8 pool:8 " estimate --budget 1TB && count 1 "i8 full x 8 would need"'
check "so do the students" eval 'says 0 "--store i8 --patch-target adjoint:7" estimate --for resnet18 && count 2 "-> i8 adjoint:7 "'
check "estimate --json is one line with every choice" eval 'says 0 "\"recommended\":true" estimate --budget 200GB --json && [ "$(wc -l <"$work/out")" = 1 ] && count 1 "\"type\":\"result\"" && count 1 "\"views_that_fit\""'
check "too small a budget is exit 14 and shows the choices" eval 'says 14 "even one view per image" estimate --budget 1GB && count 1 "i8, no patches" && ! grep -q -- "->" "$work/out"'
check "estimate refuses what is not there" eval 'says 2 "the nearest name is dinov2_vitb14" "$kd" estimate --images 10 --teacher dinov2_vitb1 && says 2 "the nearest is resnet18" estimate --for resnet81 && says 2 "multiples of its patch, 14" estimate --image-size 225 && says 2 "no register tokens" estimate --features registers && says 2 "--images is missing" "$kd" estimate --teacher dinov2_vitb14'

check "dump writes a safetensors file" eval 'says 0 "" "$kd" dump "$c" --id $id --view 1 --out "$work/x.safetensors" && holds cls F32 "2,48" && holds patch F32 "2,25,48" && holds registers F32 "2,4,48" && holds mean F32 "2,48" && holds layers I32 2'
check "dump of an unknown image is exit 10" says 10 "has no image" "$kd" dump "$c" --id 00000000000000000000000000000000 --view 0 --out "$work/y"
check "dump of an unknown view is exit 10" says 10 "views 0 to 1, not 2" "$kd" dump "$c" --id $id --view 2 --out "$work/y"
check "dump of a bad id is exit 2" says 2 "32 hexadecimal digits" "$kd" dump "$c" --id xyz --view 0 --out "$work/y"
check "view writes a PNG" eval 'says 0 "" "$kd" view "$c" --images "$work/images" --id $id --view 1 --out "$work/x.png" && head -c 4 "$work/x.png" | grep -q PNG'
check "view finds a renamed image by content" eval 'says 0 "" "$kd" view "$c" --images "$work/moved" --id $id --view 1 --out "$work/y.png" && cmp "$work/x.png" "$work/y.png"'
check "view writes a sheet of images x views" eval 'says 0 "" "$kd" view "$c" --images "$work/images" --grid 5x2 --out "$work/s.png" && [ "$(od -An -tx1 -j16 -N8 "$work/s.png" | tr -d " ")" = 0000009800000176 ]'
check "view --all writes every pixel" eval 'says 0 "" "$kd" view "$c" --images "$work/images" --all --out "$work/a.rgb" && [ "$(stat -c %s "$work/a.rgb")" = $((10 * 70 * 70 * 3)) ]'
check "more images or views than there are is a usage error" eval 'says 2 "at most 5 rows" "$kd" view "$c" --images "$work/images" --grid 6x2 --out "$work/n" && says 2 "at most 2 columns" "$kd" view "$c" --images "$work/images" --grid 5x3 --out "$work/n"'
for grid in 8 0x2 2x0 x 2x 2x2x2 -1x2 1x+2 "1x 2" 99999999999999999999x1; do
    check "--grid $grid is a usage error" says 2 "such as 8x8" "$kd" view "$c" --images "$work/images" --grid "$grid" --out "$work/n"
done
check "view without an id is a usage error" says 2 "--id is missing" "$kd" view "$c" --images "$work/images" --out "$work/n"
check "so is what doesn't go together" eval 'says 2 "give one of them" "$kd" view "$c" --images "$work/images" --all --grid 1x1 --out "$work/n" && says 2 "one view only" "$kd" view "$c" --images "$work/images" --all --id $id --out "$work/n" && says 2 "one view only" "$kd" view "$c" --images "$work/images" --grid 1x1 --view 1 --out "$work/n" && [ ! -e "$work/n" ]'
check "view without its image is exit 1" says 1 "no file there has the id" "$kd" view "$c" --images "$work/moved" --id "$(awk '/ c.jpg/ { print $1 }' "$work/ids")" --view 0 --out "$work/z.png"

check "no cache is exit 10 with the command that makes one" says 10 "kd-precompute --images" "$kd" info "$work/none.kdc"
touch "$work/half.kdc.partial"
check "an unfinished cache is exit 10 and says so" says 10 "not finished yet" "$kd" info "$work/half.kdc"
cp "$c" "$work/bad.kdc"; cp "$c.json" "$work/bad.kdc.json"; chmod u+w "$work/bad.kdc"
# The last patch record ends before the pages of meta: change bytes in its middle.
at=$(grep -obUaP 'KDFR\x01\x00\x01' "$work/bad.kdc" | tail -1 | cut -d: -f1)
printf '\377\377' | dd of="$work/bad.kdc" bs=1 seek=$((at + 300)) conv=notrunc 2>/dev/null
check "a damaged record is exit 12 and named" eval 'says 12 "fails its XXH3-128 checksum" "$kd" check "$work/bad.kdc" --read-data && count 1 "SHA-256 is"'
check "--json reports problems as lines" eval 'says 12 "\"problem\":" "$kd" check "$work/bad.kdc" --read-data --json && count 1 "\"type\":\"error\"" && count 1 "\"type\":\"summary\""'
truncate -s -4096 "$work/bad.kdc"
check "a cut cache is exit 12" says 12 "the file ends here" "$kd" info "$work/bad.kdc"
rm "$work/bad.kdc.json"
check "a missing manifest is exit 12 and says what to do" says 12 "run the same kd-precompute command again" "$kd" list "$work/bad.kdc"

"$KD_TEST_DIR/cli/draw_cache" "$work/joined" joined >/dev/null 2>&1
j=$work/joined/photos.kdc
check "joined layers are one of twice the width" eval 'says 0 "  patch [25 x 96] full" "$kd" info "$j" && count 1 "layers         1, 4 (1 = last), each through the final norm, joined as layer 1, earlier block first"'
check "and dumped as one" eval 'says 0 "" "$kd" dump "$j" --id $id --out "$work/x.safetensors" && holds cls F32 "1,96" && holds registers F32 "1,4,96" && holds layers I32 1'
check "and checked as one" says 0 "40 records" "$kd" check "$j" --read-data

"$KD_TEST_DIR/cli/draw_cache" "$work/differs" wrong >/dev/null 2>&1
check "pixels that the teacher didn't see are exit 13" says 13 "10 views replayed: 1 differ" "$kd" check "$work/differs/photos.kdc" --images "$work/images"
check "the sentence names image, view, both hashes and the likely cause" eval 'grep -q "a/plain.jpg: image $id, view 0: its hash is [0-9a-f]\{32\} here, but the teacher saw [0-9a-f]\{32\}, although the file and the decoder are the same: this version augments differently" "$work/out"'
check "view refuses to write them" eval 'says 13 "but the teacher saw" "$kd" view "$work/differs/photos.kdc" --images "$work/images" --id $id --view 0 --out "$work/no.png" && [ ! -e "$work/no.png" ]'
for what in --all "--grid 5x2"; do
    check "nor in view $what, which leaves nothing behind" eval 'says 13 "but the teacher saw" "$kd" view "$work/differs/photos.kdc" --images "$work/images" '"$what"' --out "$work/no" && ! ls "$work"/no* 2>/dev/null'
done
train() { "$KD_BIN/kd-train" --images "$work/images" --student dinov2_w64_d1 --device cpu --batch-size 2 "$@"; }
check "and kd-train stops at them, exit 13, with both hashes and the likely cause" eval 'says 13 "a/plain.jpg: image $id, view 0: the view" train --cache "$work/differs/photos.kdc" --epochs 2 --out "$work/run" && grep -Eq "hash is [0-9a-f]{32} and the teacher saw [0-9a-f]{32}, although the file is the same.*this version augments differently" "$work/out" "$work/err"'
"$KD_TEST_DIR/cli/draw_cache" "$work/decoder" decoder >/dev/null 2>&1
d=$work/decoder/photos.kdc
check "a cache of another decoder is exit 13, even if all replayed views are the same" eval 'says 13 "10 views replayed: 0 differ" "$kd" check "$d" --images "$work/images" && count 1 "whose reference pictures hash to 0123456789abcdef0123456789abcdef" && says 0 "0 problems" "$kd" check "$d"'
check "and --json says so" says 13 '"decoder_differs":true' "$kd" check "$d" --images "$work/images" --json
check "and kd-train refuses it before the first step" eval 'says 13 "decoder: the cache was made with" train --cache "$d" --out "$work/run2" && ! ls "$work"/run2/checkpoints/* 2>/dev/null'
mkdir "$work/two" "$work/other" && "$KD_TEST_DIR/cli/draw_cache" "$work/other" >/dev/null 2>&1
cp "$c" "$work/two/a.kdc"; cp "$c.json" "$work/two/a.kdc.json"; cp "$work/other/photos.kdc" "$work/two/b.kdc"; cp "$work/other/photos.kdc.json" "$work/two/b.kdc.json"
check "what is in two shards is read once" eval 'says 0 "10 views are in several of the 2 shards" "$kd" info "$work/two"'
check "equal work gives equal files" cmp "$c" "$work/other/photos.kdc"

reader=$top/cache/python/kdcache.py
check "the Python reader has at most 200 lines" test "$(wc -l <"$reader")" -le 200
if python3 -c '' 2>/dev/null; then
    check "the Python reader is valid Python" eval 'python3 -c "import ast, sys; ast.parse(open(sys.argv[1]).read())" "$reader" 2>"$work/err"'
else
    skip "the Python reader is valid Python" python3
fi
if python3 -c 'import lmdb, zstandard, numpy' 2>/dev/null; then
    check "the Python reader gives what the C reader gives" eval 'python3 "$top/tests/reference/check_reader.py" --kd-cache "$kd" --draw "$KD_TEST_DIR/cli/draw_cache" >"$work/err" 2>&1'
else
    skip "the Python reader gives what the C reader gives" "python3 with lmdb, zstandard and numpy"
fi
finish
