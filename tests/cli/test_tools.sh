#!/bin/bash
# The tools that guard the project are guarded: the test runner counts failures, crashes, time-outs, lost tests and unlisted skips;
# layers.sh finds what the include table forbids.
source "$(dirname "$0")/../lib.sh"

# ---- runner: a copy in a small tree, where the "test binaries" are scripts that print what cmocka would ----
tree=$work/tree
mkdir -p "$tree/tests/unit" "$tree/tests/cli" "$tree/bin/unit"
cp "$top/tests/run.sh" "$tree/tests/"
printf '# comment\nunit/test_a:allowed_*  reason\n' >"$tree/tests/skips.txt"

fake() { # NAME, body: a test binary
    : >"$tree/tests/unit/$1.c"
    printf '#!/bin/sh\n%s\n' "$2" >"$tree/bin/unit/$1"
    chmod +x "$tree/bin/unit/$1"
}
runs() { # expected last line, expected status: runs what fake made, then forgets it
    local last status
    KD_TEST_DIR=$tree/bin BINARY_SECONDS=${seconds:-1} SCRIPT_SECONDS=1 SUITES='' TESTS='' KD_NO_SCRIPTS='' bash "$tree/tests/run.sh" >"$work/err" 2>&1
    status=$?
    last=$(tail -n 1 "$work/err")
    rm -f "$tree"/tests/*/test_*
    [ "$last" = "$1" ] && [ $status = "$2" ]
}

fake test_a 'printf "1..2\nok 1 - one\nok 2 - two\n"'
check 'passing tests are counted' runs '2 passed, 0 failed, 0 skipped' 0
fake test_a 'printf "1..2\nok 1 - one\nnot ok 2 - two\n# file.c:5: error: Failure!\n"; exit 1'
fake test_b 'printf "1..1\nok 1 - one\n"'
check 'a failure is counted and the rest still runs' runs '2 passed, 1 failed, 0 skipped' 1
fake test_a 'printf "1..3\nok 1 - one\n"; kill -SEGV $$'
check 'a crash counts every test that was lost' runs '1 passed, 2 failed, 0 skipped' 1
fake test_a 'printf "1..3\nok 1 - one\n"; exit 0'
check 'an early end with status 0 is a failure' runs '1 passed, 2 failed, 0 skipped' 1
fake test_a 'printf "1..1\nok 1 - one\n"; exit 1'
check 'a status other than 0 is a failure though all tests passed' runs '1 passed, 1 failed, 0 skipped' 1
fake test_a 'exit 0'
check 'a binary without tests is a failure' runs '0 passed, 1 failed, 0 skipped' 1
fake test_a 'printf "1..1\n"; sleep 20'
check 'a test that hangs is stopped and fails' runs '0 passed, 1 failed, 0 skipped' 1
fake test_a 'printf "1..2\nok 1 - one\nok 2 # SKIP allowed_thing\n"'
check 'a listed skip is accepted' runs '1 passed, 0 failed, 1 skipped' 0
fake test_a 'printf "1..2\nok 1 - one\nnot ok 2 # SKIP allowed_thing\n"'
check 'a skip in the form of cmocka 1.1.5 is no failure' runs '1 passed, 0 failed, 1 skipped' 0
fake test_a 'printf "1..2\nok 1 - one\nok 2 # SKIP other_thing\n"'
check 'a skip that is not listed fails the run' runs '1 passed, 0 failed, 1 skipped' 1
: >"$tree/tests/unit/test_absent.c"
check 'a binary that was not built is a failure' runs '0 passed, 1 failed, 0 skipped' 1
check 'no tests at all is a failure' runs '0 passed, 0 failed, 0 skipped' 1
fake test_a 'printf "1..1\n"; seq -f "line %g of it" 200; printf "not ok 1 - one\n"; exit 1'
check 'a failure is counted among others' runs '0 passed, 1 failed, 0 skipped' 1
check 'and all that it printed is shown' test "$(grep -c '^    line [0-9]* of it$' "$work/err")" -eq 200
for name in a b; do # each ends when the other has begun
    fake test_$name "touch '$tree/$name'; while [ ! -e '$tree/a' ] || [ ! -e '$tree/b' ]; do sleep 0.02; done; printf '1..1\nok 1 - one\n'"
done
check 'two suites run at a time' eval 'seconds=20 KD_TEST_JOBS=2 runs "2 passed, 0 failed, 0 skipped" 0'
for name in a b; do fake test_$name "mkdir '$tree/alone' && sleep 0.1 && rmdir '$tree/alone' && printf '1..1\nok 1 - one\n'"; done
check 'or one at a time' eval 'seconds=20 KD_TEST_JOBS=1 runs "2 passed, 0 failed, 0 skipped" 0'
fake test_a "echo \$\$ >'$tree/pid'; sleep 20"
KD_TEST_DIR=$tree/bin SUITES='' TESTS='' bash "$tree/tests/run.sh" >"$work/err" 2>&1 &
runner=$!
while [ ! -s "$tree/pid" ]; do sleep 0.02; done
kill -TERM $runner
wait $runner
check 'a run that is stopped ends with 143' test $? -eq 143
check 'and names the suite that was running' grep -q 'stopped in unit/test_a' "$work/err"
check 'which it takes along' eval '! kill -0 "$(cat "$tree/pid")" 2>/dev/null'
rm -f "$tree"/tests/*/test_*
printf 'echo ok one\necho "not ok two"\necho "skip three: needs x"\nexit 1\n' >"$tree/tests/cli/test_s.sh"
check 'scripts are counted' runs '1 passed, 1 failed, 1 skipped' 1
printf 'echo ok one\nexit 3\n' >"$tree/tests/cli/test_s.sh"
check 'a script that ends with an error is a failure' runs '1 passed, 1 failed, 0 skipped' 1

# ---- layers.sh: a copy in a small tree with one violation each ----
tree=$work/layers
mkdir -p "$tree"/tests "$tree"/common/base "$tree"/common/image "$tree"/kernels/cpu "$tree"/kernels/ref "$tree"/cache "$tree"/precompute "$tree"/train
cp "$top/tests/layers.sh" "$tree/tests/"
for h in common/base/err.h kernels/ops.h kernels/cpu/cpu.h cache/store.h precompute/run.h train/step.h; do : >"$tree/$h"; done
layers() { # FILE, its lines, part of the complaint ('' = none expected)
    printf '%b' "$2" >"$tree/$1"
    bash "$tree/tests/layers.sh" >"$work/err" 2>&1
    local status=$?
    rm -f "$tree/$1" "$tree"/common/image/twin.c
    if [ -z "$3" ]; then [ $status = 0 ]; else [ $status = 1 ] && grep -qF "$3" "$work/err"; fi
}
check 'layers: what the table allows passes' layers train/x.c '#include "cache/store.h"\n#include "kernels/ops.h"\n#include <math.h>\n' ''
check 'layers: common knows nobody' layers common/base/x.c '#include "kernels/ops.h"\n' 'common/ may not include kernels/'
check 'layers: cache does not know kernels' layers cache/x.c '  #  include "kernels/ops.h"\n' 'cache/ may not include kernels/'
check 'layers: kernels does not know cache' layers kernels/x.c '#include "cache/store.h"\n' 'kernels/ may not include cache/'
check 'layers: train does not know precompute' layers train/x.h '#include "precompute/run.h"\n' 'train/ may not include precompute/'
check 'layers: precompute does not know train' layers precompute/x.c '#include "train/step.h"\n' 'precompute/ may not include train/'
check 'layers: a backend stays behind its vtable' layers kernels/ref/x.c '#include "kernels/cpu/cpu.h"\n' 'only the backend itself'
check 'layers: paths begin at the root' layers cache/x.c '#include "store.h"\n' 'not a path from the repository root'
check 'layers: lmdb has its home' layers train/x.c '#include <lmdb.h>\n' 'includes <lmdb.h>'
check 'layers: oneDNN stays in kernels/cpu' layers kernels/x.c '#include <dnnl.h>\n' 'whose home is'
check 'layers: CUDA stays in kernels/cuda' layers kernels/x.c '#include <cuda_runtime.h>\n' 'whose home is'
check 'layers: OpenSSL stays in hash.c' layers cache/x.c '#include <openssl/sha.h>\n' 'includes <openssl'
printf '#include <jpeglib.h>\n' >"$tree/common/image/twin.c"
check 'layers: one home, not two' layers common/image/x.c '#include <jpeglib.h>\n' 'has 2 homes instead of 1'
finish
