#!/bin/bash
# What kd-precompute takes out of a teacher: every feature, several layers, joined or not, before and after the final norm, views that aren't square; and that each choice is part of the identity.
. "$(dirname "$0")/../lib.sh"
export LC_ALL=C

"$KD_TEST_DIR/demo/draw_pictures" "$work/pictures" 1 1 >/dev/null || exit 1
"$KD_TEST_DIR/cli/draw_weights" "$work/w" || exit 1
find "$work/pictures/train" -name '*.jpg' | sort | head -n 2 >"$work/list"
pre() { timeout 120 "$KD_BIN/kd-precompute" --images "$work/list" --views 1 --device cpu --threads 1 "$@" 2>"$work/err"; }
# Three blocks of width 64, 4 registers, patch 16: 2 x 3 patches.
deep() { pre --weights "$work/w/dinov3.safetensors" --image-size 32x48 --store f16 "$@"; } # f16: numbers that can be compared across caches
all=cls,patch,registers,mean

# dump CACHE: view 0 of its first image into CACHE.st.
dump() {
    local id
    id=$("$KD_BIN/kd-cache" list "$1" --json | sed -n '1s/.*"id":"\([0-9a-f]*\)".*/\1/p')
    "$KD_BIN/kd-cache" dump "$1" --id "$id" --out "$1.st" >"$work/out" 2>"$work/err"
}
header() { local n; n=$(od -An -t u8 -N 8 "$1" | tr -d ' '); tail -c +9 "$1" | head -c "$n"; }
shape() { header "$1.st" | sed -n "s/.*\"$2\":{[^}]*\"shape\":\[\([0-9,]*\)\].*/\1/p"; }
values() { # CACHE NAME: one f32 a line
    local n a b
    n=$(od -An -t u8 -N 8 "$1.st" | tr -d ' ')
    read -r a b < <(header "$1.st" | sed -n "s/.*\"$2\":{[^}]*\"data_offsets\":\[\([0-9]*\),\([0-9]*\)\].*/\1 \2/p")
    tail -c +$((9 + n + a)) "$1.st" | head -c $((b - a)) | od -An -v -t f4 -w4
}
has_shape() { [ "$(shape "$1" "$2")" = "$3" ]; }
part() { values "$1" "$2" | sed -n "$3,$4p"; }         # CACHE NAME FROM TO
same() { [ -s "$1" ] && cmp -s "$1" "$2"; }

# ---- every feature of two layers ----
deep --cache "$work/two.kdc" --features $all --layers 3,1
check 'four features of two layers are sealed' test $? -eq 0
dump "$work/two.kdc"
check 'class tokens: layers x width' has_shape "$work/two.kdc" cls 2,64
check 'patches: layers x (rows * columns) x width' has_shape "$work/two.kdc" patch 2,6,64
check 'registers: layers x registers x width' has_shape "$work/two.kdc" registers 2,4,64
check 'means: layers x width' has_shape "$work/two.kdc" mean 2,64
"$KD_BIN/kd-cache" check "$work/two.kdc" --images "$work/pictures/train" >"$work/out" 2>"$work/err"
check 'kd-cache check accepts it' test $? -eq 0
values "$work/two.kdc" patch | head -n $((6 * 64)) | awk '{ s[(NR - 1) % 64] += $1 } END { for (i = 0; i < 64; i++) print s[i] / 6 }' >"$work/mean"
mean_of_patches() { part "$work/two.kdc" mean 1 64 | paste - "$work/mean" | awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d } END { exit !(NR == 64 && worst < 5e-3) }'; }
check 'the mean feature is the mean of the patches' mean_of_patches

# ---- one layer is the same alone or among others ----
deep --cache "$work/one.kdc" --features cls,patch && dump "$work/one.kdc"
part "$work/one.kdc" cls 1 64 >"$work/a"
part "$work/two.kdc" cls 1 64 >"$work/b"
check 'layer 1 alone has the bits that it has beside layer 3' same "$work/a" "$work/b"
deep --cache "$work/third.kdc" --features cls --layers 3 && dump "$work/third.kdc"
part "$work/third.kdc" cls 1 64 >"$work/a"
part "$work/two.kdc" cls 65 128 >"$work/b"
check 'and so has layer 3' same "$work/a" "$work/b"

# ---- joined ----
deep --cache "$work/joined.kdc" --features cls,patch --layers 1,3 --layer-concat on && dump "$work/joined.kdc"
check 'joined layers are one of twice the width' has_shape "$work/joined.kdc" cls 1,128
check 'patches too' has_shape "$work/joined.kdc" patch 1,6,128
part "$work/two.kdc" cls 65 128 >"$work/b"
part "$work/two.kdc" cls 1 64 >>"$work/b"
part "$work/joined.kdc" cls 1 128 >"$work/a"
check 'the earlier layer comes first' same "$work/a" "$work/b"

# ---- the same choice in other words, and other choices ----
cp "$work/two.kdc" "$work/first.kdc"
deep --cache "$work/two.kdc" --features mean,registers,patch,cls --layers all:0,2
check 'all:0,2 of three blocks is 1,3: already sealed' test $? -eq 0
refused() { # STATUS WORDS COMMAND...
    local status=$1 words=$2 got
    shift 2
    "$@"
    got=$?
    [ $got -eq "$status" ] && [ "$(grep -c ': error: ' "$work/err")" = 1 ] && grep ': error: ' "$work/err" | grep -qF -- "$words"
}
other() { deep --cache "$work/two.kdc" "$@"; }
check 'other layers are another cache' refused 13 layers other --features $all --layers 1,2
check 'other features too' refused 13 features other --features cls --layers 1,3
check 'before the final norm too' refused 13 layer_norm other --features $all --layers 1,3 --layer-norm off
check 'joined too' refused 13 layer_concat other --features $all --layers 1,3 --layer-concat on
check 'another normalisation too' refused 13 teacher.mean other --features $all --layers 1,3 --normalize half
check 'the cache is as it was' cmp "$work/two.kdc" "$work/first.kdc"
deep --cache "$work/raw.kdc" --features cls,patch --layers 1,3 --layer-norm off && dump "$work/raw.kdc"
part "$work/raw.kdc" cls 1 64 >"$work/b"
raw_differs() { [ -s "$work/b" ] && ! cmp -s "$work/a" "$work/b"; }
part "$work/two.kdc" cls 1 64 >"$work/a"
check 'without the final norm the values are others' raw_differs

# ---- what can't be ----
choose() { pre --cache "$work/n.kdc" --image-size 32x48 --weights "$work/w/dinov3.safetensors" "$@"; }
check 'a layer that is not there names the depth' refused 2 'this teacher has 3 layers' choose --layers 4
check 'a block that is not there' refused 2 'this teacher has 3 blocks, 0 to 2' choose --layers all:3
check 'a layer twice' refused 2 'given twice' choose --layers 1,1
check 'an unknown feature' refused 2 'did you mean registers?' choose --features cls,register
check 'joining one layer' refused 2 '--layer-concat on joins layers' choose --layer-concat on
check 'registers of a teacher without' refused 2 'has no register tokens' pre --weights "$work/w/dinov2.safetensors" --image-size 28 --cache "$work/n.kdc" --features registers
check 'a size that the patch does not divide' refused 2 16 choose --image-size 32x50
check 'nothing was begun' test ! -e "$work/n.kdc" -a ! -e "$work/n.kdc.partial"

# ---- same bits ----
timeout 120 "$KD_BIN/kd-precompute" --images "$work/list" --views 1 --device cpu --threads 2 --weights "$work/w/dinov3.safetensors" --image-size 32x48 --cache "$work/threads.kdc" \
    --features $all --layers 1,3 --store f16 2>"$work/err"
check '1 and 2 threads give byte-equal caches of layers' cmp "$work/two.kdc" "$work/threads.kdc"

# ---- what fits ----
plan() { pre --weights "$work/w/dinov2_reg.safetensors" --image-size 70 --cache "$work/n.kdc" --dry-run --json "$@" >"$work/out"; }
field() { sed -n "s/.*\"$1\":\(\[[^]]*\]\|[0-9]*\).*/\1/p" "$work/out" | head -n 1; }
plan --features $all --layers 1,2 --views 8 --store f16
one=$(field bytes_per_view)
plan --features $all --views 8 --store f16
twice() { [ $((one * 10)) -gt $(($(field bytes_per_view) * 17)) ]; }
check 'two layers are planned as about twice the bytes of one' twice
stored() { sed -n 's/.*"store":"\([a-z0-9]*\)".*/\1/p' "$work/out" | head -n 1; }
plan --features $all --layers 1,2 --views 8
check 'every token in i8 is the default' test "$(stored) $(field views) $(field patch_targets)" = 'i8 8 ["full"]'
whole=$(field cache_bytes)
plan --features $all --layers 1,2 --views 8 --budget $((whole * 3 / 4))
check '--budget pools the patches first' test "$(stored) $(field views) $(field patch_targets)" = 'i8 8 ["pool:3"]'
plan --features $all --layers 1,2 --views 8 --budget $((whole * 3 / 4)) --store f16 --patch-target full
check 'then views, where the form is fixed' test "$(stored)" = f16 -a "$(field views)" -lt 8 -a "$(field features)" = '["cls","patch","registers","mean"]'
# Less than one view of both images with patches, beside the 48 KiB that any cache has.
plan --features $all --layers 1,2 --views 2 --budget $((49152 + one * 3 / 2)) --store f16 --patch-target full
check 'then patches, and the views come back' test "$(field views)$(field features)" = '2["cls","registers","mean"]'
check 'and says so' grep -q 'reduced the run to' "$work/err"
plan --for resnet18 --layers 1,2
check '--for stores what the student needs' test "$(field patch_targets)" = '["adjoint:3"]'
check 'the dry run says what binds' grep -Eq 'speed     about .* views/s together; alone the teacher .*, decoding .* on 1 thread, storing .* binds' "$work/err"
check 'and its JSON has each stage' grep -Eq '"type":"result".*"teacher_views_per_s":[0-9.]+,"decoding_views_per_s":[0-9.]+,"storing_views_per_s":[0-9.]+,"binds":"(decoding|the teacher|storing)"' "$work/out"
check 'a student that is none' refused 2 'the nearest is resnet18' plan --for resnet81
check 'more than that is refused' refused 14 'even one view' plan --features patch --layers 1,2 --budget 4KB

# ---- where it came from ----
manifest() { tr -d ' \n' <"$work/two.kdc.json" | grep -qF -- "$1"; }
check 'the manifest names the weight file' manifest '"name":"dinov3.safetensors"'
check 'its container' manifest '"container":"safetensors"'
check 'whose names its tensors have' manifest '"layout":"official"'
check 'and the normalisation' manifest '"normalisation":"imagenet"'
check 'fidelity is there for every feature' test "$(tr -d ' \n' <"$work/two.kdc.json" | grep -oE '"fidelity":\{.*' | grep -oE '"(cls|patch|registers|mean)":\{' | sort -u | wc -l)" -eq 4
finish
