#!/bin/bash
# Views in other builds: kd-cache is built with other optimisation levels and compilers, and each replays every view of caches that the ordinary build made from real photos.
#
#     check_builds.sh IMAGES [BIN]        IMAGES: folder or list of photos; BIN: the ordinary build's programs (default bin/)
#
# For each build: the golden tests of plans and views (tests/unit/test_augment), then `kd-cache check --images` over a cache of each preset, with the SIMD of the JPEG decoder on and off.
# Prints a line per build and preset; status 1 when a view differs. KD_BUILDS picks builds, one a line: COMPILER | FLAGS. Takes a minute of CPU a build.
images=$(realpath "${1:?usage: check_builds.sh IMAGES [BIN]}") || exit 2
bin=$(realpath "${2:-$(dirname "$0")/../../bin}")
cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-builds.XXXXXX") || exit 1
trap 'chmod -R u+rwX "$work"; rm -rf "$work"' EXIT
builds=${KD_BUILDS:-"gcc | -O0
gcc | -O1
gcc | -O2
gcc | -O3
gcc | -Os
gcc | -O3 -march=native
clang | -O0
clang | -O3 -march=native"}
presets=${KD_PRESETS:-lightly lightly+mixup dino dino-1 crop-flip eval}
failed=0

for p in $presets; do
    "$bin/kd-precompute" --images "$images" --weights tests/golden/models/tiny_dinov2.pth --features cls --views 4 --augment "$p" --cache "$work/$p.kdc" 2>"$work/err" || { cat "$work/err"; exit 1; }
done
n=0
while IFS='|' read -r cc flags; do
    cc=${cc// /}
    n=$((n + 1))
    command -v "$cc" >/dev/null || { echo "skipped: $cc is not installed"; continue; }
    env -u MAKEFLAGS make -s -j2 CC="$cc" BUILD="$work/$n" OBJ="$work/$n/obj" "ALL_CFLAGS=\$(BASE_CFLAGS) $flags" "$work/$n/bin/kd-cache" "$work/$n/obj/tests/unit/test_augment" >"$work/err" 2>&1 ||
        { cat "$work/err"; failed=1; continue; }
    "$work/$n/obj/tests/unit/test_augment" >"$work/err" 2>&1 && result='golden plans and views equal' || { result='GOLDEN TESTS FAIL'; failed=1; }
    for p in $presets; do
        for none in '' 1; do
            line=$(JSIMD_FORCENONE=$none "$work/$n/bin/kd-cache" check "$work/$p.kdc" --images "$images" 2>/dev/null | grep ' views replayed: ')
            [[ $line == *" views replayed: 0 differ, 0 more"* ]] || failed=1
            result="$result; $p${none:+ without JPEG SIMD}: ${line%%,*}"
        done
    done
    echo "$cc$flags: $result"
done <<<"$builds"
exit $failed
