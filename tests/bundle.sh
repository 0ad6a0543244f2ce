#!/bin/bash
# bundle.sh FOLDER PROGRAM... -- MODULE...: makes FOLDER with bin/ and lib/, where lib/ also holds the shared libraries that they
# need. The C library, its parts and the GPU driver stay the target machine's own.
set -e
to=$1
shift
rm -rf "$to"
mkdir -p "$to/bin" "$to/lib"
into=bin
for file in "$@"; do
    if [ "$file" = -- ]; then into=lib; continue; fi
    cp "$file" "$to/$into/"
done
own='^(linux-vdso|ld-linux|libc|libm|libdl|libpthread|librt|libutil|libresolv|libnsl|libcuda)[.-]'
ldd "$to"/bin/* "$to"/lib/*.so 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | sort -u | while read -r name path; do
    [[ $name =~ $own || $name == libkd_* ]] || cp -L "$path" "$to/lib/$name"
done
if ldd "$to"/bin/* "$to"/lib/*.so 2>/dev/null | grep 'not found'; then
    echo 'the libraries above were not found; the bundle is incomplete' >&2
    exit 1
fi
# Where a program finds its libraries: beside itself, not where they were on this machine.
if command -v patchelf >/dev/null; then
    for file in "$to"/bin/*; do patchelf --set-rpath '$ORIGIN/../lib' "$file"; done
    for file in "$to"/lib/*; do patchelf --set-rpath '$ORIGIN' "$file"; done
else
    mkdir "$to/bin/real"
    for file in "$to"/bin/kd-*; do
        name=$(basename "$file")
        mv "$file" "$to/bin/real/$name"
        printf '#!/bin/sh\nhere=$(cd "$(dirname "$0")" && pwd)\nLD_LIBRARY_PATH=$here/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} KD_LIB_DIR=${KD_LIB_DIR:-$here/../lib} exec "$here/real/%s" "$@"\n' "$name" >"$file"
        chmod 755 "$file"
    done
fi
newest=$(find "$to" -type f -exec objdump -T {} + 2>/dev/null | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1)
echo "Runs on x86-64 Linux with glibc ${newest#GLIBC_} or newer." | tee "$to/REQUIRES.txt"
[ -f LICENSE ] && cp LICENSE "$to/"
echo "$to: $(du -sh "$to" | cut -f1)"
