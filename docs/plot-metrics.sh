#!/bin/sh
# Draws a run's curves from its metrics.jsonl as an SVG picture: loss of every epoch on seen and held-out views, and held-out centred cosine.
#   docs/plot-metrics.sh run/metrics.jsonl > curve.svg
set -eu
[ $# -eq 1 ] && [ -r "$1" ] || { echo "usage: plot-metrics.sh RUN/metrics.jsonl > curve.svg" >&2; exit 2; }
awk '
function field(name,   s) { # value of a JSON number on this line; "" when absent
    if (!match($0, "\"" name "\": *-?[0-9.eE+-]+")) return ""
    s = substr($0, RSTART, RLENGTH); sub(/^[^:]*: */, "", s); return s + 0
}
/"val_loss"/ { n++; v[n] = field("val_loss"); t[n] = field("seen_loss"); c[n] = field("val_cos_cls"); p[n] = field("val_cos_patch")
    if (v[n] > top) top = v[n]; if (t[n] > top) top = t[n] }
function line(a, scale, left, colour, name, row,   i, s) {
    for (i = 1; i <= n; i++) if (a[i] != "") s = s sprintf("%.1f,%.1f ", left + (n > 1 ? (i - 1) / (n - 1) : 0) * 330, 230 - a[i] / scale * 190)
    printf "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"%s\"/>\n", colour, s
    printf "<text x=\"%d\" y=\"%d\" fill=\"%s\">%s</text>\n", left + 200, row, colour, name
}
function frame(left, title, scale,   i) {
    printf "<text x=\"%d\" y=\"22\" font-weight=\"bold\">%s</text>\n", left, title
    for (i = 0; i <= 4; i++) {
        printf "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", left, 230 - i * 47.5, left + 330, 230 - i * 47.5
        printf "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" fill=\"#555\">%.2f</text>\n", left - 6, 234 - i * 47.5, scale * i / 4
    }
    printf "<text x=\"%d\" y=\"250\" fill=\"#555\">epoch 1</text><text x=\"%d\" y=\"250\" text-anchor=\"end\" fill=\"#555\">epoch %d</text>\n", left, left + 330, n
}
END {
    if (n == 0) { print "no validation lines in this file" > "/dev/stderr"; exit 1 }
    print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"262\" font-family=\"sans-serif\" font-size=\"12\">"
    print "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    frame(50, "loss (0 = equals the teacher)", top); line(v, top, 50, "#c33", "held-out images", 200); line(t, top, 50, "#36c", "seen views", 216)
    frame(450, "held-out cosine with the teacher, centred", 1); line(c, 1, 450, "#c33", "CLS", 52); line(p, 1, 450, "#393", "patches", 68)
    print "</svg>"
}' "$1"
