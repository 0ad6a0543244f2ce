#!/bin/bash
# Runs the test binaries (KD_TEST_DIR) and test scripts (tests/*/test_*.sh), as many at a time as there are processors, goes on
# after failures, and ends with one line: N passed, N failed, N skipped. Each suite is a line when it ends, followed by all that it
# printed when something failed. Status 1 when anything failed, crashed, ran out of time, or skipped without being allowed by
# tests/skips.txt.
#
#   SUITES=unit,ops   only these folders        TESTS=word   only files whose name contains it
#   KD_NO_SCRIPTS=1   no scripts                KD_VERBOSE=1 print the output of passing tests too
#   KD_TEST_JOBS=1    one at a time
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

# Suites at a time: one for each processor and 2 GB of free memory.
if [ -z "$KD_TEST_JOBS" ]; then
    KD_TEST_JOBS=$(nproc 2>/dev/null || echo 2)
    room=$(awk '/^MemAvailable:/ { print int($2 / 2000000) }' /proc/meminfo 2>/dev/null)
    [ "${room:-$KD_TEST_JOBS}" -lt "$KD_TEST_JOBS" ] && KD_TEST_JOBS=$((room > 1 ? room : 1))
fi
# The longest suites start first, so that none of them is left alone on one processor in the end.
longest="e2e/test_train_kills.sh e2e/test_train_resume.sh unit/test_train_step cli/test_readme.sh e2e/test_many_students.sh e2e/test_shards.sh e2e/test_view_hashes.sh unit/test_model_families"

work=$(mktemp -d "${TMPDIR:-/tmp}/kd-test.XXXXXX") || exit 1
declare -A running=() started=() folder_of=() # by process id: FOLDER/NAME, second of the start, work folder
stop() { # STATUS: takes the running suites along; each is a process group of `timeout`
    [ ${#running[@]} -gt 0 ] && kill "${!running[@]}" 2>/dev/null && echo "stopped in ${running[*]}"
    wait
    exit "$1"
}
trap 'chmod -R u+rwX "$work" 2>/dev/null; rm -rf "$work"' EXIT
trap 'stop 130' INT
trap 'stop 143' TERM
passed=0 failed=0 skipped=0 unlisted=0 suites=0

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

limit_of() { [[ $1 == *.sh ]] && echo "$SCRIPT_SECONDS" || echo "$BINARY_SECONDS"; }

start() { # FOLDER/NAME, with a work folder of its own; what programs remember of caches and images (verdicts) stays in it too
    local name=$1 dir=$work/$((suites += 1)) command=("$KD_TEST_DIR/$1")
    [[ $name == *.sh ]] && command=(bash "tests/$name")
    mkdir -p "$dir/tmp"
    TMPDIR=$dir/tmp XDG_CACHE_HOME=$dir/cache timeout -k 10 "$(limit_of "$name")" nice -n 5 "${command[@]}" >"$dir/log" 2>&1 </dev/null &
    running[$!]=$name started[$!]=$SECONDS folder_of[$!]=$dir
}

report() { # FOLDER/NAME, work folder, status, seconds: counts and prints what a suite did
    local name=$1 log=$2/log status=$3 kind=binary p f s=0 line lines
    [[ $name == *.sh ]] && kind=script
    { read -r p f; mapfile -t lines; } < <(count "$kind" "$log")
    for line in "${lines[@]}"; do
        s=$((s + 1))
        if ! allowed_skip "$name:${line#skip }"; then
            unlisted=$((unlisted + 1))
            echo "  skip that tests/skips.txt does not allow: $name:${line#skip }"
        fi
    done
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then # crashed, or failed outside its tests
        f=1
        if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then echo "not ok: stopped after $(limit_of "$name") s" >>"$log"; else echo "not ok: ended with status $status" >>"$log"; fi
    elif [ $((p + f + s)) -eq 0 ]; then
        f=1
        echo "not ok: no test was run" >>"$log"
    fi
    printf '%-44s %4d passed %3d failed %3d skipped %4d s\n' "$name" "$p" "$f" "$s" "$4"
    if [ "$f" -gt 0 ] || [ -n "$KD_VERBOSE" ]; then sed 's/^/    /' "$log"; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# Waits until a suite has ended, and reports all that have.
collect() {
    local pid status
    wait -n
    for pid in "${!running[@]}"; do
        kill -0 "$pid" 2>/dev/null && continue
        wait "$pid"
        status=$?
        report "${running[$pid]}" "${folder_of[$pid]}" $status $((SECONDS - started[$pid]))
        chmod -R u+rwX "${folder_of[$pid]}" 2>/dev/null
        rm -rf "${folder_of[$pid]}"
        unset "running[$pid]" "started[$pid]" "folder_of[$pid]"
    done
}

# FOLDER/NAME of every suite that is wanted; scripts keep their ending.
list() {
    local folder source
    for folder in unit ops golden cli fault e2e; do
        for source in tests/"$folder"/test_*.c; do
            [ -f "$source" ] && wanted "$folder" "$(basename "$source" .c)" && echo "$folder/$(basename "$source" .c)"
        done
        [ -n "$KD_NO_SCRIPTS" ] && continue
        for source in tests/"$folder"/test_*.sh; do
            [ -f "$source" ] && wanted "$folder" "$(basename "$source")" && echo "$folder/$(basename "$source")"
        done
    done
}

list >"$work/names"
for name in $(printf '%s\n' $longest | grep -Fxf "$work/names"; printf '%s\n' $longest | grep -Fxvf - "$work/names"); do
    [ ${#running[@]} -lt "$KD_TEST_JOBS" ] || collect
    start "$name"
done
while [ ${#running[@]} -gt 0 ]; do collect; done

[ "$unlisted" -gt 0 ] && echo "$unlisted skips are not allowed by tests/skips.txt"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$unlisted" -eq 0 ] && [ "$passed" -gt 0 ]
