#!/bin/bash
# What a user can see of a training run: report.html, TensorBoard events, agreement, k-NN, outliers; images that are held out by a list and by folders. A resumed run tells the same.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 6 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
cache=$work/x.kdc
"$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --cache "$cache" --views 2 --image-size 112 --device cpu --json >"$work/precompute.json" 2>"$work/err" || { cat "$work/err"; exit 1; }
cp "$work/err" "$work/precompute.err"
student=dinov2_w64_d1
train() {
    "$KD_BIN/kd-train" --images "$pictures/train" --cache "$cache" --student $student --epochs 3 --batch-size 8 --val-fraction 0.3 --log-every 2 --device cpu --threads 2 \
        --knn-train "$pictures/train" --knn-test "$pictures/test" --knn-every 2 "$@"
}
has() { grep -qF -- "$2" "$1"; }

# ---- a run ----
train --out "$work/a" 2>"$work/err"
check "a run with k-NN ends with 0" test $? -eq 0
report=$work/a/report.html
for section in '<h2>Curves</h2>' '<h2>What teacher and students see</h2>' '<h2>Settings and identity</h2>' 'Neighbourhood agreement' 'k-NN, k = 20' 'Learning rate' 'Images per second' 'Waiting for data' \
    'Loss term cls' 'Loss term patch' 'of CLS features' 'of patch features' 'photo, held out' 'teacher, layer 1, 8 x 8 patches' '<td>batch-size</td><td>8</td>' 'Finished: epoch 3 of 3'; do
    check "the report has: $section" has "$report" "$section"
done
check "it is one page without scripts or anything from elsewhere" test "$(grep -cE '<script|<link|https?://|src="[^d]|url\([^#]' "$report")" -eq 0
check "its markup is closed" test "$(grep -o '<figure>' "$report" | wc -l)" -eq "$(grep -o '</figure>' "$report" | wc -l)" -a "$(tail -c 15 "$report")" = '</body></html>'
check "six photos, the teacher and the student are shown" test "$(grep -o 'src="data:image/png;base64,' "$report" | wc -l)" -eq 18
recipe=$("$KD_BIN/kd-cache" info "$cache" --json | grep -o '[0-9a-f]\{64\}' | head -n 1)
check "it names the cache's recipe" has "$report" "$recipe"
lines=$(grep -c val_agreement "$work/a/metrics.jsonl")
check "agreement is measured every epoch" test "$lines" -eq 3
check "on held-out and on seen views" test "$(grep -c seen_agreement "$work/a/metrics.jsonl")" -eq 3
check "k-NN is measured after epoch 2 and the last" test "$(grep -o '"epoch":[0-9]*[^}]*knn_top1_k10' "$work/a/metrics.jsonl" | grep -o '"epoch":[0-9]*' | tr '\n' ' ')" = '"epoch":2 "epoch":3 '

# The last epoch's k-NN is what kd-eval finds in the export.
"$KD_BIN/kd-eval" knn --model $student --weights "$work/a/exported/$student.safetensors" --image-size 112 --train "$pictures/train" --test "$pictures/test" --k 10,20 --batch-size 8 --threads 2 --device cpu \
    --json >"$work/knn" 2>"$work/err"
value() { grep -o "\"$1\":[^,}]*" | tail -n 1 | cut -d: -f2 | xargs printf '%.6f'; } # KEY: its last number on stdin
for k in 10 20; do
    for top in 1 5; do
        check "k-NN with k=$k, top-$top is kd-eval's" test "$(value "knn_top${top}_k$k" <"$work/a/metrics.jsonl")" = "$(grep "\"k\":$k," "$work/knn" | value "top$top")"
    done
done

# ---- where the time went ----
# The stages of a table: its lines as printed, which add up to the last one; none is negative. Prints them, or what is wrong.
stages() { # FILE TITLE
    awk -v title="$2" 'index($0, title) == 1 { inside = 1; next }
        inside && !/^  / { exit }
        inside { value = $(NF - 1); name = $0; sub(/^ +/, "", name); sub(/  +[-0-9.]+ +[-0-9.]+%$/, "", name)
            if (value < 0) { print "negative: " name; exit }
            if (name == "all") { d = sum - value; print (d < 0.005 && d > -0.005) ? list "= all" : "lines add up to " sum " and all is " value; exit }
            sum += value; list = list name ", " }' "$1"
}
main='where the time went' loaders='loader threads, processor time'
check "kd-precompute says where its time went, in lines that add up" test "$(stages "$work/precompute.err" "$main")" = 'start, wait for data, batch, teacher, encode, compress, write, seal, other, = all'
check "and what its loaders took" test "$(stages "$work/precompute.err" "$loaders")" = 'decode, replay, = all'
check "its summary has both" grep -q '"type":"summary".*"stages":{"start":[0-9].*"seal":.*"other":.*"loaders":{"decode":[0-9.e-]*,"replay":' "$work/precompute.json"
train --out "$work/t" --epochs 1 --json >"$work/train.json" 2>"$work/err"
both='start, wait for data, batch, forward, backward, optimizer, validation, checkpoint, report, export, other, = all'
check "kd-train says where its time went, in lines that add up" test "$(stages "$work/err" "$main")" = "$both"
check "and what its loaders took" test "$(stages "$work/err" "$loaders")" = 'decode, replay, cache, = all'
sed 's/^[^ ]* //' "$work/t/train.log" >"$work/log"
check "train.log keeps it" test "$(stages "$work/log" "$main")" = "$both"
check "its summary has both" grep -q '"type":"summary","steps":[0-9]*,"seconds":[0-9].*"stages":{"start":[0-9].*"other":.*"loaders":{"decode":' "$work/train.json"
train --out "$work/q" --epochs 1 -q 2>"$work/err"
check "-q is quiet about it" test ! -s "$work/err"
train --out "$work/t" --epochs 1 2>"$work/err"
check "a run that had nothing left to do has no table" test "$(grep -c "$main" "$work/err")" -eq 0
"$KD_BIN/kd-train" --images "$pictures/train" --live-teacher "$weights" --image-size 112 --views 2 --student $student --epochs 1 --batch-size 8 --device cpu --threads 2 --out "$work/lt" 2>"$work/err"
check "a live teacher has a line of its own" test "$(stages "$work/err" "$main")" = "${both/wait for data,/wait for data, live teacher,}"
check "and its loaders read no cache" test "$(stages "$work/err" "$loaders")" = 'decode, replay, = all'

# ---- TensorBoard events: whole records, a number for each of metrics.jsonl ----
# Prints "records values": how many records the file has, each ended where its length says, and how many scalars.
walk() {
    od -An -v -tu1 -w1 "$1" | awk '{ b[n++] = $1 } END {
        for (at = 0; at < n; records++) {
            size = b[at] + 256 * (b[at + 1] + 256 * (b[at + 2] + 256 * b[at + 3]))
            if (at + 16 + size > n || b[at + 4] + b[at + 5] + b[at + 6] + b[at + 7] > 0) { print "broken at " at; exit }
            for (i = at + 12; i < at + 12 + size - 5; i++)
                if (b[i] == 10 && b[i + 2] == 100 && b[i + 3] == 105 && b[i + 4] == 110) { # a tag "din.."
                    after = i + 2 + b[i + 1]
                    values += b[after] == 21; pictures += b[after] == 34
                }
            at += 16 + size
        }
        print records, values, pictures }'
}
events=("$work/a"/events.out.tfevents.*)
check "there is one event file" test ${#events[@]} -eq 1 -a -s "${events[0]}"
check "it begins with TensorBoard's version" has "${events[0]}" 'brain.Event:2'
numbers=$(sed 's/"student":"[^"]*",//; s/"step":[0-9]*,//; s/"epoch":[0-9]*,//; s/,"best":[a-z]*//' "$work/a/metrics.jsonl" | grep -o ':' | wc -l)
walk "${events[0]}" >"$work/walk"
check "it has a record per line of metrics, one per epoch's maps and the version; every number; a picture per epoch" \
    test "$(cat "$work/walk")" = "$(($(wc -l <"$work/a/metrics.jsonl") + 4)) $numbers 3"

# ---- a resumed run tells the same ----
# Without speeds and the folder's name; a chart is two lines.
plain_report() { sed -E 's/; lately [0-9.]+ images[^%]*%[^.]*\./\./; s|<td>'"$work"'/[a-z]*</td>|<td>OUT</td>|' "$1/report.html" | awk '/<b>(Images per second|Waiting for data)</ { skip = 2 } skip-- > 0 { next } { print }'; }
numbers() { sed 's/,"images_per_s":[^,}]*//; s/,"data_wait":[^,}]*//' "$1/metrics.jsonl"; }
train --out "$work/r" --steps 4 2>/dev/null
check "a paused run has a report" has "$work/r/report.html" 'In progress: epoch'
for leftover in report.html.tmp.123.4 checkpoints/latest.kdt.tmp.123.4 notes.tmp.txt; do echo half >"$work/r/$leftover"; done
for bytes in "$work/r/metrics.jsonl" "$work/r"/events.out.tfevents.*; do echo 'written after the checkpoint, by a run that was killed' >>"$bytes"; done
train --out "$work/r" 2>"$work/err"
check "it goes on to its end" test $? -eq 0
check "what a killed run left half-written is gone, and nothing else" test "$(find "$work/r" -name '*.tmp.*' -printf '%f ')" = 'notes.tmp.txt '
check "its metrics are those of the straight run" cmp <(numbers "$work/a") <(numbers "$work/r")
check "its events are as many, plus the picture of the pause" test "$(walk "$work/r"/events.out.tfevents.*)" = "$(awk '{ print $1 + 1, $2, $3 + 1 }' "$work/walk")"
check "its report is that of the straight run" cmp <(plain_report "$work/a") <(plain_report "$work/r")
checksum=$(sha256sum <"$work/a/report.html")
train --out "$work/a" 2>/dev/null
check "a finished run's report stays as it is" test "$checksum" = "$(sha256sum <"$work/a/report.html")"

# ---- the k-NN doesn't touch the training ----
"$KD_BIN/kd-train" --images "$pictures/train" --cache "$cache" --student $student --epochs 3 --batch-size 8 --val-fraction 0.3 --log-every 2 --device cpu --threads 2 --out "$work/n" 2>"$work/err"
check "without it the same weights come out" cmp "$work/n/exported/$student.safetensors" "$work/a/exported/$student.safetensors"
train --out "$work/k" --knn-test "$work/nowhere" 2>"$work/err"
check "a k-NN folder that isn't there is said before the first step" test $? -eq 2 -a ! -e "$work/k/metrics.jsonl"
"$KD_BIN/kd-train" --images "$pictures/train" --cache "$cache" --student $student --epochs 1 --knn-train "$pictures/train" --out "$work/k" 2>"$work/err"
check "half of a k-NN is a usage error" test $? -eq 2

# ---- a live teacher's neighbours are those that a cache has ----
"$KD_BIN/kd-train" --images "$pictures/train" --live-teacher "$weights" --image-size 112 --views 2 --student $student --epochs 1 --batch-size 8 --val-fraction 0.3 --device cpu --threads 2 --out "$work/live" \
    2>"$work/err"
check "a run with a live teacher has a report" has "$work/live/report.html" 'What teacher and students see'
"$KD_BIN/kd-train" --images "$pictures/train" --cache "$cache" --student $student --epochs 1 --batch-size 8 --val-fraction 0.3 --device cpu --threads 2 --out "$work/cached" 2>"$work/err"
live=$(value val_agreement <"$work/live/metrics.jsonl") cached=$(value val_agreement <"$work/cached/metrics.jsonl")
check "its agreement ($live) is the cached one's ($cached) but for the codec" awk "BEGIN { d = $live - $cached; exit !(d * d < 0.02 * 0.02 && $live > 0.3) }"

# ---- who is held out ----
plan() { train --out "$work/p" --dry-run "$@" 2>&1; }
printf 'star/001.jpg\nring/000.jpg\nnot/there.jpg\n' >"$work/list"
plan --val-list "$work/list" >"$work/err"
check "--val-list holds out what it names" grep -q '70 images to train on, 2 held out by --val-list' "$work/err"
check "unknown names are counted" grep -q '1 entries name no image of the cache' "$work/err"
id=$("$KD_BIN/kd-cache" list "$cache" --json | head -n 1 | grep -o '"id":"[0-9a-f]*"' | cut -d'"' -f4)
echo "$id" >"$work/ids"
plan --val-list "$work/ids" >"$work/err"
check "ids name images too" grep -q '71 images to train on, 1 held out' "$work/err"
echo 'not/there.jpg' >"$work/none"
plan --val-list "$work/none" >"$work/err"
check "a list that names nothing is refused, exit 2" test $? -eq 2
check "and says how to find names" grep -q 'kd-cache list' "$work/err"
plan --val-group 1 >"$work/err"
check "--val-group counts groups: twelve folders of six" grep -qE '[0-9]+ images to train on, ([0-9]+) held out in [0-9]+ of 12 groups \(paths that share 1 folders\)' "$work/err"
held=$(grep -oE '[0-9]+ held out' "$work/err" | cut -d' ' -f1)
check "whole folders are held out" test $((held % 6)) -eq 0 -a "$held" -gt 0
plan --val-group 1 --val-list "$work/list" >"$work/err"
check "with a list: the folders of what it names" grep -q '60 images to train on, 12 held out by --val-list in 2 of 12 groups' "$work/err"
plan --val-fraction 0.0001 --val-group 1 >"$work/err"
check "at least one folder" grep -q '66 images to train on, 6 held out in 1 of 12 groups' "$work/err"
mkdir "$work/flat"
for f in star/000 star/001 ring/000 ring/001 disc/000 disc/001 cross/000 cross/001 dots/000; do cp "$pictures/train/$f.jpg" "$work/flat/${f/\//_}.jpg"; done
"$KD_BIN/kd-precompute" --images "$work/flat" --weights "$weights" --cache "$work/flat.kdc" --views 1 --image-size 112 --device cpu 2>/dev/null
"$KD_BIN/kd-train" --images "$work/flat" --cache "$work/flat.kdc" --student $student --epochs 1 --batch-size 2 --val-group 1 --out "$work/f" --dry-run 2>"$work/err"
check "one group of all can't be divided, exit 2" test $? -eq 2
train --out "$work/l" --val-list "$work/list" --steps 2 2>/dev/null
echo 'disc/002.jpg' >>"$work/list"
train --out "$work/l" --val-list "$work/list" 2>"$work/err"
check "a resumed run with another list is refused, exit 13" test $? -eq 13

# ---- outliers: a learning rate that rises until the loss leaps, and leaps again ----
wild=(--epochs 8 --warmup-epochs 8 --lr 3 --clip 0 --val-fraction 0.1 --log-every 100000 --knn-every 100)
train --out "$work/o" "${wild[@]}" 2>"$work/err"
check "a run with outliers ends with 0" test $? -eq 0
check "an outlier has a line of its own" grep -q '"grad_norm":.*"outlier":true' "$work/o/metrics.jsonl"
check "it is said in the log" grep -qE 'warning: step [0-9]+, dinov2_w64_d1: (the loss|the gradient.s norm) is .* times the median of the last [0-9]+ steps' "$work/o/train.log"
check "and marked in the report" has "$work/o/report.html" '<b>Outliers</b>'
train --out "$work/i" "${wild[@]}" --steps 31 2>/dev/null
train --out "$work/i" "${wild[@]}" 2>"$work/err"
check "an interrupted run flags the same steps" cmp <(numbers "$work/o") <(numbers "$work/i")
check "a calm run flags none" test "$(grep -c outlier "$work/a/metrics.jsonl")" -eq 0
finish
