#!/bin/bash
# The programs on disks that fill up while they run, and on places that nothing can be written to. (What a writer's own steps do then: tests/fault.)
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 3 1 || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
command=("$KD_BIN/kd-precompute" --weights "$weights" --device cpu --threads 2 --images "$pictures/train" --views 8 --batch-size 4)
file_system() { df --output=target "$1" | tail -n 1; }
says() { grep -qF -- "$1" "$work/err"; }

"${command[@]}" --cache "$work/whole.kdc" 2>"$work/err"
check "a cache is made" test $? -eq 0

# ---- a limit on file sizes ----
(ulimit -f 400; exec "${command[@]}" --cache "$work/limited.kdc") 2>"$work/err"
check "a limit on file sizes is a full disk, exit 14, no signal" test $? -eq 14
check "the sentence names the file system" says "the file system at $(file_system "$work") ("
check "and what is free there" says ' free '
check "no lock, probe or half sealed file is left" test -z "$(find "$work" -name 'limited.kdc.*' ! -name '*.partial')"
"${command[@]}" --cache "$work/limited.kdc" 2>"$work/err"
check "without the limit the same command completes it" cmp "$work/whole.kdc" "$work/limited.kdc"

# ---- a disk that others fill ----
small=$work/small
mkdir "$small"
if mount -t tmpfs -o size=64m kdcache-test "$small" 2>/dev/null; then
    trap 'umount -l "$small" 2>/dev/null; chmod -R u+rwX "$work" 2>/dev/null; rm -rf "$work"' EXIT
    "${command[@]}" --cache "$small/a.kdc" 2>"$work/err" &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ ! -s "$small/a.kdc.partial" ]; do sleep 0.01; done
    kill -STOP $pid
    dd if=/dev/zero of="$small/others" bs=64k 2>/dev/null
    kill -CONT $pid
    wait $pid
    check "a disk that fills up while it runs ends with 14" test $? -eq 14
    check "the full disk is named by its mount point" says "the file system at $small (tmpfs) has 0 B free"
    rm "$small/others"
    "${command[@]}" --cache "$small/a.kdc" 2>"$work/err"
    check "with room the same command completes the cache" cmp "$work/whole.kdc" "$small/a.kdc"
    umount "$small"
else
    for name in "a disk that fills up while it runs ends with 14" "the full disk is named by its mount point" "with room the same command completes the cache"; do
        skip "$name" "root, to mount a small file system"
    done
fi

# ---- read-only ----
shared=$work/shared
mkdir "$shared"
cp "$work/whole.kdc" "$work/whole.kdc.json" "$shared"
if unshare -m true 2>/dev/null; then
    # shellcheck disable=SC2016
    unshare -m sh -c 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && ! touch "$1/x" 2>/dev/null && "$2" check "$1" && "$2" info "$1/whole.kdc"' sh "$shared" "$KD_BIN/kd-cache" >"$work/out" 2>"$work/err"
    check "a shard is checked on a read-only mount" test $? -eq 0
    check "no lock file appears beside it" test "$(ls "$shared" | wc -l)" -eq 2
else
    skip "a shard is checked on a read-only mount" "root and a mount namespace (unshare -m)"
    skip "no lock file appears beside it" "root and a mount namespace (unshare -m)"
fi

finish
