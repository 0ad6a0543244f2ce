#!/bin/bash
# A cache as a folder of shards: rotation, interruption, parts of an array, more views and images, staging, hidden file names, filling what is missing, Slurm.
. "$(dirname "$0")/../lib.sh"
kd=$KD_BIN/kd-cache
weights=$top/tests/golden/models/tiny_dinov2.pth
shim=$KD_TEST_DIR/cli/shim_statfs.so
"$KD_TEST_DIR/demo/draw_pictures" "$work/drawn" 3 1 >/dev/null || exit 1
set=$work/drawn/train
unset ${!SLURM_*}
command=("$KD_BIN/kd-precompute" --weights "$weights" --device cpu --threads 2 --images "$set" --image-size 56 --batch-size 4)
pre() { timeout 120 "${command[@]}" "$@" >"$work/out" 2>"$work/err"; }
gives() { local want=$1; shift; "$@"; [ $? -eq "$want" ]; }
views() { "$kd" list "$1" --json | sort; } # every view with its plan, hash and path
content() { "$kd" info "$1" --json | tr -d ' \n' | grep -o '"images":[0-9]*\|"views":[0-9]*' | tr '\n' ' '; }
same_views() { views "$1" >"$work/a"; views "$2" >"$work/b"; [ -s "$work/a" ] && cmp "$work/a" "$work/b"; }
shards() { (cd "$1" && ls) | grep -c '\.kdc$'; }
same_shards() { local f; [ "$(shards "$1")" = "$(shards "$2")" ] && for f in "$1"/*.kdc; do cmp "$f" "$2/$(basename "$f")" || return 1; done; }
clean() { ! ls -A "$1" | grep -qv '\.kdc$\|\.kdc\.json$'; } # nothing but shards and manifests
# A SIGKILL some time after the first unfinished file is there.
killed=0
run_and_kill() { # DELAY FOLDER ARGUMENTS
    local delay=$1 folder=$2 pid i
    shift 2
    "${command[@]}" "$@" 2>/dev/null &
    pid=$!
    for i in $(seq 200); do
        [ -n "$(find "$folder" -name '*.partial' 2>/dev/null)" ] && break
        sleep 0.02
    done
    sleep "$delay"
    kill -KILL $pid 2>/dev/null && killed=$((killed + 1))
    wait $pid 2>/dev/null
}

# ---- one folder, one run ----
check "one file, to compare with" pre --views 4 --cache "$work/one.kdc"
count=$(views "$work/one.kdc" | wc -l)
check "a folder of small shards is made" pre --views 4 --cache "$work/small/" --shard-size 60KB
check "of several shards and nothing else" eval '[ "$(shards "$work/small")" -ge 4 ] && clean "$work/small"'
check "with the views and hashes of one file" same_views "$work/one.kdc" "$work/small"
check "images aren't divided among shards" eval 'for f in "$work"/small/*.kdc; do "$kd" list "$f" --json | grep -o "\"id\":\"[0-9a-f]*\"" | sort -u; done | sort | uniq -d | wc -l | grep -qx 0'
check "the folder is checked like one file" eval 'timeout 120 "$kd" check "$work/small" --images "$set" >"$work/out" 2>"$work/err"'
check "the same command again has nothing to do" eval 'pre --views 4 --cache "$work/small/" --shard-size 60KB && grep -q " 0 new at" "$work/err" && clean "$work/small"'
check "without the slash too, as the folder exists" eval 'pre --views 4 --cache "$work/small" --shard-size 60KB && grep -q " 0 new at" "$work/err"'
check "another seed is refused by name, exit 13" eval 'gives 13 pre --views 4 --cache "$work/small" --seed 1 && grep -q seed "$work/err"'

check "--dry-run makes no folder" eval 'pre --views 4 --cache "$work/none/" --dry-run && [ ! -e "$work/none" ]'
check "a cache that doesn.t fit is refused before the first image and leaves no folder, exit 14" eval 'gives 14 pre --views 65536 --image-size 1120 --cache "$work/none/" && [ ! -e "$work/none" ]'

# ---- interrupted ----
for delay in 0.02 0.05 0.1 0.15 0.2 0.3 0.1 0.05; do
    run_and_kill "$delay" "$work/killed" --views 4 --cache "$work/killed" --shard-size 60KB
done
echo "killed $killed times"
check "after kills the same command completes" pre --views 4 --cache "$work/killed" --shard-size 60KB
check "with shards that are byte-equal to those of an uninterrupted run" same_shards "$work/small" "$work/killed"
"${command[@]}" --views 3000 --cache "$work/locked" 2>/dev/null &
pid=$!
for i in $(seq 200); do [ -e "$work/locked/shard-00000.kdc.partial" ] && break; sleep 0.05; done
check "a second writer of a folder is refused at once, exit 11" gives 11 pre --views 3000 --cache "$work/locked"
kill -KILL $pid
wait $pid 2>/dev/null

# ---- more views, more images ----
check "a folder with fewer views" pre --views 2 --cache "$work/grown"
cp "$work/grown/shard-00000.kdc" "$work/first.kdc"
check "more views go to a new shard" eval 'pre --views 4 --cache "$work/grown" && [ "$(shards "$work/grown")" = 2 ] && cmp "$work/first.kdc" "$work/grown/shard-00000.kdc"'
check "and only the missing ones are computed" grep -q "; $((count / 2)) new at" "$work/err"
check "together they are what one run makes" same_views "$work/one.kdc" "$work/grown"
few=$work/few
mkdir "$few"
for f in $(cd "$set" && find . -name '*.jpg' | sort | head -n 5); do mkdir -p "$few/$(dirname "$f")"; cp "$set/$f" "$few/$f"; done
check "a few images" pre --images "$few" --views 4 --cache "$work/more"
check "more images go to a new shard" eval 'pre --views 4 --cache "$work/more" && [ "$(shards "$work/more")" = 2 ] && same_views "$work/one.kdc" "$work/more"'
check "a sealed file that is asked for more views says how to make a folder of it, exit 13" eval 'gives 13 pre --views 5 --cache "$work/one.kdc" && grep -q "mkdir $work/one.shards && mv $work/one.kdc $work/one.kdc.json $work/one.shards/" "$work/err"'
check "what it says works" eval 'mkdir "$work/one" && cp "$work/one.kdc" "$work/one.kdc.json" "$work/one/" && pre --views 5 --cache "$work/one/" && [ "$(views "$work/one" | wc -l)" = $((count / 4 * 5)) ]'

# ---- parts ----
for i in 1 2 3; do
    pre --views 4 --cache "$work/parts" --shard $i/3 || failures=$((failures + 1))
    grep -q "part      $i of 3 (from --shard)" "$work/err" || failures=$((failures + 1))
done
check "three parts are written side by side" eval '[ "$(cd "$work/parts" && ls *.kdc | tr "\n" " ")" = "part-00001-of-00003-00000.kdc part-00002-of-00003-00000.kdc part-00003-of-00003-00000.kdc " ]'
check "together they are what one run makes" eval 'same_views "$work/one.kdc" "$work/parts" && content "$work/parts" | grep -q "\"images\":36" && content "$work/parts" | grep -q "\"views\":$count"'
check "a run of everything finds nothing missing" eval 'pre --views 4 --cache "$work/parts" && grep -q " 0 new at" "$work/err" && [ "$(shards "$work/parts")" = 3 ]'
check "--budget is that of all parts together" eval 'pre --cache "$work/none/" --shard 1/3 --budget 300KB --dry-run && grep -q "budget reduced the run to" "$work/err"'
check "parts need a folder, exit 2" eval 'gives 2 pre --cache "$work/x.kdc" --shard 1/3 && grep -q -- "--cache $work/x.shards/" "$work/err"'
check "a part that isn't one is a usage error, exit 2" gives 2 pre --cache "$work/x/" --shard 4/3
mkdir "$work/single"
cp "$(find "$set" -name '*.jpg' | sort | head -n 1)" "$work/single/a.jpg"
for i in 1 2 3 4; do pre --images "$work/single" --views 1 --cache "$work/empty" --shard $i/4 || failures=$((failures + 1)); done
check "parts without an image have nothing to do" eval '[ "$(shards "$work/empty")" = 1 ] && clean "$work/empty"'
for i in 1 2; do pre --views 2 --augment lightly+mixup --features cls --cache "$work/mixed" --shard $i/2 || failures=$((failures + 1)); done
check "parts of mixed views draw partners from all images" eval 'pre --views 2 --augment lightly+mixup --features cls --cache "$work/mixed.kdc" && same_views "$work/mixed.kdc" "$work/mixed"'

# ---- Slurm, without Slurm: the command of docs/slurm/precompute.sbatch, killed and put back in the queue ----
mkdir -p "$work/scratch" "$work/slurm"
batch() { # TASK [KILL-AFTER]
    (
        cd "$work" || exit 1
        export PATH="$KD_BIN:$PATH" SLURM_ARRAY_TASK_ID=$1 SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=1 SLURM_ARRAY_TASK_COUNT=2 SLURM_ARRAY_TASK_STEP=1 SLURM_CPUS_PER_TASK=2
        export IMAGES=$set WEIGHTS=$weights CACHE=$work/slurm STAGE=$work/scratch OPTIONS="--device cpu --image-size 56 --batch-size 4 --views 24"
        if [ -n "$2" ]; then timeout -s KILL "$2" bash "$top/docs/slurm/precompute.sbatch"; else timeout 120 bash "$top/docs/slurm/precompute.sbatch"; fi
    ) >"$work/out" 2>"$work/err"
}
batch 0 0.7
batch 0 0.9
check "a task that was put back in the queue completes" batch 0
check "its part comes from Slurm's variables" grep -q "part      1 of 2 (from Slurm's array task)" "$work/err"
check "as does the other one" batch 1
pre --views 24 --cache "$work/all.kdc"
check "the array makes what one run makes" same_views "$work/all.kdc" "$work/slurm"
check "and leaves nothing in the stage" eval 'clean "$work/slurm" && [ -z "$(ls -A "$work/scratch")" ]'
SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_COUNT=2 pre --views 1 --cache "$work/task.kdc"
check "a file in an array of jobs isn't divided" eval '[ "$(views "$work/task.kdc" | wc -l)" = $((count / 4)) ] && grep -q "not divided" "$work/err"'

# ---- network file systems ----
mkdir "$work/net"
on_net() { KD_SHIM_NETWORK=$(realpath "$work/net") LD_PRELOAD=$shim "$@"; }
check "writing on a network file system is refused with both ways out, exit 2" eval 'gives 2 on_net pre --views 1 --cache "$work/net/a.kdc" && grep -q "NFS.*--stage DIR.*--force" "$work/err" && [ -z "$(ls -A "$work/net")" ]'
check "--force writes there" on_net pre --views 1 --cache "$work/net/a.kdc" --force
check "a stage must be local" gives 2 on_net pre --views 1 --cache "$work/net/b/" --stage "$work/net/stage"
staged=(--views 4 --cache "$work/net/staged" --shard-size 60KB --stage "$work/stage")
killed=0
for delay in 0.02 0.05 0.1 0.15 0.2 0.3; do
    on_net run_and_kill "$delay" "$work/stage" "${staged[@]}"
done
echo "killed $killed times"
check "--stage writes elsewhere and moves shards, also after kills" on_net pre "${staged[@]}"
check "with the same bytes" eval 'same_shards "$work/small" "$work/net/staged" && clean "$work/net/staged"'
check "the stage is empty then" test -z "$(ls -A "$work/stage")"
check "one file is moved too" eval 'on_net pre --views 4 --cache "$work/net/one.kdc" --stage "$work/stage" && same_views "$work/small" "$work/net/one.kdc"'

# ---- hidden names, metadata ----
check "file names are hidden" eval 'pre --views 2 --cache "$work/hidden.kdc" --paths hash --dataset-name "drawn pictures" && views "$work/hidden.kdc" | grep -vc "\"path\":\"xxh128:[0-9a-f]\{32\}\"" | grep -qx 0'
check "and nowhere else in the cache" eval '! grep -aq "\.jpg" "$work/hidden.kdc" "$work/hidden.kdc.json"'
check "the images are found all the same" eval 'timeout 60 "$kd" check "$work/hidden.kdc" --images "$set" >"$work/out" 2>"$work/err" && grep -q " replayed: 0 differ, 0 more lack" "$work/out" && ! grep -q hashing "$work/err"'
train() { timeout 120 "$KD_BIN/kd-train" --student dinov2_w64_d1 --device cpu --threads 2 --epochs 1 --batch-size 4 --patch-weight 0 --val-fraction 0 --cache "$1" --images "$set" --out "$2" >"$work/out" 2>"$work/err"; }
check "kd-train replays them" eval 'train "$work/hidden.kdc" "$work/run" && ! grep -q "looking for them by content" "$work/err"'
check "the same command has nothing to do" eval 'pre --views 2 --cache "$work/hidden.kdc" --paths hash && grep -q "already sealed" "$work/err" && ! grep -q "aren.t in it" "$work/err"'
check "the manifest has the name, files and bytes of the set" eval 'files=$(find "$set" -name "*.jpg" | wc -l) && bytes=$(find "$set" -name "*.jpg" -printf "%s\n" | paste -sd+ | bc) &&
    grep -A4 "\"dataset\"" "$work/hidden.kdc.json" | tr -d " \n" | grep -q "\"dataset\":{\"bytes\":$bytes,\"files\":$files,\"name\":\"drawnpictures\"}"'

# ---- filling ----
fill=$work/fill
mkdir "$fill"
cp "$work"/small/* "$fill"
lost=$(ls "$fill"/*.kdc | sed -n 2p)
"$kd" list "$lost" --json | sed -E 's/.*"id":"([0-9a-f]*)".*"path":"([^"]*)","view":([0-9]*).*/\1 \3 \2/' >"$work/missing.txt"
chmod u+w "$lost"
rm "$lost" "$lost.json"
check "a list has views" test "$(grep -Ec '^[0-9a-f]{32} [0-9]+ .*\.jpg$' "$work/missing.txt")" -gt 4
check "--fill computes them into a new shard" eval 'pre --cache "$fill" --fill "$work/missing.txt" && grep -q "; $(wc -l <"$work/missing.txt") new at" "$work/err" && same_views "$work/small" "$fill"'
check "and doesn't say that a budget chose them" eval '! grep -q -e "--budget" "$work/err"'
rm -f "$fill"/shard-00001.kdc*
sed -E 's/[^ ]*\.jpg$/elsewhere.jpg/' "$work/missing.txt" | head -n 3 >"$work/some.txt"
check "files that moved are found by content" eval 'pre --cache "$fill" --fill "$work/some.txt" && grep -q "; 3 new at" "$work/err"'
echo '00000000000000000000000000000000 0 gone.jpg' >>"$work/some.txt"
check "images that no file has are listed, exit 3" eval 'gives 3 pre --cache "$fill" --fill "$work/some.txt" && grep -q gone.jpg "$fill/shard.skipped.tsv"'
echo '00000000000000000000000000000000 0 gone.jpg' >"$work/gone.txt"
check "a dry run without any of the images names no speed" eval 'pre --cache "$fill" --fill "$work/gone.txt" --dry-run && grep -q "no speed to measure" "$work/err"'
echo 'nonsense' >"$work/bad.txt"
check "a bad line is a usage error with its number, exit 2" eval 'gives 2 pre --cache "$fill" --fill "$work/bad.txt" && grep -q "bad.txt: line 1" "$work/err"'
check "--fill needs a folder, exit 2" gives 2 pre --cache "$work/one.kdc" --fill "$work/missing.txt"
finish
