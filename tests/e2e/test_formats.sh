#!/bin/bash
# Pictures of every kind from the folder to the student: JPEG, PNG and WebP, EXIF orientation in the recipe, the pixel limit, kinds counted by --dry-run.
. "$(dirname "$0")/../lib.sh"

golden=$top/tests/golden/image/pictures
weights=$top/tests/golden/models/tiny_dinov2.pth
pre() { timeout 120 "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --threads 2 --views 2 --image-size 70 "$@"; }
cached() { timeout 120 "$KD_BIN/kd-cache" "$@"; }

images=$work/images
mkdir "$images"
for f in rgb.jpg exif-rotated.jpg restarts.jpg arithmetic.jpg gray-progressive.jpg alpha.png png-rgb-16.png png-palette-4-alpha.png interlaced.png lossy.webp lossless-alpha.webp exif-rotated.webp; do
    cp "$golden/$f" "$images/"
done
cp "$golden/lossless.webp" "$images/really-webp.jpg"

pre --images "$images" --cache "$work/as-stored.kdc" 2>"$work/err"
check "pictures of every kind make a cache, exit 0" test $? -eq 0
cached check "$work/as-stored.kdc" --images "$images" >"$work/out" 2>&1
check "and all their views replay" test $? -eq 0
pre --images "$images" --cache "$work/upright.kdc" --exif apply 2>"$work/err"
check "--exif apply makes a cache, exit 0" test $? -eq 0
cached check "$work/upright.kdc" --images "$images" >"$work/out" 2>&1
check "whose views replay by the recipe's orientation" test $? -eq 0
cached list "$work/as-stored.kdc" --json >"$work/a"
cached list "$work/upright.kdc" --json >"$work/b"
hashes() { grep "\"path\": *\"$2\"" "$1" | grep -o '"hash": *"[0-9a-f]*"'; }
check "plain pictures have the same views either way" test "$(hashes "$work/a" rgb.jpg)" = "$(hashes "$work/b" rgb.jpg)" -a -n "$(hashes "$work/a" rgb.jpg)"
for f in exif-rotated.jpg exif-rotated.webp; do
    check "$f has other views when it is turned" test "$(hashes "$work/a" $f)" != "$(hashes "$work/b" $f)" -a -n "$(hashes "$work/b" $f)"
done
pre --images "$images" --cache "$work/upright.kdc" 2>"$work/err"
check "another --exif is another recipe, exit 13" test $? -eq 13
check "and the sentence names the field" grep -q exif "$work/err"
timeout 120 "$KD_BIN/kd-train" --cache "$work/upright.kdc" --images "$images" --student resnet18 --out "$work/run" --device cpu --threads 2 --epochs 1 --batch-size 4 --val-fraction 0.2 >"$work/out" 2>"$work/err"
check "a student trains on upright views" test $? -eq 0

# 53 x 34 = 1802 pixels are the largest here.
pre --images "$images" --cache "$work/small.kdc" --max-pixels 1801 2>"$work/err"
check "pictures above --max-pixels are skipped, exit 3" test $? -eq 3
check "and the limit is said" grep -q 'restarts.jpg.*above the limit of 1801 pixels' "$work/err"
pre --images "$images" --cache "$work/exact.kdc" --max-pixels 1802 2>"$work/err"
check "the limit itself is within it, exit 0" test $? -eq 0

mixed=$work/mixed
mkdir "$mixed"
cp "$images"/*.jpg "$images"/*.webp "$mixed/"
printf '\0\0\0\030ftypheic\0\0\0\0mif1heic' >"$mixed/phone.jpg"
cp "$golden/animated.webp" "$mixed/"
: >"$mixed/empty.png"
pre --images "$mixed" --cache "$work/dry.kdc" --dry-run --json >"$work/out" 2>"$work/err"
check "--dry-run counts the kinds of a sample" grep -q '"kinds":{"JPEG":5,"WebP":4,"animated WebP":1,"empty file":1,"HEIC picture":1},"looked_at":12,"unread":3' "$work/out"
check "in its log too" grep -q 'kinds     5 JPEG, 4 WebP' "$work/err"
check "and says which file would be skipped" grep -q '3 of the 12 files looked at would be skipped (first: animated.webp)' "$work/err"
pre --images "$mixed" --cache "$work/mixed.kdc" --max-skipped 3 2>"$work/err"
check "the run skips the same, exit 0 with --max-skipped" test $? -eq 0
check "naming a converter" grep -q 'phone.jpg is a HEIC picture.*heif-convert' "$work/err"

finish
