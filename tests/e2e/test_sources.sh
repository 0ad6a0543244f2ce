#!/bin/bash
# Where images come from, end to end: folders, lists, tars; what can't be used is listed; the same pictures are found again wherever they lie.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 3 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
pre() { "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --threads 2 --views 2 --image-size 112 "$@" 2>"$work/err" >"$work/out"; }
train() { "$KD_BIN/kd-train" --student dinov2_w64_d1 --epochs 1 --batch-size 4 --device cpu --threads 2 "$@" 2>"$work/err" >"$work/out"; }
# Everything but the paths: what a cache holds of each view.
views() { "$KD_BIN/kd-cache" list "$1" --json | sed 's/"path":"[^"]*",//'; }
paths() { "$KD_BIN/kd-cache" list "$1" --json | grep -o '"path":"[^"]*"' | sort -u; }
same() { cmp <(views "$1") <(views "$2"); }

images=$pictures/train
pre --images "$images" --cache "$work/folder.kdc"
check 'a folder' test $? -eq 0
count=$(find "$images" -type f | wc -l)

# ---- tars ----
shards=$work/shards
mkdir -p "$shards/more"
(cd "$images" && find . -name '*.jpg' | sort >"$work/names" && head -n 5 "$work/names" | tar -cf "$shards/photos-000000.tar" -T - && tail -n +6 "$work/names" | tar --format=pax -cf "$shards/more/photos-000001.tar" -T -)
tar -C "$images" -cf "$work/all.tar" --sort=name .
pre --images "$shards" --cache "$work/shards.kdc"
check 'a folder of tars' test $? -eq 0
check 'the plan counts the tars' grep -q 'images .*2 tars' "$work/err"
check 'it gives the same views' same "$work/folder.kdc" "$work/shards.kdc"
check 'members are addressed in their tar' eval 'paths "$work/shards.kdc" | grep -q "\"photos-000000.tar/./[a-z]*/000.jpg\"" && [ "$(paths "$work/shards.kdc" | grep -c "more/photos-000001.tar/./")" = $((count - 5)) ]'
pre --images "$work/all.tar" --cache "$work/tar.kdc"
check 'one tar, folders in it are ignored' eval 'same "$work/folder.kdc" "$work/tar.kdc" && grep -q "$count files ([0-9]* others ignored, 1 tar)" "$work/err"'

# ---- lists ----
(cd "$images" && find . -name '*.jpg' -printf '%P\0') >"$images/list0"
(cd "$images" && find . -name '*.jpg' -printf '%P\n') >"$images/list"
pre --images "$images/list" --cache "$work/list.kdc"
check 'a list of lines' same "$work/folder.kdc" "$work/list.kdc"
pre --images "$images/list0" --null --cache "$work/list0.kdc"
check 'a list of NUL-terminated paths' same "$work/folder.kdc" "$work/list0.kdc"
pre --images "$images/list0" --cache "$work/no.kdc"
check 'which needs --null' eval "test $? -eq 2 && grep -q -- --null '$work/err'"
find "$images" -name '*.jpg' -print0 | pre --images - --null --cache "$work/stdin.kdc"
check 'the same from standard input' same "$work/folder.kdc" "$work/stdin.kdc"
paths "$work/shards.kdc" | sed 's/"path":"\(.*\)"/\1/' >"$shards/members"
pre --images "$shards/members" --cache "$work/members.kdc"
check 'a list of members' eval 'same "$work/folder.kdc" "$work/members.kdc" && [ "$(paths "$work/members.kdc")" = "$(paths "$work/shards.kdc")" ]'

# ---- replay from another place than the cache was made from ----
for cache in folder shards; do
    for source in "$images" "$shards" "$work/all.tar"; do
        "$KD_BIN/kd-cache" check "$work/$cache.kdc" --images "$source" >"$work/out" 2>"$work/err"
        check "check of $cache.kdc with ${source##*/}" eval "test $? -eq 0 && grep -q '$((2 * count)) views replayed: 0 differ, 0 more' \"$work/out\""
    done
done
id=$("$KD_BIN/kd-cache" list "$work/shards.kdc" --json | sed -n '1s/.*"id":"\([0-9a-f]*\)".*/\1/p')
"$KD_BIN/kd-cache" view "$work/shards.kdc" --images "$shards" --id "$id" --out "$work/a.png" 2>"$work/err" && "$KD_BIN/kd-cache" view "$work/shards.kdc" --images "$images" --id "$id" --out "$work/b.png" 2>"$work/err"
check 'view of a member and of the file' cmp "$work/a.png" "$work/b.png"
train --cache "$work/shards.kdc" --images "$shards" --out "$work/r1"
check 'training from tars' test $? -eq 0
train --cache "$work/folder.kdc" --images "$work/all.tar" --out "$work/r2"
check 'training from a tar of what was a folder' eval "test $? -eq 0 && grep -q 'images $count moved or renamed' \"$work/err\""
check 'the index of files knows members' grep -qa "all.tar/./" "$work/r2/image-index"
weight() { "$KD_BIN/kd-eval" features --weights "$weights" --images "$1" --out "$2" --image-size 112 --device cpu 2>"$work/err"; }
weight "$images" "$work/f1.safetensors" && weight "$work/all.tar" "$work/f2.safetensors"
check 'features of a tar' eval 'cmp <(tail -c 1000 "$work/f1.safetensors") <(tail -c 1000 "$work/f2.safetensors")'

# ---- what can't be used is listed ----
bad=$work/bad
mkdir -p "$bad"
cp "$images"/disc/000.jpg "$bad/good.jpg"
: >"$bad/$(printf 'new\nline\351.jpg')"
head -c 2000 "$images"/disc/001.jpg >"$bad/cut.jpg"
mkfifo "$bad/fifo.jpg"
size=$(stat -c %s "$shards/photos-000000.tar")
head -c $((size / 2 + 300)) "$shards/photos-000000.tar" >"$bad/half.tar"
gzip -c "$work/all.tar" >"$bad/squeezed.tar"
timeout 60 "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --views 2 --image-size 112 --images "$bad" --cache "$work/bad.kdc" 2>"$work/err"
check 'bad inputs: exit 3' test $? -eq 3
list=$work/bad.kdc.skipped.tsv
check 'the list is named' grep -qF "listed in $list" "$work/err"
check 'one line each: file, picture, member, tar' eval '[ "$(wc -l <"$list")" = 4 ] && [ "$(cut -f1 "$list" | grep -c .)" = 4 ]'
check 'odd names are escaped' grep -qP '^new\\nline\\xe9\.jpg\t.*is empty' "$list"
check 'a truncated picture' grep -qP '^cut\.jpg\t.*truncated' "$list"
check 'a member that is cut off' grep -qP '^half\.tar/\./[a-z]*/[0-9]*\.jpg\t.*cut off' "$list"
check 'a compressed tar' grep -qP '^squeezed\.tar\t.*gunzip' "$list"
check 'members before the cut are used' eval 'paths "$work/bad.kdc" | grep -q half.tar/'
cp "$list" "$work/first"
pre --images "$bad" --cache "$work/bad.kdc"
check 'a sealed cache keeps its list' cmp "$list" "$work/first"
rm "$work/bad.kdc" "$work/bad.kdc.json" "$bad/half.tar" "$bad/squeezed.tar" "$bad/cut.jpg" "$bad"/new*
pre --images "$bad" --cache "$work/bad.kdc"
check 'a run without skips removes the list' eval "test $? -eq 0 && [ ! -e '$list' ]"

# ---- prepared sets ----
"$KD_BIN/kd-cache" prepare --images "$images" --short-side 96 --out "$work/small.tar" >"$work/out" 2>"$work/err"
check 'prepare reports sizes and speeds' eval "test $? -eq 0 && grep -q '^bytes .* of the originals' '$work/out' && grep -q '^decode .* x as fast' '$work/out'"
"$KD_BIN/kd-cache" prepare --images "$work/all.tar" --short-side 96 --out "$work/again.tar" --threads 1 --json >"$work/out" 2>"$work/err"
check 'the same from a tar, byte for byte' eval "test $? -eq 0 && cmp '$work/small.tar' '$work/again.tar' && grep -q '\"images\":$count,' '$work/out'"
check 'tar lists its members' test "$(tar -tf "$work/small.tar" | grep -c '^[a-z]*/[0-9]*\.jpg$')" = "$count"
pre --images "$work/small.tar" --cache "$work/small.kdc"
"$KD_BIN/kd-cache" check "$work/small.kdc" --images "$work/small.tar" >"$work/out" 2>"$work/err"
check 'a cache is made from it' eval "test $? -eq 0 && grep -q '$((2 * count)) views replayed: 0 differ, 0 more' '$work/out'"
train --cache "$work/small.kdc" --images "$images" --out "$work/r4"
check 'the originals are not its images' test $? -eq 13

# ---- moved, changed, missing ----
cp -r "$images" "$work/later"
mv "$work/later/disc/000.jpg" "$work/later/other.jpg"
cp "$pictures/test/ring/000.jpg" "$work/later/disc/001.jpg"
rm "$work/later/disc/002.jpg"
train --cache "$work/folder.kdc" --images "$work/later" --out "$work/r3"
check 'training: told apart, exit 13' eval "test $? -eq 13 && grep -qF '$((count - 3)) at their recorded paths, 1 moved or renamed, 1 changed (first: disc/001.jpg), 1 missing (first: disc/002.jpg)' \"$work/err\""
train --cache "$work/folder.kdc" --images "$work/later" --out "$work/r3" --allow-missing
check 'the rest can be trained on' test $? -eq 0
"$KD_BIN/kd-cache" check "$work/folder.kdc" --images "$work/later" --json >"$work/out" 2>"$work/err"
check 'check: told apart, exit 3' eval "test $? -eq 3 && grep -q '\"in_place\":$((count - 3)),\"moved\":1,\"changed\":1,\"missing\":1' \"$work/out\""
finish
