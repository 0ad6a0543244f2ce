#!/bin/bash
# A damaged cache is repaired and filled with the teacher until it is what it was; and what is extracted from a cache is what the teacher would have written.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 3 1 || exit 1
kd=$KD_BIN/kd-cache
pre() { "$KD_BIN/kd-precompute" --weights "$top/tests/golden/models/tiny_dinov2.pth" --device cpu --threads 2 --images "$pictures/train" "$@" 2>"$work/err"; }
content() { "$kd" info "$1" --json 2>"$work/err" | grep -o '"digest":"[0-9a-f]*"' | head -n 1; }

pre --cache "$work/one.kdc" --views 2 >/dev/null
check "a cache of two views" test $? -eq 0

# ---- repair and fill ----
cp "$work/one.kdc" "$work/bad.kdc" && chmod u+w "$work/bad.kdc"
grep -obUaP 'KDFR\x01\x00\x01' "$work/bad.kdc" | cut -d: -f1 | awk 'NR % 7 == 3' | while read -r at; do
    printf '\377\377\377' | dd of="$work/bad.kdc" bs=1 seek=$((at + 200)) conv=notrunc 2>/dev/null
done
dd if=/dev/zero of="$work/bad.kdc" bs=4096 count=2 conv=notrunc 2>/dev/null # and both meta pages, and no manifest
"$kd" repair "$work/bad.kdc" >"$work/out" 2>"$work/err"
check "the damage is counted, exit 12" test $? -eq 12
mkdir "$work/mended"
"$kd" repair "$work/bad.kdc" --drop-bad --out "$work/mended/repaired.kdc" >"$work/out" 2>"$work/err"
check "what is sound is saved" test $? -eq 0
check "it lacks views" test "$(content "$work/one.kdc")" != "$(content "$work/mended/repaired.kdc")"
pre --cache "$work/mended" --views 2 --fill "$work/mended/repaired.kdc.missing.txt" >/dev/null
check "kd-precompute --fill computes what the list names" test $? -eq 0
"$kd" merge "$work/mended" --out "$work/whole.kdc" >"$work/out" 2>"$work/err"
# Not byte by byte: a view's last bits may depend on the others in its batch.
check "together they have the views of the cache that was damaged" cmp <("$kd" list "$work/one.kdc" 2>/dev/null) <("$kd" list "$work/whole.kdc" 2>/dev/null)
check "and are sound" eval '"$kd" check "$work/whole.kdc" --read-data --images "$pictures/train" >"$work/out" 2>"$work/err"'

# ---- extract ----
pre --cache "$work/cls.kdc" --views 2 --features cls >/dev/null
"$kd" extract "$work/one.kdc" --features cls --out "$work/less.kdc" >"$work/out" 2>"$work/err"
check "what is left out gives the file of a run with less" cmp "$work/cls.kdc" "$work/less.kdc"
finish
