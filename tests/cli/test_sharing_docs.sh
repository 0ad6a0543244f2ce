#!/bin/bash
# docs/sharing.md does what it says: every "$ command" of the page runs, in its order, in a folder that has what the page starts from (drawn pictures, a tiny teacher under the official file's name, a
# damaged copy), and its Python too. What the page promises about signatures and digests is looked at afterwards.
. "$(dirname "$0")/../lib.sh"
page=$top/docs/sharing.md

cd "$work" || exit 1
"$KD_TEST_DIR/demo/draw_pictures" "$work/caltech101" 6 1 || exit 1
ln -s caltech101/train photos
ln -s "$top/tests/golden/models/tiny_dinov2.pth" dinov2_vits14_pretrain.pth
PATH=$KD_BIN:$PATH
export XDG_CACHE_HOME=$work/home
kd-precompute --images photos --weights dinov2_vits14_pretrain.pth --cache damaged.kdc --views 2 --device cpu 2>"$work/err" || { cat "$work/err"; exit 1; }
chmod u+w damaged.kdc
at=$(grep -obUaP 'KDFR\x01\x00\x01' damaged.kdc | tail -1 | cut -d: -f1)
printf '\377\377\377' | dd of=damaged.kdc bs=1 seek=$((at + 200)) conv=notrunc 2>/dev/null

# Commands, with their continuation lines joined.
steps() { sed -e ':join' -e '/\\$/{N;s/\\\n */ /;bjoin' -e '}' "$page" | sed -n 's/^    \$ \(.*\)/\1/p'; }

ran=0
while IFS= read -r command; do
    ( eval "$command" ) >"$work/out" 2>"$work/err" </dev/null
    check "$command" test $? -eq 0
    ran=$((ran + 1))
done < <(steps)
check "the page shows commands" test $ran -ge 25

verify() { ssh-keygen -Y verify -f allowed_signers -I "$1" -n "$2" -s photos.kdc.json.sig <"$3" >"$work/out" 2>"$work/err"; }
sed 's/holiday/business/' photos.kdc.json >edited.json
check "a changed manifest fails to verify" eval '! cmp -s photos.kdc.json edited.json && ! verify you@example.org kdcache edited.json && verify you@example.org kdcache photos.kdc.json'
check "so does another signer or purpose" eval '! verify somebody@example.org kdcache photos.kdc.json && ! verify you@example.org file photos.kdc.json'
check "a changed cache under a signed manifest is found" eval 'cp damaged.kdc changed.kdc && cp photos.kdc.json changed.kdc.json && ! kd-cache check changed.kdc --read-data >"$work/out" 2>"$work/err"'
check "a hidden path isn't in the cache" eval '! grep -qaF "$(basename "$(find photos/ -type f | head -n 1)")" private.kdc && grep -qaF xxh128: private.kdc'
check "parts have the digest of the whole" eval '[ -n "$(kd-cache digest photos.kdc)" ] && [ "$(kd-cache digest photos.kdc)" = "$(kd-cache digest parts/)" ]'
check "a merged cache is the file that was split" cmp photos.kdc whole.kdc

if python3 -c 'import lmdb, zstandard, numpy' 2>/dev/null; then
    sed -n '/^```python/,/^```/{/^```/d;p}' "$page" >page.py
    check "the page's Python runs" eval 'PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$top/cache/python python3 page.py >"$work/out" 2>"$work/err" && grep -q "(25[0-9], \|(256, " "$work/out"'
else
    skip "the page's Python runs" "python3 with lmdb, zstandard and numpy"
fi
finish
