#!/bin/bash
# kd-eval logreg and linear on drawn pictures: what they print and write, that threads and the choice of one C change nothing, what they refuse. Numbers: tests/unit/test_classifiers.c.
. "$(dirname "$0")/../lib.sh"

"$KD_TEST_DIR/demo/draw_pictures" "$work/pictures" 3 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
sets="--train $work/pictures/train --test $work/pictures/test"
evaluate() {
    timeout 120 "$KD_BIN/kd-eval" "$@" --weights "$weights" --image-size 70 --device cpu >"$work/out" 2>"$work/err"
    code=$?
}
# Everything of the result line but times and threads.
figures() { grep '"type":"result"' "$1" | sed 's/"training_seconds":[^,]*,//; s/"device":"[^"]*",//'; }

evaluate logreg $sets --c 0.001,0.1,10 --threads 1 --json --predictions "$work/predictions.csv" --per-class "$work/classes.csv"
check "logreg ends with 0" test $code -eq 0
cp "$work/out" "$work/one"
check "its result has the protocol, the chosen C, every C that was tried, and what it was measured on" \
    eval 'grep -q "\"protocol\":\"logreg\".*\"model_sha256\":\"[0-9a-f]\{64\}\".*\"train_digest\".*\"top1_interval\":\[.*\"mean_class_top1\".*\"c\":.*\"held_out\":3,.*\"converged\":true.*\"tried\":\[{\"c\":0.001.*{\"c\":0.1.*{\"c\":10.0" "$work/one"'
check "there is a prediction for every test image" test "$(wc -l <"$work/predictions.csv")" -eq 13
check "and a line for every class" test "$(wc -l <"$work/classes.csv")" -eq 13
evaluate logreg $sets --c 0.001,0.1,10 --threads 3 --json
check "3 threads give the same figures" test "$(figures "$work/out")" = "$(figures "$work/one")" -a -n "$(figures "$work/one")"
chosen=$(grep -o '"c":[0-9.]*,"held_out"' "$work/one" | grep -o '[0-9.]*')
evaluate logreg $sets --c "$chosen" --json
check "the chosen C alone gives the same accuracy, nothing held out" \
    eval 'grep -q "\"held_out\":0," "$work/out" && test "$(grep -o "\"top1\":[^,]*" "$work/out" | head -n 1)" = "$(grep -o "\"top1\":[^,]*" "$work/one" | head -n 1)"'
evaluate logreg $sets
check "as text, with the 45 values of the protocol" eval 'grep -q "C chosen from 45 on 3 of the 36 training images" "$work/out" && grep -q "top-1 .*95 % interval" "$work/out"'

evaluate linear $sets --iterations 40 --linear-batch-size 16 --threads 1 --json
check "linear ends with 0" test $code -eq 0
cp "$work/out" "$work/one"
check "its result is labelled linear-cached, has 13 heads, and says what chose" eval 'grep -q "\"protocol\":\"linear-cached\".*\"selected_on\":\"held-out\"" "$work/one" && test "$(grep -o held_out_top1 "$work/one" | wc -l)" -eq 13'
evaluate linear $sets --iterations 40 --linear-batch-size 16 --threads 3 --json
check "3 threads give the same figures" test "$(figures "$work/out")" = "$(figures "$work/one")" -a -n "$(figures "$work/one")"
evaluate linear $sets --iterations 40 --linear-batch-size 16 --no-held-out
check "without the held-out tenth only the rate that is best on the test set is given, and named so" eval 'test "$(grep -c "learning rate" "$work/out")" -eq 1 && grep -q "flatters" "$work/out"'

evaluate logreg $sets --c 10,1
check "values of C that don't rise: exit 2" eval 'test $code -eq 2 && grep -q -- "--c 10,1: expected" "$work/err"'
evaluate linear $sets --learning-rates 0.1,-1
check "a negative learning rate: exit 2" eval 'test $code -eq 2 && grep -q -- "--learning-rates 0.1,-1: expected" "$work/err"'
evaluate linear $sets --iterations 2 --learning-rates 1e41,1e42
check "learning rates that all diverge: exit 16" eval 'test $code -eq 16 && grep -q "all 2 linear classifiers diverged" "$work/err"'
mkdir -p "$work/single" && cp -r "$work/pictures/train/disc" "$work/single/"
evaluate logreg --train "$work/single" --test "$work/pictures/test" --c 1
check "one class: exit 2" eval 'test $code -eq 2 && grep -q "all of one class" "$work/err"'
mkdir -p "$work/few" && cp -r "$work/pictures/train/disc" "$work/pictures/train/star" "$work/few/"
evaluate linear --train "$work/few" --test "$work/pictures/test" --iterations 2
check "too few images to hold a tenth out: exit 2" eval 'test $code -eq 2 && grep -q "6 training images: at least 10 are needed" "$work/err"'
rm "$work/few/star/"*[12]*
cp -r "$work/pictures/train/ring" "$work/pictures/train/square" "$work/pictures/train/waves" "$work/few/"
evaluate logreg --train "$work/few" --test "$work/pictures/test" --c 0.1,1 --training-seed 33 # which holds out the star
check "a class that the held-out tenth takes away is warned of, and the rest goes on" eval 'test $code -eq 0 && grep -q "1 of 5 classes have no image in the nine tenths" "$work/err"'
finish
