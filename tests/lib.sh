# Shared by the test scripts: a work folder, check, skip, finish. Source it; then `check "behaviour" COMMAND...`.
: "${KD_BIN:?run me through make}" "${KD_TEST_DIR:?run me through make}"
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-script.XXXXXX") || exit 1
trap 'chmod -R u+rwX "$work" 2>/dev/null; rm -rf "$work"' EXIT
failures=0

# check NAME COMMAND...: prints ok or not ok; on failure also what the programs said last ($work/err).
check() {
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        echo "not ok $name"
        [ -s "$work/err" ] && sed 's/^/    /' "$work/err" | tail -n 5
        failures=$((failures + 1))
    fi
}
skip() { echo "skip $1: needs $2"; }
finish() { exit $((failures > 0)); }
