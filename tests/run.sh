#!/bin/bash
# Runs the test binaries (KD_TEST_DIR) and test scripts (tests/*/test_*.sh) one after another, goes on after failures, and ends
# with one line: N passed, N failed, N skipped. Status 1 when anything failed, crashed, ran out of time, or skipped without being
# allowed by tests/skips.txt.
#
#   SUITES=unit,ops   only these folders        TESTS=word   only files whose name contains it
#   KD_NO_SCRIPTS=1   no scripts                KD_VERBOSE=1 print the output of passing tests too
#
# A script prints "ok NAME", "not ok NAME" or "skip NAME: what is missing", and ends with a status other than 0 on failure.
cd "$(dirname "$0")/.." || exit 1
: "${KD_TEST_DIR:?run me through make}"
BINARY_SECONDS=${BINARY_SECONDS:-300}
SCRIPT_SECONDS=${SCRIPT_SECONDS:-900}

# Spinning OpenMP threads of two processes on two cores slow each other down by an order of magnitude.
export GOMP_SPINCOUNT=1000 OMP_WAIT_POLICY=passive
export CMOCKA_MESSAGE_OUTPUT=TAP NO_COLOR=1 LC_ALL=C
# A relative path to the real photos is meant from the root of the repository.
[ -n "$KD_TEST_DATA" ] && [ -d "$KD_TEST_DATA" ] && KD_TEST_DATA=$(cd "$KD_TEST_DATA" && pwd)
export KD_TEST_DATA KD_BIN KD_LIB_DIR KD_TEST_DIR
# Tests ask for absurd sizes and expect NULL; children of tests start threads. 99: an exit code that no test expects of a child (with
# the usual 1, a child that a sanitizer ends would look like a verdict). A backend module has a copy of common/, of which the program's
# stands in front (see -rdynamic in the Makefile): two globals of one name are reported when their sizes differ.
# GCC 12's list of the modules' thread-local blocks can hold garbage, on which its leak check crashes: it does without.
export ASAN_OPTIONS="allocator_may_return_null=1:detect_odr_violation=1:intercept_tls_get_addr=0:exitcode=99:$ASAN_OPTIONS" UBSAN_OPTIONS="exitcode=99:$UBSAN_OPTIONS"
export TSAN_OPTIONS="allocator_may_return_null=1:die_after_fork=0:$TSAN_OPTIONS"
unset KD_LOG CMOCKA_XML_FILE

work=$(mktemp -d "${TMPDIR:-/tmp}/kd-test.XXXXXX") || exit 1
# What programs remember of caches and images (verdicts) stays out of the home folder.
export XDG_CACHE_HOME=$work/cache
trap 'chmod -R u+rwX "$work" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
passed=0 failed=0 skipped=0 unlisted=0

wanted() { # folder, file name
    [[ -z $SUITES || ,$SUITES, == *,$1,* ]] && [[ -z $TESTS || $2 == *"$TESTS"* ]]
}

allowed_skip() { # FOLDER/FILE:NAME against the patterns of tests/skips.txt
    local pattern
    while read -r pattern _; do
        [[ -z $pattern || $pattern == \#* ]] && continue
        # shellcheck disable=SC2053
        [[ $1 == $pattern ]] && return 0
    done <tests/skips.txt
    return 1
}

# Prints "passed failed" and a line "skip NAME" per skip, from the output of a cmocka binary or a script.
count() {
    awk -v kind="$1" '
        kind == "binary" && /^1\.\.[0-9]+$/              { planned += substr($0, 4) }
        kind == "binary" && /^(not )?ok [0-9]+.*# SKIP/  { name = $0; sub(/^(not )?ok [0-9]+ (- )?/, "", name); sub(/ ?# SKIP ?/, "", name); skip[++s] = name; next }
        kind == "binary" && /^ok [0-9]+ - /              { p++ }
        kind == "binary" && /^not ok [0-9]+/             { f++ }
        kind == "script" && /^ok /                       { p++ }
        kind == "script" && /^not ok /                   { f++ }
        kind == "script" && /^skip /                     { name = substr($0, 6); sub(/:.*/, "", name); skip[++s] = name }
        END {
            if (kind == "binary" && planned > p + f + s) f += planned - p - f - s   # it ended before its last test
            print p + 0, f + 0
            for (i = 1; i <= s; i++) print "skip", skip[i]
        }' "$2"
}

run_one() { # binary|script, FOLDER/NAME, seconds, command
    local kind=$1 name=$2 seconds=$3 log=$work/log p f s=0 status start=$SECONDS line
    shift 3
    mkdir -p "$work/tmp"
    TMPDIR=$work/tmp timeout -k 10 "$seconds" nice -n 5 "$@" >"$log" 2>&1 </dev/null
    status=$?
    { read -r p f; mapfile -t lines; } < <(count "$kind" "$log")
    for line in "${lines[@]}"; do
        s=$((s + 1))
        if ! allowed_skip "$name:${line#skip }"; then
            unlisted=$((unlisted + 1))
            echo "  skip that tests/skips.txt does not allow: $name:${line#skip }"
        fi
    done
    if [ $status -ne 0 ] && [ "$f" -eq 0 ]; then # crashed, or failed outside its tests
        f=1
        if [ $status -eq 124 ] || [ $status -eq 137 ]; then echo "not ok: stopped after $seconds s" >>"$log"; else echo "not ok: ended with status $status" >>"$log"; fi
    elif [ $((p + f + s)) -eq 0 ]; then
        f=1
        echo "not ok: no test was run" >>"$log"
    fi
    printf '%-44s %4d passed %3d failed %3d skipped %4d s\n' "$name" "$p" "$f" "$s" $((SECONDS - start))
    if [ "$f" -gt 0 ] || [ -n "$KD_VERBOSE" ]; then sed 's/^/    /' "$log" | tail -n 60; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    chmod -R u+rwX "$work/tmp" 2>/dev/null
    rm -rf "$work/tmp"
}

for folder in unit ops golden cli fault e2e; do
    for source in tests/"$folder"/test_*.c; do
        name=$(basename "$source" .c)
        [ -f "$source" ] && wanted "$folder" "$name" || continue
        run_one binary "$folder/$name" "$BINARY_SECONDS" "$KD_TEST_DIR/$folder/$name"
    done
    [ -n "$KD_NO_SCRIPTS" ] && continue
    for source in tests/"$folder"/test_*.sh; do
        name=$(basename "$source")
        [ -f "$source" ] && wanted "$folder" "$name" || continue
        run_one script "$folder/$name" "$SCRIPT_SECONDS" bash "$source"
    done
done

[ "$unlisted" -gt 0 ] && echo "$unlisted skips are not allowed by tests/skips.txt"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$unlisted" -eq 0 ] && [ "$passed" -gt 0 ]
