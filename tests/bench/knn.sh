#!/bin/bash
# The exact search for neighbours beside faiss's flat inner-product index: from raw features to the 20 nearest of 50,000 for each of 5,000, ours and theirs in turn on one pinned processor, medians.
# Then what ImageNet would take, and a smaller search of many blocks whose peak of memory is held against its plan. Writes tests/bench/results/knn.md.
#     PYTHON an interpreter with faiss-cpu; TURNS=3; CORE=0 (pinned to it); ROWS=50000; QUERIES=5000
set -eu
cd "$(dirname "$0")/../.."
: "${KD_TEST_DIR:?run me through make bench-knn}"
python=${PYTHON:-python3}
turns=${TURNS:-3}
core=${CORE:-0}
rows=${ROWS:-50000}
queries=${QUERIES:-5000}
bench=$KD_TEST_DIR/bench/bench_knn
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
"$python" -c 'import numpy, faiss' || { echo 'the peer needs numpy and faiss-cpu (PYTHON names another interpreter)' >&2; exit 1; }
mkdir -p tests/bench/results
out=tests/bench/results/knn.md
median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([0-9.e+-]*\).*/\1/p"; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "-" }'; }
gib() { awk -v b="$1" 'BEGIN { printf "%.2f GiB", b / 1073741824 }'; }

peak=$(for i in 1 2 3; do taskset -c "$core" "$bench" peak | field gflops; done | median)
version=$("$python" -c 'import faiss; print(faiss.__version__)')

row() { # WIDTH
    local i line wall="" user="" their_wall="" their_user="" equal gflop
    gflop=$(awk -v r="$rows" -v q="$queries" -v w="$1" 'BEGIN { print 2e-9 * r * q * w }')
    "$python" tests/bench/peer_faiss.py data "$work" "$rows" "$queries" "$1"
    for ((i = 0; i < turns; i++)); do
        line=$(taskset -c "$core" "$bench" search "$work" "$1" 20)
        wall+="$(field wall_s <<<"$line")"$'\n' user+="$(field user_s <<<"$line")"$'\n'
        line=$(taskset -c "$core" "$python" tests/bench/peer_faiss.py search "$work" "$1" 20)
        their_wall+="$(field wall_s <<<"$line")"$'\n' their_user+="$(field user_s <<<"$line")"$'\n'
    done
    equal=$("$python" tests/bench/peer_faiss.py compare "$work" "$1" 20)
    wall=$(median <<<"${wall%$'\n'}") user=$(median <<<"${user%$'\n'}") their_wall=$(median <<<"${their_wall%$'\n'}") their_user=$(median <<<"${their_user%$'\n'}")
    printf '| %s | %s | %s | %s | **%s** | %s | %s | %s | %s %% | %s |\n' "$1" "$(ratio "$gflop" "$peak")" "$user" "$their_user" "$(ratio "$their_user" "$user")" "$wall" "$their_wall" \
        "$(ratio "$their_wall" "$wall")" "$(awk -v g="$gflop" -v u="$user" -v p="$peak" 'BEGIN { printf "%.0f", 100 * g / u / p }')" "$(printf '%.1e' "$(field worst <<<"$equal")")"
}

{
    echo "# Neighbours: exact search"
    echo
    echo "$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg) at the start. The 20 nearest of $rows rows for each of $queries queries, from raw features"
    echo "(lengths, index, search) to indices, on one pinned thread; ours (kd_neighbours_find, device cpu) and faiss $version (normalize_L2, IndexFlatIP) in turn, medians of $turns turns. User time is"
    echo "what counts on a machine that others use too. The roof is the products' multiply-adds at $peak GFLOP/s, which this processor does in registers (bench_knn peak), in user time as well. The last column:"
    echo "how far the similarities (in f64) of our neighbours are from the best ones, where the two lists differ; rounding in f32 explains 1e-7."
    echo
    echo "| width | roof, s | kdcache, user s | faiss, user s | ratio | kdcache, wall s | faiss, wall s | ratio | of the roof | worst |"
    echo "|---|---|---|---|---|---|---|---|---|---|"
    row 384
    row 768
    echo
    plan=$("$bench" plan 1281167 50000 768 200)
    echo "ImageNet, planned: $(head -n 1 <<<"$plan"). At the speed of one processor's roof that is $(awk -v f="$(field flops <<<"$plan")" -v p="$peak" 'BEGIN { printf "%.0f", f / p / 6e10 }') minutes."
    echo
    many=$("$bench" drawn 60000 3000 64 200)
    before=$(field before_bytes <<<"$many") top=$(field peak_bytes <<<"$many") host=$(field host_bytes <<<"$many")
    echo "The same in small, run: $(head -n 1 <<<"$many"). Resident memory rose by $(gib $((top - before))) in the search; the plan said $(gib "$host")."
} | tee "$out"
