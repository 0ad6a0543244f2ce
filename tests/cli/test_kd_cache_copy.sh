#!/bin/bash
# kd-cache merge, split, compact, extract, repair as a user meets them: files, exit codes, sentences. What they do with records is tested in tests/unit.
. "$(dirname "$0")/../lib.sh"
kd=$KD_BIN/kd-cache
c=$work/photos.kdc
"$KD_TEST_DIR/cli/draw_cache" "$work" >"$work/ids" 2>"$work/err" || exit 1
"$KD_TEST_DIR/cli/draw_cache" "$work/decoder" decoder >/dev/null 2>&1
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
count() { [ "$(grep -cF -- "$2" "$work/out")" = "$1" ] || { echo "not $1 times in the output: $2" >>"$work/err"; return 1; }; }
digest() { grep -o '"digest": *"[0-9a-f]*"' "$1.json" | head -n 1; }
gone() { ! ls "$1"* >/dev/null 2>&1; }

helps() { local x; for x in "$@"; do says 0 "usage: kd-cache $x" "$kd" "$x" --help && says 0 "Exit codes: 0" "$kd" "$x" --help || return 1; done; }
check "each command has help with exit codes" helps merge split compact extract repair

# ---- split, merge, compact ----
check "split writes as many shards as asked for" eval 'says 0 "5 images, 10 views" "$kd" split "$c" --shards 3 --out "$work/three" && [ "$(ls "$work/three"/shard-0000[012].kdc | wc -l)" = 3 ] && says 0 "0 problems" "$kd" check "$work/three" --read-data'
check "and merge gives the file back" eval 'says 0 "in 1 file" "$kd" merge "$work/three" --out "$work/again.kdc" && cmp "$c" "$work/again.kdc"'
check "also of single files, some of them twice" eval 'says 0 "5 images, 10 views" "$kd" merge "$work/three/shard-00002.kdc" "$c" "$work/three/shard-00000.kdc" --out "$work/twice.kdc" && cmp "$c" "$work/twice.kdc"'
check "split by size ends shards between images" eval 'says 0 "in 5 files" "$kd" split "$c" --shard-size 1000 --out "$work/sized/" && says 0 "5 shards" "$kd" info "$work/sized"'
check "compact makes them one folder of few" eval 'says 0 "in 1 file" "$kd" compact "$work/sized" --out "$work/few" && cmp "$c" "$work/few/shard-00000.kdc"'
check "compact to a file at another zstd level keeps the digest" eval 'says 0 "" "$kd" compact "$work/sized" --zstd-level 12 --out "$work/z.kdc" && [ "$(digest "$c")" = "$(digest "$work/z.kdc")" ] && says 0 "0 problems" "$kd" check "$work/z.kdc" --read-data'
check "--json ends with a summary" says 0 '"images":5,"views":10,"shards":2,"bytes":' "$kd" split "$c" --shards 2 --out "$work/two" --json
check "the same command again finds it done" says 0 "5 images, 10 views" "$kd" split "$c" --shards 2 --out "$work/two"
check "the manifest names parent and command, without folders" eval 'grep -q "\"command\": \"kd-cache split photos.kdc --shards 3 --out three\"" "$work/three/shard-00001.kdc.json" && grep -q "$(sha256sum "$c" | cut -c1-64)" "$work/three/shard-00001.kdc.json"'
check "notes of the parent stay" grep -q '"note": "drawn"' "$work/again.kdc.json"
check "split without a number, or with both, is a usage error" eval 'says 2 "one of them" "$kd" split "$c" --out "$work/n" && says 2 "one of them" "$kd" split "$c" --shards 2 --shard-size 1GB --out "$work/n" && gone "$work/n"'
check "so is more shards than images" eval 'says 2 "there are 5 images" "$kd" split "$c" --shards 6 --out "$work/n" && gone "$work/n"'
check "a file for split, a folder for merge are usage errors" eval 'says 2 "split writes a folder" "$kd" split "$c" --shards 2 --out "$work/n.kdc" && says 2 "merge writes one file" "$kd" merge "$c" --out "$work/n" && gone "$work/n"'
wants_out() { local x; for x in "$@"; do says 2 "--out" "$kd" "$x" "$c" || return 1; done; }
check "--out is required" wants_out merge split compact extract
check "other recipes don't belong together: exit 13 naming the field" eval 'says 13 "decoder is" "$kd" merge "$c" "$work/decoder/photos.kdc" --out "$work/n.kdc" && gone "$work/n.kdc"'
check "a cache that is there already is not written over" eval 'says 13 "decoder is" "$kd" merge "$c" --out "$work/decoder/photos.kdc" && says 2 "is read from there" "$kd" merge "$c" --out "$c"'
check "shards of others in the folder are not mixed with" says 2 "holds photos.kdc" "$kd" compact "$work/three" --out "$work/decoder"
check "no cache is exit 10" says 10 "no such cache" "$kd" merge "$work/none.kdc" --out "$work/n.kdc"
check "a missing folder of --out is an error" says 1 "" "$kd" merge "$c" --out "$work/no/such/n.kdc"

# ---- extract ----
check "extract leaves out features, views, layers and images" eval 'printf "a/plain.jpg\n%s\n" "$(awk "/ c.jpg/ { print \$1 }" "$work/ids")" >"$work/list" && says 0 "2 images, 2 views" "$kd" extract "$c" --features cls,mean --views 1 --layers 4 --images "$work/list" --out "$work/e.kdc" && says 0 "cls [1 x 48]" "$kd" info "$work/e.kdc" && count 1 "mean [1 x 48]" && count 0 "patch [" && says 0 "$id    1 " "$kd" list "$work/e.kdc" && says 0 "4 records" "$kd" check "$work/e.kdc" --read-data'
check "and says nothing of a source" eval '! grep -q "\"source\"" "$work/e.kdc.json"'
check "the views still replay" says 0 "2 views replayed: 0 differ" "$kd" check "$work/e.kdc" --images "$work/images"
check "paths that end in NUL serve as a list" eval 'printf "b/new\nline.jpg\0c.jpg\0" >"$work/list0" && says 0 "2 images" "$kd" extract "$c" --images "$work/list0" --null --out "$work/e0.kdc"'
check "extract reduces patches and stores i8, and names the source" eval 'says 0 "" "$kd" extract "$c" --patch-target adjoint:3,pool:2 --store i8 --out "$work/i.kdc" && says 0 "patch [9 x 48]" "$kd" info "$work/i.kdc" && grep -q "\"source\": {" "$work/i.kdc.json" && says 0 "0 problems" "$kd" check "$work/i.kdc" --read-data'
check "it is smaller" eval '[ $(stat -c %s "$work/i.kdc") -lt $(stat -c %s "$c") ]'
check "what was reduced stays reduced: exit 2 naming what there is" eval 'says 2 "the cache has adjoint:3,pool:2" "$kd" extract "$work/i.kdc" --patch-target full --out "$work/n.kdc" && gone "$work/n"'
check "a reduced target is taken over" says 0 "" "$kd" extract "$work/i.kdc" --patch-target pool:2 --out "$work/p.kdc"
check "features that aren't there are exit 2" says 2 'is not one of cls,patch,registers,mean' "$kd" extract "$c" --features cls2 --out "$work/n.kdc"
check "bad views are exit 2" says 2 "such as 0-3" "$kd" extract "$c" --views 3-1 --out "$work/n.kdc"
check "views that aren't there are exit 2" says 2 "none of the chosen images has one of the chosen views" "$kd" extract "$c" --views 5 --out "$work/n.kdc"
check "an unknown element type is exit 2" says 2 "--store" "$kd" extract "$c" --store f64 --out "$work/n.kdc"
check "an image that isn't there is exit 10 with its line" eval 'printf "c.jpg\nd.jpg\n" >"$work/bad" && says 10 "entry 2, \"d.jpg\"" "$kd" extract "$c" --images "$work/bad" --out "$work/n.kdc"'
check "a list that isn't there is exit 1" eval 'says 1 "" "$kd" extract "$c" --images "$work/nolist" --out "$work/n.kdc" && gone "$work/n"'
check "an extracted cache joins a run with as little" eval 'says 0 "" "$kd" extract "$c" --features cls --views 0 --out "$work/v0.kdc" && says 0 "" "$kd" extract "$c" --features cls --views 1 --out "$work/v1.kdc" && says 0 "5 images, 10 views" "$kd" merge "$work/v0.kdc" "$work/v1.kdc" --out "$work/v.kdc" && says 0 "" "$kd" extract "$c" --features cls --out "$work/cls.kdc" && cmp "$work/v.kdc" "$work/cls.kdc"'

# ---- repair ----
check "repair of a sound cache is exit 0 and writes nothing" eval 'says 0 "10 views of 5 images are sound, 0 views are lost" "$kd" repair "$c"'
cp "$c" "$work/bad.kdc"; cp "$c.json" "$work/bad.kdc.json"; chmod u+w "$work/bad.kdc"
at=$(grep -obUaP 'KDFR\x01\x00\x01' "$work/bad.kdc" | tail -1 | cut -d: -f1)
printf '\377\377' | dd of="$work/bad.kdc" bs=1 seek=$((at + 300)) conv=notrunc 2>/dev/null
dd if=/dev/zero of="$work/bad.kdc" bs=4096 count=2 conv=notrunc 2>/dev/null
check "a cache that nothing opens is counted: exit 12, and nothing is written" eval 'says 12 "9 views of 5 images are sound, 1 views are lost" "$kd" repair "$work/bad.kdc" && grep -q "repair .*/bad.kdc --drop-bad --out REPAIRED.kdc" "$work/err" && ! ls "$work"/REPAIRED* 2>/dev/null'
check "--drop-bad saves the rest" eval 'says 0 "written: " "$kd" repair "$work/bad.kdc" --drop-bad --out "$work/r.kdc" && says 0 "5 images, 9 views" "$kd" check "$work/r.kdc" --read-data && says 0 "9 views replayed: 0 differ" "$kd" check "$work/r.kdc" --images "$work/images"'
check "the list names what is missing" eval '[ "$(grep -vc "^#" "$work/r.kdc.missing.txt")" = 1 ] && grep -Eq "^[0-9a-f]{32} [01] (a|b|c|xxh128)" "$work/r.kdc.missing.txt"'
check "a damaged file is not changed" eval 'cmp -s <(tail -c +8193 "$work/bad.kdc" | sha256sum) <(cp "$c" "$work/x" && chmod u+w "$work/x" && printf "\377\377" | dd of="$work/x" bs=1 seek=$((at + 300)) conv=notrunc 2>/dev/null && tail -c +8193 "$work/x" | sha256sum)'
check "--json has problems and a summary" eval 'says 12 "\"views\":9,\"lost_views\":1" "$kd" repair "$work/bad.kdc" --json && count 1 "\"type\":\"summary\"" && count 2 "\"problem\":" && count 1 "\"type\":\"error\""'
check "an existing --out is not written over" says 2 "is there already" "$kd" repair "$work/bad.kdc" --drop-bad --out "$work/r.kdc"
check "--drop-bad and --out belong together" eval 'says 2 "belong together" "$kd" repair "$work/bad.kdc" --drop-bad && says 2 "belong together" "$kd" repair "$work/bad.kdc" --out "$work/n.kdc" && gone "$work/n"'
check "what is missing from a sound manifest's file is exit 10" says 10 "no such file" "$kd" repair "$work/none.kdc"
head -c 100000 /dev/zero >"$work/zero.kdc"
check "a file without a recipe is exit 12" says 12 "nothing can be believed without it" "$kd" repair "$work/zero.kdc" --drop-bad --out "$work/n.kdc"
check "and leaves nothing behind" gone "$work/n"
finish
