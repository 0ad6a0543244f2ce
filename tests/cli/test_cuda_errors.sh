#!/bin/bash
# A CUDA device that isn't there, is too old or too small: exit 15 and a sentence that says what to do; --device auto goes to cpu. On the emulated device (tests/gpu/emulator), which can be any of that.
. "$(dirname "$0")/../lib.sh"

export KD_LIB_DIR=$KD_TEST_DIR/gpu/emulator # the cpu module is found beside the programs

pictures=$work/pictures
"$KD_TEST_DIR/demo/draw_pictures" "$pictures" 1 1 >"$work/out" || exit 1
weights=$top/tests/golden/models/tiny_dinov2.pth
pre() { timeout 120 "$KD_BIN/kd-precompute" --images "$pictures/train" --weights "$weights" --cache "$work/x.kdc" --views 1 --image-size 56 --threads 1 "$@"; }
train() { timeout 120 "$KD_BIN/kd-train" --images "$pictures/train" --cache "$work/cpu.kdc" --student dinov2_w64_d1 --batch-size 4 --val-fraction 0 --out "$work/run" --epochs 1 --threads 1 "$@"; }

# refused NAME WORDS COMMAND...: exit 15, one error, the last line, with WORDS in it; nothing was begun.
refused() {
    local name=$1 words=$2 got
    shift 2
    "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    [ $got -eq 15 ] || echo "ended with $got" >>"$work/err"
    check "$name" explained $got "$words"
}
explained() { # got, words
    [ "$1" -eq 15 ] && [ "$(grep -c ': error: ' "$work/err")" = 1 ] && tail -n 1 "$work/err" | grep ': error: ' | grep -qF -- "$2" && [ ! -e "$work/x.kdc" ] && [ ! -e "$work/x.kdc.partial" ]
}

pre --device cpu --cache "$work/cpu.kdc" 2>"$work/err" || { cat "$work/err"; exit 1; }

# ---- no device ----
for program in pre train; do
    KD_EMULATOR_FAULT=no-driver refused "$program: no driver" 'no NVIDIA driver is loaded on this machine; install one for CUDA 13.0 or newer, or choose --device cpu' $program --device cuda
    KD_EMULATOR_FAULT=no-device refused "$program: no device" 'sees no device' $program --device cuda
    KD_EMULATOR_FAULT=old-driver refused "$program: an old driver" 'the NVIDIA driver supports CUDA 11.4 at most, and this build needs 13.0; update the driver' $program --device cuda
    KD_EMULATOR_FAULT=sm_75 refused "$program: an old device" 'has compute capability 7.5, and kdcache needs 8.0 (Ampere) or newer; choose another --device' $program --device cuda
    refused "$program: a device that the machine doesn't have" 'device cuda:9: this machine has 2 CUDA devices, numbered from 0' $program --device cuda:9
done
KD_EMULATOR_FAULT=no-device refused "cuda:all: no device" 'is it hidden by CUDA_VISIBLE_DEVICES' pre --device cuda:all --cache "$work/all/"
check "and no folder" test ! -e "$work/all"

# ---- auto ----
present=0
{ [ -e /dev/nvidia0 ] || [ -e /proc/driver/nvidia/version ]; } && present=1
for fault in no-driver no-device old-driver sm_75; do
    rm -f "$work"/x.kdc*
    KD_EMULATOR_FAULT=$fault pre --device auto >"$work/out" 2>"$work/err"
    check "auto, $fault: a cache" test $? -eq 0
    check "auto, $fault: says cpu" grep -q 'device auto: cpu (' "$work/err"
    check "auto, $fault: warns where an NVIDIA device is present" test "$(grep -c "an NVIDIA device is present but isn't used" "$work/err")" -eq $present
done
rm -f "$work"/x.kdc*

# ---- little memory ----
mib=$((1 << 20))
KD_EMULATOR_MEMORY=$((40 * mib)) refused "not even room for copies" 'use a smaller --batch-size, or end what else runs on the device' pre --device cuda --batch-size 4
KD_EMULATOR_MEMORY=$((100 * mib)) refused "a batch that doesn't fit" 'the plan of a batch of 4096 takes' pre --device cuda --batch-size 4096
check "names what would" grep -q 'MiB are free; a batch of [1-9][0-9]* would fit (--batch-size)$' "$work/err"
fitting=$(sed -n 's/.*; a batch of \([0-9]*\) would fit.*/\1/p' "$work/err")
check "which is smaller" test "${fitting:-4096}" -lt 4096
KD_EMULATOR_MEMORY=$((114 * mib)) refused "a student that doesn't fit" 'MiB are free; ' train --device cuda --student resnet18

# ---- the default batch ----
KD_EMULATOR_MEMORY=$((100 * mib)) pre --device cuda >"$work/out" 2>"$work/err"
check "a batch from a small device's memory" test $? -eq 0
small=$(sed -n 's/.*batch size \([0-9]*\), from the device.*/\1/p' "$work/err")
check "is said and recorded" grep -q "\"batch_size\": *${small:-none}\b" "$work/x.kdc.json"
check "between 8 and 256" test "${small:-0}" -ge 8 -a "${small:-0}" -le 256
finish
