#!/bin/bash
# What every program promises: help on stdout with status 0, errors on stderr with status 2 and a suggestion, one JSON error line
# with --json, a manual page that roff reads, a completion that bash reads, and no CUDA or oneDNN in kd-cache.
source "$(dirname "$0")/../lib.sh"

run() { "$@" >"$work/out" 2>"$work/err"; }
help_is_data() { run "$@" && [ ! -s "$work/err" ] && grep -q '^usage: ' "$work/out"; }
usage_error() { # text that stderr must hold, command...
    local want=$1
    shift
    run "$@"
    [ $? = 2 ] && [ ! -s "$work/out" ] && grep -qF -- "$want" "$work/err" && [ "$(wc -l <"$work/err")" = 1 ]
}
json_error() { run "$@"; [ $? = 2 ] && [ "$(wc -l <"$work/out")" = 1 ] && grep -q '"type":"error"' "$work/out" && grep -q '"code":2' "$work/out"; }
version() { run "$@" && grep -qE '^kd-[a-z]+( [a-z]+)? [0-9]+\.[0-9]+\.[0-9]+$' "$work/out"; }
man_page() { run "$@" && head -n 1 "$work/out" | grep -q "^\.TH " && ! grep "^[.]" "$work/out" | grep -qvE "^[.](TH|SH|SS|TP|B|nf|fi)( |$)"; }
completion() { run "$@" && bash -n "$work/out" && grep -q '^complete ' "$work/out"; }

for program in kd-precompute kd-train kd-eval kd-export kd-cache; do
    p=$KD_BIN/$program
    [ -x "$p" ] || continue
    check "$program --help" help_is_data "$p" --help
    check "$program --version" version "$p" --version
    check "$program --man" man_page "$p" --man
    check "$program --completion" completion "$p" --completion
    check "$program without anything says what is missing" usage_error "$program: error: " "$p"
    case $program in
    kd-eval | kd-cache)
        check "$program: a wrong command is an error" usage_error 'unknown command' "$p" frobnicate
        # Every command that the help lists keeps the contract too.
        run "$p" --help
        for command in $(sed -n '/^commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' "$work/out"); do
            check "$program $command --help" help_is_data "$p" "$command" --help
            check "$program $command: unknown option" usage_error 'did you mean --json' "$p" "$command" --jsno
            check "$program $command: error as JSON" json_error "$p" "$command" --json --frobnicate
        done
        ;;
    *)
        check "$program: unknown option" usage_error 'did you mean --json' "$p" --jsno
        check "$program: error as JSON" json_error "$p" --json --frobnicate
        printf 'frobnicate: 1\n' >"$work/c.yaml"
        check "$program: unknown key in --config" usage_error 'unknown key "frobnicate"' "$p" --config "$work/c.yaml"
        ;;
    esac
done

links_neither() { ! ldd "$KD_BIN/kd-cache" | grep -qE 'lib(dnnl|cuda|cublas|cudnn|gomp)'; }
[ -x "$KD_BIN/kd-cache" ] && check 'kd-cache links neither CUDA nor oneDNN' links_neither
finish
