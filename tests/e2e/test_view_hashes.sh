#!/bin/bash
# The same bits everywhere: plans and hashes of views are equal at any number of threads, under load, with the SIMD of the JPEG decoder on and off, in builds with and without optimisation, when
# they are made and when they are replayed; and what differs stops a training with a sentence.
. "$(dirname "$0")/../lib.sh"
kd=$KD_BIN/kd-cache
weights=$top/tests/golden/models/tiny_dinov2.pth

# Drawn photos, and every kind of file that the golden tests have: progressive, subsampled, gray, CMYK, PNG with transparency, ...
pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 1 1 >/dev/null || exit 1
cp "$top"/tests/golden/image/views/*.jpg "$top"/tests/golden/image/pictures/*.* "$pictures/train"
rm "$pictures"/train/*.txt
pre() { # NAME AUGMENT THREADS [COMMAND...]: $work/NAME.kdc and the list of its views, by that many threads, under that command
    local name=$1 augment=$2 threads=$3
    shift 3
    timeout 120 "$@" "$KD_BIN/kd-precompute" --weights "$weights" --device cpu --features cls --images "$pictures/train" --views 5 --image-size 98 --augment "$augment" --threads "$threads" \
        --max-skipped 100 --cache "$work/$name.kdc" >"$work/out" 2>"$work/err" && "$kd" list "$work/$name.kdc" --json >"$work/$name.list"
}
same() { cmp -s "$work/$1.list" "$work/$2.list" && cmp -s "$work/$1.kdc" "$work/$2.kdc"; }
replays() { # PRESET THREADS KD_CACHE...: every view of the cache is the teacher's
    local cache=$work/$1 threads=$2
    shift 2
    timeout 120 "$@" check "$cache.kdc" --images "$pictures/train" --threads "$threads" >"$work/out" 2>"$work/err" && grep -q "^$(wc -l <"$cache.list") views replayed: 0 differ, 0 more lack" "$work/out"
}

presets='dino lightly lightly+mixup eval'
for augment in $presets; do
    pre "$augment" "$augment" 1
    check "$augment: a cache of views is made" test -s "$work/$augment.list"
    for threads in 2 8 64; do
        [ $threads = 64 ] || [ "$augment" = dino ] || continue
        check "$augment: $threads threads give the same plans, hashes and bytes as one" eval "pre $threads $augment $threads && same $augment $threads"
        rm -f "$work/$threads".*
    done
    check "$augment: and so does the JPEG decoder without SIMD" eval "pre plain $augment 2 env JSIMD_FORCENONE=1 && same $augment plain"
    rm -f "$work"/plain.*
done
views=$(wc -l <"$work/dino.list")
check "each list has views of more than 20 files" test "$views" -ge 100
# Pictures of one colour or one pixel look the same in several.
check "the presets' views differ" test "$(for a in $presets; do sed 's/.*"hash":"\([0-9a-f]*\)".*/\1/' "$work/$a.list" | sort -u; done | sort | uniq -d | wc -l)" -lt $((views / 10))

# Two busy loops beside it, and less priority than they have.
for i in 1 2; do (while :; do :; done) & busy="$busy $!"; done
check "under load, at a low priority: the same" eval 'pre load dino 8 nice -n 5 && same dino load'
kill $busy
wait $busy 2>/dev/null

for augment in $presets; do
    check "$augment: replayed by 1 thread, every view is the teacher's" replays "$augment" 1 "$kd"
    check "$augment: and by 64 without the decoder's SIMD" replays "$augment" 64 env JSIMD_FORCENONE=1 "$kd"
done

# The image layer is built with -O3; here once more without any optimisation. tests/reference/check_builds.sh has more compilers and flags.
env -u MAKEFLAGS -u MFLAGS -u MAKEOVERRIDES -u MAKELEVEL make -s -j2 -C "$top" BUILD="$work/o0" OBJ="$work/o0/obj" 'ALL_CFLAGS=$(BASE_CFLAGS) -O0' "$work/o0/bin/kd-cache" "$work/o0/obj/tests/unit/test_augment" >"$work/out" 2>"$work/err"
check "kd-cache is built with -O0" test -x "$work/o0/bin/kd-cache"
for augment in $presets; do
    check "$augment: replayed at -O0, every view is the same" replays "$augment" 2 "$work/o0/bin/kd-cache"
done
check "plans are drawn the same at -O0, and views equal Pillow's" eval 'cd "$top" && "$work/o0/obj/tests/unit/test_augment" >"$work/out" 2>&1'

# ---- training proves its views too ----
train() { # PRESET OPTIONS...
    timeout 120 "$KD_BIN/kd-train" --student dinov2_w64_d1 --device cpu --threads 8 --epochs 1 --batch-size 8 --patch-weight 0 --cache "$work/$1.kdc" "${@:2}" >"$work/out" 2>"$work/err"
}
check "kd-train replays the views of the teacher" train dino --images "$pictures/train" --out "$work/run"
check "and mixed ones, without the decoder's SIMD" eval 'export JSIMD_FORCENONE=1; train lightly+mixup --images "$pictures/train" --out "$work/run2"; s=$?; unset JSIMD_FORCENONE; [ $s = 0 ]'
# Every picture is another one of the same size in bytes and pixels, at the recorded path.
cp -r "$pictures/train" "$work/changed"
for f in "$work"/changed/*/*.jpg; do # the entropy-coded data: no marker appears or goes
    at=$(($(stat -c %s "$f") * 3 / 4))
    printf '\x55' | dd of="$f" bs=1 seek=$at conv=notrunc 2>/dev/null
done
train dino --images "$work/changed" --out "$work/run3"
check "changed pictures stop kd-train with exit 13" test $? -eq 13
check "naming image, view, both hashes and the cause" grep -Eq 'changed/.*: image [0-9a-f]{32}, view [0-4]: the view.s hash is [0-9a-f]{32} and the teacher saw [0-9a-f]{32}, because the file was changed' "$work/err"
finish
