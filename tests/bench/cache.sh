#!/bin/bash
# The cache as a store beside numpy.memmap, one .npy per sample and a WebDataset tar of the same data: durable writing, cold and warm random reads, bytes on the disk, decoding.
# Ours and the peers in turn in one run, medians; the table goes to tests/bench/results/cache.md. Wants python3 (or PYTHON) with numpy and webdataset, and 2 GB in FOLDER (default: TMPDIR).
set -eu
cd "$(dirname "$0")/../.."
: "${KD_TEST_DIR:?run me through make bench-cache}"
python=${PYTHON:-python3}
turns=${TURNS:-5}
bench=$KD_TEST_DIR/bench/bench_cache
work=$(mktemp -d "${FOLDER:-${TMPDIR:-/tmp}}/kd-bench.XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
export XDG_CACHE_HOME=$work/verdicts
"$python" -c 'import numpy, webdataset' || { echo 'the peers need numpy and webdataset (PYTHON names another interpreter)' >&2; exit 1; }
mkdir -p tests/bench/results
out=tests/bench/results/cache.md
median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
field() { sed "s/.*\"$1\": *\([0-9.]*\).*/\1/"; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.1f", a / b; else printf "-" }'; }
drop() { "$python" tests/bench/peer_cache.py drop "$@"; }

declare -A cold part warm write disk
ours() { # HOW COUNT: a tenth cold, all cold, then warm
    drop "$work/ours.kdc"
    part[$1]+="$(taskset -c 0 "$bench" read "$work/ours.kdc" "$1" $(($2 / 10)) | field mb_s)"$'\n'
    drop "$work/ours.kdc"
    cold[$1]+="$(taskset -c 0 "$bench" read "$work/ours.kdc" "$1" | field mb_s)"$'\n'
    warm[$1]+="$(taskset -c 0 "$bench" read "$work/ours.kdc" "$1" | field mb_s)"$'\n'
}
peer() { # KIND COUNT; a tar is read as far as a tenth
    drop "$work/$1"/*
    part[$1]+="$(taskset -c 0 "$python" tests/bench/peer_cache.py read "$1" "$work/$1" $(($2 / 10)) | field read_mb_s)"$'\n'
    drop "$work/$1"/*
    cold[$1]+="$(taskset -c 0 "$python" tests/bench/peer_cache.py read "$1" "$work/$1" | field read_mb_s)"$'\n'
    warm[$1]+="$(taskset -c 0 "$python" tests/bench/peer_cache.py read "$1" "$work/$1" | field read_mb_s)"$'\n'
}
# Sequential reads of a large file with O_DIRECT, MB/s.
roof() {
    "$bench" write "$work/ours.kdc" 400 800 >/dev/null
    LC_ALL=C dd if="$work/ours.kdc" of=/dev/null bs=4M iflag=direct 2>&1 | sed -n 's/.*, \([0-9.]*\) s, .*/\1/p' | awk -v b="$(stat -c %s "$work/ours.kdc")" '{ printf "%.0f", 1e-6 * b / $1 }'
}
size() { # KB COUNT
    local kb=$1 count=$2 i k line lmdb lmdb_part
    cold=() part=() warm=() write=() disk=()
    for ((i = 0; i < turns; i++)); do
        chmod -R u+w "$work"/ours.kdc* 2>/dev/null || true
        rm -rf "$work"/ours.kdc* "$work/memmap" "$work/npy" "$work/webdataset"
        line=$("$bench" write "$work/ours.kdc" "$kb" "$count")
        write[raw]+="$(field write_mb_s <<<"$line")"$'\n'
        write[seal]+="$(field seal_mb_s <<<"$line")"$'\n'
        disk[raw]=$(stat -c %s "$work/ours.kdc")
        for k in memmap npy webdataset; do
            line=$("$python" tests/bench/peer_cache.py write "$k" "$work/$k" "$kb" "$count")
            write[$k]+="$(field write_mb_s <<<"$line")"$'\n'
            disk[$k]=$(field disk_bytes <<<"$line")
        done
        sleep 3 # a verdict about the pages needs a file that was left alone
        "$bench" read "$work/ours.kdc" raw 1 >/dev/null
        for k in lmdb raw decoded; do ours "$k" "$count"; done
        for k in memmap npy webdataset; do peer "$k" "$count"; done
    done
    lmdb=$(printf '%s' "${cold[lmdb]}" | median)
    lmdb_part=$(printf '%s' "${part[lmdb]}" | median)
    echo "### $count records of $kb KB"
    echo
    echo "| | write, durable, MB/s | on disk, MB | cold, a tenth at random, MB/s | against LMDB | cold, all at random, MB/s | against LMDB | warm, MB/s |"
    echo "|---|---|---|---|---|---|---|---|"
    for k in raw decoded lmdb memmap npy webdataset; do
        local name w d
        case $k in
        raw) name='kdcache, checked' w="$(printf '%s' "${write[raw]}" | median) (sealing $(printf '%s' "${write[seal]}" | median))" d=${disk[raw]} ;;
        decoded) name='kdcache, checked and unpacked to f32' w= d= ;;
        lmdb) name='LMDB, plain, NORDAHEAD, same file' w= d= ;;
        memmap) name='numpy.memmap' w=$(printf '%s' "${write[$k]}" | median) d=${disk[$k]} ;;
        npy) name='a .npy per sample' w=$(printf '%s' "${write[$k]}" | median) d=${disk[$k]} ;;
        webdataset) name='WebDataset tar (in its order)' w=$(printf '%s' "${write[$k]}" | median) d=${disk[$k]} ;;
        esac
        local c t
        c=$(printf '%s' "${cold[$k]}" | median)
        t=$(printf '%s' "${part[$k]}" | median)
        printf '| %s | %s | %s | %.0f | %s | %.0f | %s | %.0f |\n' "$name" "$w" "${d:+$((d / 1000000))}" "$t" "$(ratio "$t" "$lmdb_part")" "$c" "$(ratio "$c" "$lmdb")" "$(printf '%s' "${warm[$k]}" | median)"
    done
    echo
}
decoding() { # DTYPE ROWS WIDTH
    local i all=
    for ((i = 0; i < turns; i++)); do all+="$(taskset -c 0 "$bench" decode "$@" | field gb_s_f16)"$'\n'; done
    printf '| %s | %s x %s | %.2f |\n' "$1" "$2" "$3" "$(printf '%s' "$all" | median)"
}
{
    echo "# The cache as a store"
    echo
    echo "$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) processors, $(df -T "$work" | awk 'NR == 2 { print $2 }'). Noise in f16, which no codec makes smaller. Reads pinned to one"
    echo "processor, one process, medians of $turns turns. Cold: the files are dropped from the page cache first (the host of a virtual machine may still have them). Ours asks for records 64 ahead and checks the"
    echo "XXH3-128 of each; plain LMDB looks at every byte by XXH3-64; the peers sum it. A tenth is what data larger than memory looks like: nothing that is read besides is of use; when all is read and fits, the kernel's
readahead ($(cat /sys/block/*/queue/read_ahead_kb 2>/dev/null | sort -n | tail -1) KiB here) brings in what a memmap will want later. The disk reads $(roof) MB/s in sequence past the page cache."
    echo
    size 40 4000
    size 200 1500
    size 400 800
    echo "### Unpacking on one thread: zstd, checks, rotation, to f32; GB/s of the same values in f16"
    echo
    echo "| stored as | rows x width | GB/s |"
    echo "|---|---|---|"
    decoding i8 256 384
    decoding i8 49 384
    decoding i8 256 768
    decoding f16 256 384
    decoding bf16 256 384
} | tee "$out"
