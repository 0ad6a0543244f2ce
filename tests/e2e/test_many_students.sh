#!/bin/bash
# Several students in one pass: each, whatever it is trained beside, ends in the bits that it has alone, also after an interruption; settings of its own, as text and as mappings; refusals.
. "$(dirname "$0")/../lib.sh"

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 3 1 || exit 1
cache=$work/x.kdc
"$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$top/tests/golden/models/tiny_dinov2.pth" --cache "$cache" --views 2 --image-size 56 --device cpu 2>"$work/err" || { cat "$work/err"; exit 1; }
train() { "$KD_BIN/kd-train" --cache "$cache" --images "$pictures/train" --epochs 3 --batch-size 8 --val-fraction 0.3 --log-every 1 --device cpu --threads 2 "$@"; }
# Everything in the metrics of one student but speeds.
numbers() { grep -F "\"student\":\"$2\"" "$1/metrics.jsonl" | sed 's/,"images_per_s":[^,}]*//; s/,"data_wait":[^,}]*//'; }

texts=(dinov2_w64_d1 dinov2_w64_d1,name=queue,loss=kl-queue+intra,lr=2e-4,queue-size=20 mobilenet_v3_small,name=cnn,loss=cosine,head=mlp,head-hidden=48,weight-decay=0.01,clip=0.5)
names=(dinov2_w64_d1 queue cnn)
together=(--student "${texts[0]}" --student "${texts[1]}" --student "${texts[2]}")
same_as_alone() { # NAME DIR: all three students of DIR are what they are alone
    local i which
    for i in 0 1 2; do
        for which in "" -best; do
            check "$1: ${names[i]}$which is bit-equal to training it alone" cmp "$work/alone-$i/exported/${names[i]}$which.safetensors" "$2/exported/${names[i]}$which.safetensors"
        done
        numbers "$2" "${names[i]}" >"$work/numbers"
        check "$1: and so are its metrics" test -s "$work/numbers" -a "$(cat "$work/numbers")" = "$(numbers "$work/alone-$i" "${names[i]}")"
    done
}

for i in 0 1 2; do
    train --student "${texts[i]}" --out "$work/alone-$i" 2>"$work/err"
    check "${names[i]} trains alone" test $? -eq 0
done
train "${together[@]}" --out "$work/three" 2>"$work/err"
check "three students train in one pass" test $? -eq 0
same_as_alone "together" "$work/three"
check "the settings of each are its own" test "$(grep -c 'learns std-mse' "$work/three/train.log")" -eq 1 -a "$(grep -c 'student queue learns kl-queue+intra' "$work/three/train.log")" -eq 1 -a \
    "$(grep -c 'student cnn learns cosine' "$work/three/train.log")" -eq 1
check "students of one model differ by them" test "$(cmp "$work/three/exported/queue.safetensors" "$work/three/exported/dinov2_w64_d1.safetensors" 2>&1 | wc -l)" -gt 0

# ---- the same as mappings, in another order ----
cat >"$work/students.yaml" <<YAML
student:
  - {model: mobilenet_v3_small, name: cnn, loss: cosine, head: mlp, head-hidden: 48, weight-decay: 0.01, clip: 0.5}
  - {model: dinov2_w64_d1, name: queue, loss: kl-queue+intra, lr: 2e-4, queue-size: 20}
  - dinov2_w64_d1
YAML
train --config "$work/students.yaml" --out "$work/yaml" 2>"$work/err"
check "students as mappings in a config file train" test $? -eq 0
same_as_alone "from mappings, in another order" "$work/yaml"

# ---- interrupted ----
train "${together[@]}" --out "$work/paused" --steps 1 2>/dev/null
train "${together[@]}" --out "$work/paused" --steps 4 2>/dev/null
train "${together[@]}" --out "$work/paused" 2>"$work/err"
check "a paused run of three goes on to its end" test $? -eq 0
same_as_alone "paused twice" "$work/paused"
"$KD_BIN/kd-train" --cache "$cache" --images "$pictures/train" --epochs 3 --batch-size 8 --val-fraction 0.3 --log-every 1 --device cpu --threads 2 "${together[@]}" --out "$work/killed" 2>/dev/null &
pid=$!
while kill -0 $pid 2>/dev/null && [ "$(cat "$work/killed/metrics.jsonl" 2>/dev/null | wc -l)" -lt 20 ]; do sleep 0.01; done
kill -KILL $pid 2>/dev/null
wait $pid 2>/dev/null
train "${together[@]}" --out "$work/killed" 2>"$work/err"
check "after SIGKILL the same command completes" test $? -eq 0
same_as_alone "after SIGKILL" "$work/killed"
"$KD_BIN/kd-export" --run "$work/three" --student queue --out "$work/queue.safetensors" 2>"$work/err"
check "one of them is exported by name" cmp "$work/queue.safetensors" "$work/three/exported/queue.safetensors"
train "${together[@]:0:4}" --out "$work/paused" 2>"$work/err"
check "a begun run with fewer students is refused, exit 2" test $? -eq 2
check "by name" grep -q -- '--student was' "$work/err"

# ---- refusals ----
refused() { # NAME PATTERN STUDENT...
    local name=$1 pattern=$2 args=() s
    shift 2
    for s in "$@"; do args+=(--student "$s"); done
    train "${args[@]}" --out "$work/none" 2>"$work/err"
    check "$name: refused, exit 2" test $? -eq 2
    check "$name: with its sentence" grep -q -- "$pattern" "$work/err"
}
refused "two of one model" 'two students are called resnet18.*add name=' resnet18 resnet18,lr=1e-4
refused "two of one name" 'two students are called a, ' resnet18,name=a dinov2_w64_d1,name=a
refused "a setting that all share" 'all students of a run share "epochs"' resnet18,epochs=5
refused "an unknown setting" 'did you mean "lr"' resnet18,lrr=5
refused "a value that can't be" 'resnet18,loss=cosin' resnet18,loss=cosin
refused "a number that isn't" '--lr fast' resnet18,lr=fast
refused "a loss that leaves nothing" 'leaves nothing to learn' resnet18,loss=none dinov2_w64_d1
check "nothing was begun" test ! -e "$work/none/metrics.jsonl"
finish
