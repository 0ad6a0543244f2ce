#!/bin/bash
# bundle.sh FOLDER PROGRAM... -- MODULE... -- TEST...: makes FOLDER with bin/ and lib/, where lib/ also holds the shared libraries that they need, and tests/, what tests/gpu/qualify.sh
# needs on a machine with a CUDA device. The C library, its parts, the GPU's driver, cuBLASLt and cuDNN stay the target machine's own.
set -e
to=$1
shift
rm -rf "$to"
mkdir -p "$to/bin" "$to/lib" "$to/tests"
places=(bin lib tests)
for file in "$@"; do
    if [ "$file" = -- ]; then places=("${places[@]:1}"); continue; fi
    cp "$file" "$to/${places[0]}/"
done
strip --strip-debug "$to"/bin/* "$to"/lib/*.so "$to"/tests/*
own='^(linux-vdso|ld-linux|libc|libm|libdl|libpthread|librt|libutil|libresolv|libnsl|libcuda|libcudart|libcublas|libcublasLt|libcudnn)[.-]'
ldd "$to"/bin/* "$to"/tests/* "$to"/lib/*.so 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | sort -u | while read -r name path; do
    [[ $name =~ $own || $name == libkd_* ]] || cp -L "$path" "$to/lib/$name"
done
if ldd "$to"/bin/* "$to"/tests/* "$to"/lib/*.so 2>/dev/null | grep 'not found' | grep -v 'libcuda\|libcublas\|libcudnn'; then
    echo 'the libraries above were not found; the bundle is incomplete' >&2
    exit 1
fi
# Where a program finds its libraries: beside itself, not where they were on this machine; CUDA's in its usual folder.
if command -v patchelf >/dev/null; then
    for file in "$to"/bin/* "$to"/tests/*; do patchelf --set-rpath '$ORIGIN/../lib' "$file"; done
    for file in "$to"/lib/*; do patchelf --set-rpath '$ORIGIN:/usr/local/cuda/lib64' "$file"; done
else
    for folder in bin tests; do
        mkdir "$to/$folder/real"
        for file in "$to/$folder"/*; do
            [ -f "$file" ] || continue
            name=$(basename "$file")
            mv "$file" "$to/$folder/real/$name"
            printf '#!/bin/sh\nhere=$(cd "$(dirname "$0")" && pwd)\nLD_LIBRARY_PATH=$here/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}:/usr/local/cuda/lib64 KD_LIB_DIR=${KD_LIB_DIR:-$here/../lib} exec "$here/real/%s" "$@"\n' "$name" >"$file"
            chmod 755 "$file"
        done
    done
fi
newest=$(find "$to" -type f -exec objdump -T {} + 2>/dev/null | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1)
echo "Runs on x86-64 Linux with glibc ${newest#GLIBC_} or newer." | tee "$to/REQUIRES.txt"
[ -f LICENSE ] && cp LICENSE "$to/"
echo "$to: $(du -sh "$to" | cut -f1)"
