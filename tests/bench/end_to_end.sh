#!/bin/bash
# Whole programs on real photos beside the peers, in turn, medians; the table goes to tests/bench/results/end_to_end.md.
#   kd-precompute beside a PyTorch script that decodes, transforms, runs the same ViT and saves float16 features (peer_precompute.py), on one processor and on two;
#   kd-train of a ResNet-18 at 224 px from a cache beside LightlyTrain's distillation with the teacher in every step (peer_lightly.py), on two.
#     KD_TEST_DATA=DIR  holds caltech101.tar (required)    PYTHON=python3 with torch, torchvision, timm and Pillow (required), lightly-train
#     TURNS=3           of both parts; about 20 minutes on two quiet cores of 90 GFLOP/s    DEFAULT_TURNS=1   of LightlyTrain's defaults beside ours; 5 minutes more each; 0: none
#     TEACHERS="t s b"  ViT/14 of width 192, 384, 768 with generated weights          LIMIT=900         seconds that one command may take
#     OUT=FILE          another table
#     STEPS=4           that are timed of each training, after 2 that aren't          IMAGES=64         that are precomputed by ViT-S; twice as many by ViT-T
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${KD_BIN:?run me through make bench-end-to-end}" "${KD_TEST_DATA:?make bench-end-to-end KD_TEST_DATA=DIR, which holds caltech101.tar}"
python=${PYTHON:-python3} turns=${TURNS:-3} default_turns=${DEFAULT_TURNS:-1} limit=${LIMIT:-900} steps=${STEPS:-4} images=${IMAGES:-64}
read -r -a teachers <<<"${TEACHERS:-t s b}"
batch=32 skip=2 cores=$(($(nproc) > 1 ? 2 : 1))
work=$(mktemp -d "${TMPDIR:-/tmp}/kd-bench.XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
out=${OUT:-tests/bench/results/end_to_end.md}
mkdir -p tests/bench/results
# Pools that don't spin: loaders and compute share the processors. HOME: peers leave caches there.
export GOMP_SPINCOUNT=1000 OMP_WAIT_POLICY=passive HOME="$work"
declare -A width=([t]=192 [s]=384 [b]=768) title=([t]=ViT-T [s]=ViT-S [b]=ViT-B) cost speed peer_speed
precisions=(f32)
grep -qs avx512_bf16 /proc/cpuinfo && precisions+=(bf16)

has() { "$python" -c "import $1" >/dev/null 2>&1; }
version() { "$python" -c "import importlib.metadata as m; print(' '.join(p + ' ' + m.version(p).split('+')[0] for p in '$1'.split()))"; }
torch='' lightly=''
if has 'torch, torchvision, timm, PIL'; then
    torch=$(version 'torch torchvision timm pillow')
    has lightly_train && lightly=$(version lightly-train)
else
    echo "$python lacks torch, torchvision, timm or Pillow: the teachers' weights are made with them (PYTHON names another interpreter)" >&2
    exit 1
fi

# A command on the first N processors, its stdout; what it said is shown when it fails.
on() { # N COMMAND...
    local n=$1
    shift
    OMP_NUM_THREADS=$n timeout "$limit" taskset -c "0-$((n - 1))" "$@" 2>"$work/err" || { tail -n 5 "$work/err" >&2; echo "failed: $*" >&2; exit 1; }
}
median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "-" }'; }
number() { sed 's/.*"'"$1"'": *\([-0-9.e]*\).*/\1/'; } # KEY: its value in a line of JSON
photos() { # N: a folder of so many photos, spread over the set
    local dir=$work/photos-$1
    if [ ! -d "$dir" ]; then
        mkdir "$dir"
        tar -tf "$KD_TEST_DATA/caltech101.tar" | grep -i '/train/.*\.jpe\?g$' | awk -v n="$1" '{ name[NR] = $0 } END { for (i = 0; i < n && i < NR; i++) print name[1 + int(i * NR / n)] }' >"$work/list"
        tar -xf "$KD_TEST_DATA/caltech101.tar" -C "$dir" -T "$work/list"
    fi
    echo "$dir"
}
# "a b c" lines of several turns: the best median of the columns, with which column it is.
best() { # FILE
    local columns i m top=0 at=0
    columns=$(awk '{ print NF; exit }' "$1")
    for ((i = 1; i <= columns; i++)); do
        m=$(cut -d' ' -f"$i" "$1" | median)
        awk -v a="$m" -v b="$top" 'BEGIN { exit !(a > b) }' && top=$m at=$i
    done
    echo "$top $at"
}

# ---- precompute ----
# Images per second without the start: "seconds" of the summary, and sealing.
precompute() { # TEACHER CORES PRECISION PHOTOS CACHE [OPTIONS]
    local teacher=$1 n=$2 precision=$3 dir=$4 cache=$5
    shift 5
    rm -f "$cache"*
    on "$n" "$KD_BIN/kd-precompute" --images "$dir" --weights "$work/$teacher.pth" --cache "$cache" --views 1 --batch-size 16 --precision "$precision" --threads "$n" --device cpu --json "$@" |
        tail -n 1 >"$work/summary"
    awk -v views="$(number views <"$work/summary")" -v run="$(number seconds <"$work/summary")" -v seal="$(number seal <"$work/summary")" 'BEGIN { printf "%.2f\n", views / (run + seal) }'
}
precompute_row() { # TEACHER CORES PRECISION
    local dir workers=0,1,2 turn ours theirs at
    dir=$(photos $((images * ($([ "$1" = t ] && echo 2 || echo 1)))))
    [ "$2" != 1 ] || workers=0,1
    rm -f "$work/ours" "$work/theirs"
    for ((turn = 0; turn < turns; turn++)); do
        precompute "$1" "$2" "$3" "$dir" "$work/p.kdc" --store f16 >>"$work/ours"
        on "$2" "$python" tests/bench/peer_precompute.py run "$work/$1.pth" "$dir" "$work/features.npy" 16 "$2" "$workers" "$3" >>"$work/theirs"
    done
    ours=$(median <"$work/ours")
    read -r theirs at < <(best "$work/theirs")
    printf '| %s | %s | %s | %.1f | %.1f | **%s** | %s |\n' "${title[$1]}" "$2" "$3" "$ours" "$theirs" "$(ratio "$ours" "$theirs")" "$(cut -d, -f"$at" <<<"$workers")"
}

# ---- train ----
# Images per second of the steps behind the first ones, of a run that logs each step.
our_training() { # TEACHER PRECISION BATCH SKIP OPTIONS...
    local teacher=$1 precision=$2 size=$3 first=$4
    shift 4
    rm -rf "$work/run"
    on "$cores" "$KD_BIN/kd-train" --cache "$work/$teacher.kdc" --images "$work/cached" --student resnet18 --epochs 1 --batch-size "$size" --precision "$precision" --threads "$cores" --log-every 1 --device cpu \
        --out "$work/run" "$@" >/dev/null
    cp "$work/err" "$work/said-$teacher"
    grep images_per_s "$work/run/metrics.jsonl" | number images_per_s | awk -v first="$first" 'NR > first { s += 1 / $1; n++ } END { printf "%.3f\n", n / s }'
}
their_training() { # TEACHER PRECISION BATCH SKIP STEPS WORKERS
    on "$cores" "$python" tests/bench/peer_lightly.py "$work/$1.pth" "$(photos $(($3 * ($4 + $5))))" "$work/lightly" "$3" "$cores" "$6" "$2" "$4" | tail -n 1
}
# Loaders matter most where the teacher is small: what is best for the first teacher is taken for all.
choose_workers() {
    local a b
    a=$(their_training "${teachers[0]}" 32-true $batch $skip "$steps" 1)
    b=$(their_training "${teachers[0]}" 32-true $batch $skip "$steps" 2)
    awk -v a="$a" -v b="$b" 'BEGIN { print (a >= b ? 1 : 2) }'
}
train_row() { # TEACHER PRECISION
    local turn theirs=32-true ours
    [ "$2" != bf16 ] || theirs=bf16-mixed
    rm -f "$work/ours" "$work/theirs"
    for ((turn = 0; turn < turns; turn++)); do
        our_training "$1" "$2" $batch $skip --preset lightly-v3 --view-memory 0 >>"$work/ours"
        [ -z "$lightly" ] || their_training "$1" "$theirs" $batch $skip "$steps" "$workers" >>"$work/theirs"
    done
    ours=$(median <"$work/ours")
    [ -n "$lightly" ] || { printf '| %s | %s | %.2f | - | - |\n' "${title[$1]}" "$2" "$ours"; return; }
    theirs=$(median <"$work/theirs")
    if [ "$2" = f32 ]; then speed[$1]=$ours peer_speed[$1]=$theirs; fi
    printf '| %s | %s | %.2f | %.2f | **%s** |\n' "${title[$1]}" "$2" "$ours" "$theirs" "$(ratio "$ours" "$theirs")"
}
default_row() { # TEACHER
    local turn ours theirs timed=2
    [ "$1" != b ] || timed=1
    rm -f "$work/ours" "$work/theirs"
    for ((turn = 0; turn < default_turns; turn++)); do
        our_training "$1" "${precisions[-1]}" 64 $(((batch * (steps + skip)) / 64 + 1)) --epochs 2 >>"$work/ours"
        their_training "$1" auto 128 1 $timed auto >>"$work/theirs"
    done
    ours=$(median <"$work/ours") theirs=$(median <"$work/theirs")
    printf '| %s | %.2f | %.2f | **%s** |\n' "${title[$1]}" "$ours" "$theirs" "$(ratio "$ours" "$theirs")"
}
# Epochs after which views cached once, and training from them, have taken less time than a teacher in every step.
paid_back() { # TEACHER VIEWS
    awk -v views="$2" -v make="${cost[$1]}" -v ours="${speed[$1]}" -v theirs="${peer_speed[$1]}" 'BEGIN { d = 1 / theirs - 1 / ours; if (d > 0) printf "%.1f", views / make / d; else printf "never" }'
}
stage_table() { # FILE
    sed -n '/^where the time went/,$ { /^where\|^loader\|^  /p }' "$1" | sed 's/^/    /'
}

for t in "${teachers[@]}"; do "$python" tests/bench/peer_precompute.py weights "${width[$t]}" "$work/$t.pth"; done
{
    echo "# End to end: images per second of whole programs"
    echo
    echo "$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) processors. Photos of Caltech-101 (about 300 px), page cache warm; teachers are ViT/14 at 224 px, 12 blocks, with"
    echo "generated weights. Ours and the peer's ($torch${lightly:+, $lightly}) in turn, medians of $turns turns. Made by \`make bench-end-to-end\`."
    [ ${#precisions[@]} -gt 1 ] || echo "This processor has no bf16 arithmetic: its rows are left out."
    echo
    echo "## kd-precompute beside PyTorch"
    echo
    echo "Decode, one \"lightly\" view, the teacher's forward pass in batches of 16, CLS and patch features stored as float16. Ours with compression and sealing. Theirs: DataLoader, Pillow, torchvision, timm with fused"
    echo "attention, a memory-mapped .npy; the best of the numbers of loader processes that were tried. Start-up (program, weights, imports) isn't counted on either side."
    echo
    echo "| teacher | processors | precision | kdcache | PyTorch | ratio | its workers |"
    echo "|---|---|---|---|---|---|---|"
    for t in "${teachers[@]}"; do
        [ "$t" != b ] || continue # twelve times the time of ViT-T, and nothing new: the teacher alone
        for p in "${precisions[@]}"; do
            for ((n = 1; n <= cores; n++)); do precompute_row "$t" "$n" "$p"; done
        done
    done
    # One view of each image for the trainings: with what is held out, enough for their steps.
    cp -r "$(photos $(((batch * (steps + skip) * 105 + 99) / 100 + 4)))" "$work/cached"
    for t in "${teachers[@]}"; do cost[$t]=$(precompute "$t" "$cores" f32 "$work/cached" "$work/$t.kdc"); done
    echo
    echo "## kd-train beside LightlyTrain"
    echo
    if [ -n "$lightly" ]; then workers=$(choose_workers); else workers=0; fi
    echo "A ResNet-18 at 224 px in batches of $batch on $cores processors, every image once in an epoch, its \"lightly-v3\" losses on both sides; steps $((skip + 1)) to $((skip + steps)) of each run, waiting for images included, validation and"
    echo "checkpoints not. Ours decodes and proves every view anew (--view-memory 0), as in a set that is larger than the memory. Its loader has $workers workers, the better of 1 and 2. Aims in f32: 1.7, 2.6, 6."
    echo
    echo "| teacher | precision | kdcache | LightlyTrain | ratio |"
    echo "|---|---|---|---|---|"
    for t in "${teachers[@]}"; do for p in "${precisions[@]}"; do train_row "$t" "$p"; done; done
    if [ -n "$lightly" ] && [ "$default_turns" -gt 0 ]; then
        echo
        echo "Its defaults (batch 128, precision and workers \"auto\": float32 on any CPU) beside ours (batch 64, std-mse, views of earlier epochs in memory; ${precisions[-1]}), $default_turns turn$([ "$default_turns" = 1 ] || echo s). Aims: 3, 4, 8, with bf16."
        echo
        echo "| teacher | kdcache | LightlyTrain | ratio |"
        echo "|---|---|---|---|"
        for t in "${teachers[@]}"; do default_row "$t"; done
    fi
    echo
    echo "The cache has its price: a view must be computed once. In f32 and for one student, with every epoch after that at the speeds above:"
    echo
    echo "| teacher | views/s of kd-precompute, i8 | epochs until 1 view is paid back | until 8 views are |"
    echo "|---|---|---|---|"
    for t in "${teachers[@]}"; do
        [ -z "$lightly" ] || printf '| %s | %.1f | %s | %s |\n' "${title[$t]}" "${cost[$t]}" "$(paid_back "$t" 1)" "$(paid_back "$t" 8)"
    done
    echo
    echo "Where the time of kd-train went in the last of these runs (${title[${teachers[-1]}]}; a run of a few steps: start, validation and checkpoint are large beside them):"
    echo
    stage_table "$work/said-${teachers[-1]}"
} | tee "$work/table"
cp "$work/table" "$out"
