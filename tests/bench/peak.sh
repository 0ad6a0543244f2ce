# For benches, to be sourced: the peak of a process's memory, read from /proc while it runs.
#
#     lines=FILE peak_of PROGRAM ARG ...      prints "hwm BYTES", all resident pages, and "anon BYTES", those that are the process's own (no mapped files); returns its exit code. Its stdout goes to FILE
peak_of() {
    local pid key value rest hwm=0 anon=0
    "$@" >"${lines:-/dev/null}" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        while read -r key value rest; do
            case $key in
            VmHWM:) [ "$value" -le "$hwm" ] || hwm=$value ;;
            RssAnon:) [ "$value" -le "$anon" ] || anon=$value ;;
            esac
        done <"/proc/$pid/status" 2>/dev/null || true
        sleep 0.02
    done
    wait "$pid" || return
    printf 'hwm %d\nanon %d\n' $((1024 * hwm)) $((1024 * anon))
}
