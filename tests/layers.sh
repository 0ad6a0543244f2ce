#!/bin/bash
# Checks DESIGN's include table from the #include lines: which folder may include which, one home for each third-party header.
# Prints each violation as FILE: what; exits 1 when there is any.
cd "$(dirname "$0")/.." || exit 1
bad=$(mktemp) || exit 1
trap 'rm -f "$bad"' EXIT

files() { find "$@" \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null; }

# folder: the folders that it may include from
allowed() {
    case $1 in
    common) echo 'common' ;;
    kernels) echo 'common kernels' ;;
    cache) echo 'common cache' ;;
    precompute) echo 'common kernels cache precompute' ;;
    train) echo 'common kernels cache train' ;;
    esac
}

for folder in common kernels cache precompute train; do
    may=" $(allowed $folder) "
    while IFS=: read -r file include; do
        from=${include%%/*}
        if [ ! -f "$include" ]; then
            echo "$file: includes \"$include\", which is not a path from the repository root"
        elif [[ $may != *" $from "* ]]; then
            echo "$file: $folder/ may not include $from/ (\"$include\")"
        fi
        # The generic part of kernels/ knows no backend, and a backend no other.
        case $file:$include in
        kernels/cpu/*:kernels/cuda/* | kernels/cuda/*:kernels/cpu/*) echo "$file: one backend includes another (\"$include\")" ;;
        kernels/cpu/*:* | kernels/cuda/*:*) ;;
        *:kernels/cpu/* | *:kernels/cuda/*) echo "$file: only the backend itself may include \"$include\"" ;;
        esac
    done < <(files $folder | sort | xargs -r -d '\n' grep -HoE '^[[:space:]]*#[[:space:]]*include[[:space:]]+"[^"]+"' |
        sed -E 's/^([^:]+):.*"([^"]+)"$/\1:\2/') >>"$bad"
done

# header (regular expression), where its home may be (regular expression), how many files may share it
home() {
    local users n
    users=$(files common kernels cache precompute train | sort | xargs -r -d '\n' grep -lE "^[[:space:]]*#[[:space:]]*include[[:space:]]*<$1>")
    [ -n "$users" ] || return
    grep -vE "^$2\$" <<<"$users" | while read -r f; do echo "$f: includes <${1//\\/}>, whose home is ${2//\\/}"; done
    n=$(wc -l <<<"$users")
    if [ "$3" != any ] && [ "$n" -gt "$3" ]; then
        echo "<${1//\\/}> has $n homes instead of $3:" $users
    fi
}
{
    home 'lmdb\.h' 'cache/store[a-z_]*\.c' 1
    home 'zstd[a-z_]*\.h' 'cache/[a-z_]+\.c' 1
    home 'jpeglib\.h' 'common/image/[a-z_]+\.c' 1
    home 'turbojpeg\.h' 'none' 0
    home 'png\.h' 'common/image/[a-z_]+\.c' 1
    home 'webp/.*' 'common/image/webp\.c' 1
    home 'xxhash\.h' 'common/base/hash\.c' 1
    home 'openssl/.*' 'common/base/hash\.c' 1
    home 'jansson\.h' 'common/base/json\.h' 1
    home 'yaml\.h' 'common/base/yaml\.c' 1
    home 'zip\.h' 'common/weights/[a-z_]+\.c' 1
    home 'archive(_entry)?\.h' 'common/data/tar\.c' 1
    home 'dlfcn\.h' 'kernels/[a-z_]+\.c' 1
    home '(oneapi/dnnl/)?dnnl[a-z_]*\.h(pp)?' 'kernels/cpu/[a-z0-9_]+\.[ch]' any
    home '(cuda|cublas|cudnn|nvml|nvrtc)[A-Za-z0-9_]*\.h' 'kernels/cuda/[a-z0-9_]+\.(c|h|cu|cuh)' any
} >>"$bad"

if [ -s "$bad" ]; then
    cat "$bad"
    echo "layers: $(wc -l <"$bad") violations"
    exit 1
fi
echo "layers: $(files common kernels cache precompute train | wc -l) files keep the include table"
