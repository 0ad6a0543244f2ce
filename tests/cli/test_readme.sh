#!/bin/bash
# Every "$ kd-..." command of the README and of docs/*.md runs, in its order, in a folder that has the names it uses: drawn pictures for photos, a tiny teacher for the official file. What makes the
# commands cheap is in `quick`; every option that a page shows is parsed and does its work.
. "$(dirname "$0")/../lib.sh"

cd "$work" || exit 1
"$KD_TEST_DIR/demo/draw_pictures" "$work/caltech101" 2 1 || exit 1
ln -s caltech101/train photos
for name in vitt14_dinov2_layout.pth dinov2_vits14_pretrain.pth; do ln -s "$top/tests/golden/models/tiny_dinov2.pth" $name; done
ln -s "$top/tests/golden/models/yolov8n_checkpoint.pt" yolov8n.pt
ln -s "$top/docs/augment/local.yaml" local.yaml
ln -s "$top/docs/losses/pairs.yaml" "$top/docs/losses/students.yaml" .
PATH=$KD_BIN:$PATH
kd-precompute --images photos --weights dinov2_vits14_pretrain.pth --cache photos.kdc --views 8 --device cpu 2>"$work/err" || { cat "$work/err"; exit 1; }
id=$(kd-cache list photos.kdc --json | sed -n '1s/.*"id": *"\([0-9a-f]*\)".*/\1/p')
precision=bf16
grep -qs avx512_bf16 /proc/cpuinfo || precision=f32

# The commands of one page, a line each.
commands_of() { sed -e ':join' -e '/\\$/{N;s/\\\n */ /;bjoin' -e '}' "$1" | sed -n 's/^    \$ \(kd-.*\)/\1/p'; }

# A command with less of everything, and with what depends on the machine: few epochs (a hundred unless told) and steps, small batches of two dozen pictures, and small views for students where the page
# doesn't say how large; 112 px when backends are compared, because in smaller maps rounding turns a ReLU too often; what a ViT is made for. "kd-train ..." stands for the command of any run.
quick() {
    local c=${1/#kd-train .../kd-train --cache photos.kdc --images photos --student resnet18 --out any-$ran}
    c=$(printf '%s' "$c" | sed "s/ *#.*//; s/--id ID/--id $id/; s/--precision bf16/--precision $precision/; s/--epochs [0-9]*/--epochs 2/; s/--warmup-epochs [0-9]*/--warmup-epochs 1/; s/--overfit-batch [0-9]*/--overfit-batch 10/; s/--steps [0-9]*/--steps 1/")
    if [[ $c == kd-train* ]]; then
        [[ $c == *--batch-size* ]] || c="$c --batch-size 8"
        [[ $c == *--epochs* ]] || c="$c --epochs 1"
        case $c in *--student-size*|*_224*|*--config*) ;; *--compare-backends*) c="$c --student-size 112" ;; *) c="$c --student-size 64" ;; esac
    fi
    printf '%s' "$c"
}

ran=0
for page in "$top"/README.md "$top"/docs/*.md; do
    [ "${page##*/}" = sharing.md ] && continue # test_sharing_docs.sh runs that one
    while IFS= read -r command; do
        command=$(quick "$command")
        begin=$SECONDS
        ( eval "$command" ) >"$work/out" 2>"$work/err" </dev/null
        status=$? # here, before anything else runs
        check "${page##*/}: $command ($((SECONDS - begin)) s)" test $status -eq 0
        ran=$((ran + 1))
    done < <(commands_of "$page")
done
check "the README and the pages show commands" test $ran -ge 10

# The targets that the README names exist.
for target in $(grep -o '`make [a-z]*`\|^    make [a-z]*' "$top/README.md" | grep -o 'make [a-z]*' | cut -d' ' -f2 | sort -u); do
    check "make $target is a target" grep -q "^$target:" "$top/Makefile"
done
finish
