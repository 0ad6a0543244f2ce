#!/bin/bash
# What kd-eval measures without labels, on drawn pictures: features in three formats, agreement with a teacher and with a cache, PCA pictures; and what is refused.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 2 1 >"$work/out" || exit 1
mv "$(find "$pictures/test" -name '*.jpg' | sort | head -n 1)" "$pictures/test/a, \"b\".jpg"
weights=$top/tests/golden/models/tiny_dinov2.pth
evaluate() { "$KD_BIN/kd-eval" "$@" --image-size 56 --device cpu 2>"$work/err"; }
says() { # STATUS WORDS ARGUMENTS...: that exit status, and WORDS on stderr
    local status=$1 words=$2 got
    shift 2
    evaluate "$@" >"$work/out" </dev/null
    got=$?
    [ $got -eq "$status" ] && grep -qF -- "$words" "$work/err"
}
figure() { # KEY: the first "value" behind "KEY" in the result
    grep '"type": *"result"' "$work/out" | grep -o "\"$1\": *{[^}]*}" | grep -o '"value": *[-0-9.e]*' | head -n 1 | sed 's/.*: *//'
}
holds() { awk "BEGIN { exit !($1) }"; }
png_size() { od -An -tu1 -j16 -N8 "$1" | awk '{ print $5 * 16777216 + $6 * 65536 + $7 * 256 + $8 "x" $1 * 16777216 + $2 * 65536 + $3 * 256 + $4 }'; } # rows x columns

# ---- features ----
features() { evaluate features --weights "$weights" --images "$pictures/test" --threads 2 "$@"; }
features --features pooled --out "$work/f.safetensors" && features --features pooled,patch --out "$work/f.npy" && features --out "$work/f.csv"
check "all three formats are written" test $? -eq 0
bytes=$((12 * 64 * 4))
check "the array in .npy is the tensor in .safetensors" cmp <(tail -c $bytes "$work/f.safetensors") <(tail -c $bytes "$work/f.pooled.npy")
check "NumPy is told its shape" grep -aq "'descr': '<f4', 'fortran_order': False, 'shape': (12, 64), }" "$work/f.pooled.npy"
check "patches have theirs" grep -aq "'shape': (12, 16, 64), }" "$work/f.patch.npy"
check "nothing is written that wasn't asked for" test ! -e "$work/f.cls.npy" -a ! -e "$work/f.npy"
check "paths stand beside, escaped" grep -qF '"a, \"b\".jpg"' "$work/f.paths.json"
check "a CSV has a line for each image and a header" test "$(wc -l <"$work/f.csv")" -eq 13
check "and a column for each value" test "$(sed -n 2,3p "$work/f.csv" | tail -n 1 | tr ',' '\n' | wc -l)" -eq 65
check "a path with a comma and quotes is quoted" grep -qF '"a, ""b"".jpg",' "$work/f.csv"
check "an ending that says no format is refused" says 2 'ends in none of' features --weights "$weights" --images "$pictures/test" --out "$work/f.dat"
check "patches don't fit in a CSV" says 2 'has one line for each image' features --weights "$weights" --images "$pictures/test" --features patch --out "$work/f.csv"
check "an unknown feature is named" says 2 "'clss' is no feature" features --weights "$weights" --images "$pictures/test" --features pooled,clss --out "$work/f.npy"

# ---- agree ----
check "a network agrees with itself" says 0 '' agree --weights "$weights" --teacher-weights "$weights" --images "$pictures/train" --json
check "keeps all neighbours" test "$(figure neighbours_kept)" = 1.0
check "and is as it is" holds "$(figure raw_mse) == 0 && $(figure raw_cosine) > 0.999999"
check "a random student is compared with the teacher" says 0 '' agree --model resnet18 --weights random --student-size 48 --teacher-weights "$weights" --images "$pictures/train" --json
check "in what a map reads out" holds "$(figure r2) < 1 && $(figure neighbours_kept) < 1"
check "of patches too, resized to the teacher's grid" grep -q '"grid":\[4,4\],"own_map":\[2,2\]' <(tr -d ' ' <"$work/out")
check "raw distances of unlike widths aren't given" holds "$(grep -c raw_mse "$work/out") == 0"
cp "$work/out" "$work/first"
evaluate agree --model resnet18 --weights random --student-size 48 --teacher-weights "$weights" --images "$pictures/train" --json --threads 1 --batch-size 16 >"$work/second"
same() { grep '"type": *"result"' "$1" | sed 's/"device": *"[^"]*"//'; }
check "figures don't depend on threads" cmp <(same "$work/first") <(same "$work/second")
check "text says chance and interval" says 0 '' agree --weights "$weights" --teacher-weights "$weights" --images "$pictures/train" --patch-images 0
check "in words" grep -q 'neighbours kept *1.0000 .*95 % interval 1.0000 to 1.0000; chance 0.2174' "$work/out"
"$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --views 1 --image-size 56 --device cpu --cache "$work/c.kdc" 2>"$work/err"
check "with a cache the student sees the teacher's views" says 0 '' agree --weights "$weights" --cache "$work/c.kdc" --images "$pictures/train" --json
check "and the teacher itself has its cached features, as they were stored" holds "$(figure neighbours_kept) > 0.98 && $(figure raw_cosine) > 0.9999 && $(figure raw_mse) < 0.001"
check "the result names the cache" grep -q '"identity"' "$work/out"
check "of another folder's pictures none is known" says 13 '' agree --weights "$weights" --cache "$work/c.kdc" --images "$pictures/test"
check "something to compare with is needed" says 2 'compare with what' agree --weights "$weights" --images "$pictures/train"
check "one thing only" says 2 'leave one out' agree --weights "$weights" --teacher-weights "$weights" --cache "$work/c.kdc" --images "$pictures/train"
check "and patches of 7" says 2 '--patch-images 7' agree --weights "$weights" --teacher-weights "$weights" --images "$pictures/train" --patch-images 7
check "7 images are too few" says 2 'are too few to compare two networks' agree --weights "$weights" --teacher-weights "$weights" --images "$pictures/train" --count 7
echo nonsense >"$pictures/train/bad.jpg"
check "an image that can't be read is left out with exit 3" says 3 '1 files could not be read' agree --weights "$weights" --teacher-weights "$weights" --images "$pictures/train"
check "and said once" test "$(grep -c 'skipped:' "$work/err")" -eq 1
rm "$pictures/train/bad.jpg"

# ---- pca ----
pca() { evaluate pca --model dinov2_w64_d1 --weights random --student-size 28 --teacher-weights "$weights" --images "$pictures/train" --count 3 "$@"; }
pca --threads 1 --tile 64 --also model=dinov2_w64_d1,weights=random,seed=7,label=other --out "$work/a.png" --json >"$work/out"
check "photos, a teacher and two students make a picture" test $? -eq 0
check "of 3 rows and 4 columns" test "$(png_size "$work/a.png")" = "$((16 + 44 + 3 * (64 + 24) + 8))x$((16 + 4 * (64 + 12) - 12 + 16))"
check "the result has a figure for each student" test "$(grep -o '"cosine_centred"' "$work/out" | wc -l)" -eq 2
check "and the photos that are shown" grep -q '"photos": *\["[^"]*", *"[^"]*", *"[^"]*"\]' "$work/out"
pca --threads 2 --batch-size 16 --tile 64 --also model=dinov2_w64_d1,weights=random,seed=7,label=other --out "$work/b.png" >"$work/out"
check "the picture doesn't depend on threads" cmp "$work/a.png" "$work/b.png"
check "a teacher alone has its own basis" says 0 '' pca --weights "$weights" --images "$pictures/test" --count 12 --foreground on --out "$work/c.png"
check "too few others to fit on are refused" says 2 'at least 8 others are needed' pca --weights "$weights" --teacher-weights "$weights" --images "$pictures/test" --count 6 --out "$work/d.png"
check "--also wants names and values" says 2 'expected NAME=VALUE' pca --weights "$weights" --also x.safetensors --images "$pictures/train" --out "$work/d.png"
check "and known ones" says 2 'image' pca --weights "$weights" --also weights=random,images=x --images "$pictures/train" --out "$work/d.png"
check "nothing was written then" test ! -e "$work/d.png"
finish
