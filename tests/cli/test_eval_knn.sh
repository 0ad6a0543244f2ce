#!/bin/bash
# kd-eval knn on drawn pictures: the same images give the same result from folders, a CSV, a tar and a cache; what it writes adds up; a run's student needs no options; what can't be is refused by name.
source "$(dirname "$0")/../lib.sh"
export LC_ALL=C

"$KD_TEST_DIR/demo/draw_pictures" "$work/p" 2 1 >"$work/out" || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
knn() { "$KD_BIN/kd-eval" knn --image-size 56 --device cpu --threads 2 --k 2,20 "$@" 2>"$work/err"; }
tiny() { knn --weights "$weights" "$@"; }
value() { grep -o "\"$1\":[^,}]*" | cut -d: -f2 | tr -d '"' | tr '\n' ' '; } # KEY: its values on stdin
# says STATUS WORDS COMMAND...: ends so, with WORDS on stderr.
says() {
    local status=$1 words=$2
    shift 2
    "$@" >"$work/out"
    [ $? -eq "$status" ] && grep -qF -- "$words" "$work/err"
}
list() { (cd "$work/p" && find "$1" -name '*.jpg' | sort | sed -E 's|^[a-z]*/([a-z]*)/.*|&,\1|'); } # PART: its lines path,label

# ---- one set of images, four forms ----
tiny --train "$work/p/train" --test "$work/p/test" --json >"$work/folders"
check "folders are taken, exit 0" test $? -eq 0
check "two lines of results, one for each k" test "$(value k <"$work/folders")" = '2 20 '
list train >"$work/p/train.csv"
{ printf 'x,label,path\r\n' && list test | sed -E 's/(.*),(.*)/1,"\2",\1\r/'; } >"$work/p/test.csv"
(cd "$work/p/train" && tar -cf ../train.tar -- *)
"$KD_BIN/kd-precompute" -q --images "$work/p/train" --weights "$weights" --cache "$work/x.kdc" --views 1 --image-size 56 --device cpu 2>/dev/null
"$KD_BIN/kd-precompute" -q --images "$work/p/train" --weights "$weights" --cache "$work/hidden.kdc" --paths hash --views 1 --image-size 56 --device cpu 2>/dev/null
mkdir "$work/moved" && cp -r "$work/p/train" "$work/moved/elsewhere"
results() { grep '"type":"result"' "$1" | sed 's/"device":"[^"]*"//'; }
same() { # NAME --train SOURCE...
    local name=$1
    shift
    tiny --json "$@" >"$work/other"
    check "the same result from $name" test $? -eq 0 -a "$(results "$work/other")" = "$(results "$work/folders")"
}
same "CSV files" --train "$work/p/train.csv" --test "$work/p/test.csv"
same "a tar" --train "$work/p/train.tar" --test "$work/p/test"
same "a cache's own images" --train "$work/x.kdc" --images "$work/p/train" --test "$work/p/test"
same "a cache whose images were moved" --train "$work/x.kdc" --images "$work/moved" --test "$work/p/test"
same "a cache that hides its paths" --train "$work/hidden.kdc" --images "$work/p/train" --test "$work/p/test"
same "one thread" --train "$work/p/train" --test "$work/p/test" --threads 1
sha=$(sha256sum "$weights" | cut -d' ' -f1)
check "the result names the weights by their SHA-256" test "$(value model_sha256 <"$work/folders")" = "$sha $sha "
check "and the digests of both sets" test "$(value train_digest <"$work/folders" | wc -c)" -eq 130 -a "$(value test_digest <"$work/folders")" != "$(value train_digest <"$work/folders")"

# ---- what it writes adds up ----
tiny --train "$work/p/train" --test "$work/p/test" --per-class "$work/classes.csv" --predictions "$work/predictions.csv" >"$work/text"
check "text, a table of classes and predictions" test $? -eq 0
counted() { awk -F, -v c="$1" 'NR > 1 { n += $c == $2; m++ } END { printf "%.6f\n", n / m }' "$work/predictions.csv"; }
check "the predictions are as good as the result says" test "$(counted 3) $(counted 4)" = "$(value top1 <"$work/folders" | xargs printf '%.6f %.6f')"
check "so are the classes" test "$(awk -F, 'NR > 1 { n += $4; t += $3 } END { printf "%.6f\n", n / t }' "$work/classes.csv")" = "$(counted 3)"
check "twelve classes of two training images and one test image" test "$(cut -d, -f2,3 "$work/classes.csv" | sort | uniq -c | tr -s ' ')" = "$(printf ' 12 2,1\n 1 train,test')"
check "the text says the interval" grep -q 'k = 2 .* % *( *[0-9.]* to *[0-9.]*)' "$work/text"
check "classes of fewer than k images are warned of" grep -q 'k = 20: 12 of 12 classes have fewer training images (the smallest 2)' "$work/err"
check "not those that have enough" test "$(grep -c 'k = 2:' "$work/err")" -eq 0
check "test images among the training images are warned of" says 0 '12 of the 12 test images are training images too' tiny --train "$work/p/test" --test "$work/p/test" --k 5
mkdir "$work/new" && cp -r "$work/p/test/star" "$work/new/star" && cp -r "$work/p/test/disc" "$work/new/unknown"
check "a class that training lacks counts as wrong" says 0 '1 test images have a class that the training images lack' tiny --train "$work/p/train" --test "$work/new"

# ---- unreadable images: done, exit 3 ----
sed 's/^/p\//' "$work/p/train.csv" >"$work/gap.csv" && echo 'p/train/star/none.jpg,star' >>"$work/gap.csv"
check "a CSV with an image that isn't there: exit 3" says 3 'none.jpg' tiny --train "$work/gap.csv" --test "$work/p/test"
cp -r "$work/p/train" "$work/less" && rm "$work/less/star/000.jpg"
check "a cache with an image that isn't there: exit 3" says 3 '1 missing (first: star/000.jpg)' tiny --train "$work/x.kdc" --images "$work/less" --test "$work/p/test"
check "with a result over the others" grep -q '23 training images' "$work/out"

# ---- refused ----
printf 'p/a.jpg,cat\np/b.jpg\n' >"$work/bad.csv"
check "a CSV's mistake is said by line" says 2 'bad.csv, line 2: has 1 fields' tiny --train "$work/bad.csv" --test "$work/p/test"
check "a cache without --images" says 2 'say with --images' tiny --train "$work/x.kdc" --test "$work/p/test"
check "other images than the cache's" says 13 "none of the cache's 24 images" tiny --train "$work/x.kdc" --images "$work/p/test" --test "$work/p/test"
cp -r "$work/p/train" "$work/edited" && printf '\1' | dd of="$work/edited/ring/001.jpg" bs=1 seek=200 conv=notrunc 2>/dev/null
check "an image of the same size with other bytes" says 13 'ring/001.jpg has the size that the cache recorded but other bytes' tiny --train "$work/x.kdc" --images "$work/edited" --test "$work/p/test"
check "more neighbours than images, before any feature" says 2 '--k 100' tiny --train "$work/p/train" --test "$work/p/test" --k 100
check "neither weights nor a run" says 2 'Give --weights FILE, or --run DIR' knn --train "$work/p/train" --test "$work/p/test"
check "both" says 2 '--run and --weights' tiny --run "$work/run" --train "$work/p/train" --test "$work/p/test"
check "a table where none can be written, before any feature" says 1 "$work/nowhere" tiny --train "$work/p/train" --test "$work/p/test" --per-class "$work/nowhere/x.csv"

# ---- a run's student, at the sizes that it was trained at; the same k-NN that kd-train has found ----
plain() { "$KD_BIN/kd-eval" knn --device cpu --threads 2 --k 10,20 --train "$work/p/train" --test "$work/p/test" --json "$@" 2>"$work/err"; }
"$KD_BIN/kd-train" -q --images "$work/p/train" --cache "$work/x.kdc" --student resnet18 --student dinov2_w64_d1 --student-size 42 --epochs 1 --batch-size 8 --device cpu --threads 2 --out "$work/run" \
    --knn-train "$work/x.kdc" --knn-test "$work/p/test.csv" >"$work/out" 2>"$work/err"
check "kd-train takes a cache and a CSV" test $? -eq 0
check "a run of several students: which?" says 2 'dinov2_w64_d1, resnet18); say which with --student' plain --run "$work/run"
check "one that isn't there" says 2 'vit.safetensors: no such student' plain --run "$work/run" --student vit
plain --run "$work/run" --student resnet18 >"$work/run.json"
check "a run's student needs no other options" test $? -eq 0
check "it sees what it was trained on" grep -qF '"image_size":[56,56],"input_size":[42,42]' "$work/run.json"
trained=$(grep '"student":"resnet18"' "$work/run/metrics.jsonl" | value 'knn_top[15]_k[12]0' | xargs printf '%.6f ')
check "its k-NN is what kd-train has found" test "$trained" = "$(for k in 10 20; do for t in 1 5; do grep "\"k\":$k," "$work/run.json" | value top$t; done; done | xargs printf '%.6f ')"
"$KD_BIN/kd-eval" knn --device cpu --threads 2 --weights "$work/run/exported/resnet18.safetensors" --train "$work/p/train" --test "$work/p/test" --image-size 112 --k 5 >"$work/out" 2>"$work/err"
check "an exported file says its model; sizes that are given win" grep -q '^resnet18, .*eval view 112, ' "$work/out"
knn --weights random --model dinov2_w64_d1 --seed 7 --train "$work/p/train" --test "$work/p/test" --k 1 --json >"$work/out"
check "random weights have a seed instead of a hash" test "$(value model_sha256 <"$work/out")$(value seed <"$work/out")" = 'null 7 '
finish
