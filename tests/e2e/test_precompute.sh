#!/bin/bash
# kd-precompute end to end on drawn pictures: bad inputs, resume, thread counts, free space, budget.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 3 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
pre() { "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --threads 2 "$@"; }

# ---- bad input: listed, never fatal ----
bad=$work/bad
mkdir -p "$bad/with space"
cp "$pictures"/train/disc/000.jpg "$bad/with space/a b.jpg"
cp "$pictures"/train/disc/001.jpg "$bad/new
line.jpg"
cp "$pictures"/train/disc/002.jpg "$bad/$(printf 'latin\351.jpg')"
: >"$bad/empty.jpg"
head -c 3000 "$pictures"/train/ring/000.jpg >"$bad/truncated.jpg"
echo 'not an image' >"$bad/text.jpg"
mkfifo "$bad/fifo.jpg"
ln -s missing-target "$bad/dangling.jpg"
cp "$pictures"/train/ring/001.jpg "$bad/unreadable.jpg"
cp "$pictures"/train/disc/000.jpg "$bad/duplicate.jpg"
timeout 60 "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --images "$bad" --cache "$work/bad.kdc" --views 2 >"$work/out" 2>"$work/err"
check "bad images are skipped and listed, exit 3" test $? -eq 3
check "the empty file is named" grep -q 'empty.jpg' "$work/err"
check "the truncated file is named" grep -q 'truncated.jpg' "$work/err"
check "the text file is named" grep -q 'text.jpg' "$work/err"
"$KD_BIN/kd-cache" list "$work/bad.kdc" --json >"$work/list"
check "good images with odd names are stored, duplicates once" test "$(wc -l <"$work/list")" -eq 8
timeout 60 "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --images "$bad" --cache "$work/bad2.kdc" --views 2 --max-skipped 10 >"$work/out" 2>"$work/err"
check "--max-skipped accepts them, exit 0" test $? -eq 0

# ---- same bits: threads, order of work, interruption ----
pre --images "$pictures/train" --cache "$work/one.kdc" --views 2 2>/dev/null
check "a cache is sealed, exit 0" test $? -eq 0
check "sealing leaves no partial file" test ! -e "$work/one.kdc.partial"
"$KD_BIN/kd-precompute" --weights "$weights" --device cpu --threads 1 --images "$pictures/train" --cache "$work/threads.kdc" --views 2 2>/dev/null
# The compute-thread count is part of the bits' promise only for training; on the cpu backend a row's result doesn't depend on it either.
check "1 and 2 threads give byte-equal sealed caches" cmp "$work/one.kdc" "$work/threads.kdc"

kills=0
for delay in 0.1 0.2 0.3 0.4 0.6 0.9; do
    # Not through pre: the signal must reach the program, not a shell around it.
    "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --threads 2 --images "$pictures/train" --cache "$work/killed.kdc" --views 24 --batch-size 4 2>/dev/null &
    pid=$!
    sleep "$delay"
    kill -KILL $pid 2>/dev/null && kills=$((kills + 1))
    wait $pid 2>/dev/null
done
echo "killed $kills times"
pre --images "$pictures/train" --cache "$work/killed.kdc" --views 24 --batch-size 4 2>/dev/null
check "after SIGKILLs the same command completes" test $? -eq 0
pre --images "$pictures/train" --cache "$work/batch.kdc" --views 24 --batch-size 4 2>/dev/null
check "an interrupted and an uninterrupted precompute are byte-equal" cmp "$work/batch.kdc" "$work/killed.kdc"
pre --images "$pictures/train" --cache "$work/one.kdc" --views 2 2>"$work/err"
check "a sealed cache is left alone, exit 0" test $? -eq 0

# ---- identity and space ----
pre --images "$pictures/train" --cache "$work/one.kdc" --views 2 --seed 1 2>"$work/err"
check "another seed is refused, exit 13" test $? -eq 13
check "the sentence names the field" grep -q seed "$work/err"
# 36 images x 65,536 views of 80 x 80 patches: terabytes.
pre --images "$pictures/train" --cache "$work/huge.kdc" --views 65536 --image-size 1120 2>"$work/err"
check "the free-space guard stops before the first image, exit 14" test $? -eq 14
check "and prints a command that fits" grep -q -- '--budget' "$work/err"
check "and leaves nothing behind" test ! -e "$work/huge.kdc.partial"
pre --images "$pictures/train" --cache "$work/budget.kdc" --views 8 --budget 3MB --json >"$work/out" 2>/dev/null
check "--budget chooses what fits" test "$(stat -c %s "$work/budget.kdc")" -le 3000000
pre --images "$pictures/train" --cache "$work/dry.kdc" --dry-run 2>/dev/null
check "--dry-run touches nothing" test ! -e "$work/dry.kdc" -a ! -e "$work/dry.kdc.partial"

# ---- usage ----
pre --images "$pictures/train" --cache "$work/x.kdc" --viewz 2 2>"$work/err"
check "an unknown option is a usage error, exit 2" test $? -eq 2
check "with the nearest name" grep -q -- '--views' "$work/err"
pre --images "$work/nowhere" --cache "$work/x.kdc" 2>"$work/err"
check "a missing folder is a usage error, exit 2" test $? -eq 2
head -c 5000 "$weights" >"$work/cut.pth"
"$KD_BIN/kd-precompute" --weights "$work/cut.pth" --images "$pictures/train" --cache "$work/x.kdc" 2>"$work/err"
check "truncated weights are refused, exit 1" test $? -eq 1
check "by name" grep -q cut.pth "$work/err"
finish
