#include "cache/view_ranges.h"

#include <errno.h>
#include <stdlib.h>

#include "cache/store.h"

/* A number at *text, which moves behind it. 0: there is none, or it is too large. */
static int number(const char **text, uint32_t *out)
{
    char *end;
    unsigned long long v;
    if (**text < '0' || **text > '9')
        return 0;
    errno = 0;
    v = strtoull(*text, &end, 10);
    *text = end;
    *out = (uint32_t)v;
    return errno == 0 && v <= KD_MAX_VIEW;
}

kd_status kd_view_ranges_parse(kd_view_ranges *v, const char *text, const char *what, kd_err *err)
{
    const char *p = text;
    *v = (kd_view_ranges){.count = 0};
    while (p) {
        uint32_t first = 0, last = 0;
        int ok = number(&p, &first);
        last = first;
        if (ok && *p == '-') {
            p++;
            ok = number(&p, &last);
        }
        if (!ok || last < first || (*p != ',' && *p != 0))
            return kd_fail(err, KD_EUSAGE, "%s %s: expected views such as 0-3 or 0-3,6, each range ascending", what, text);
        if (v->count == KD_MAX_VIEW_RANGES)
            return kd_fail(err, KD_EUSAGE, "%s %s: more than %d ranges", what, text, KD_MAX_VIEW_RANGES);
        v->range[v->count].first = first;
        v->range[v->count++].last = last;
        p = *p == ',' ? p + 1 : NULL;
    }
    return KD_OK;
}

int kd_view_ranges_have(const kd_view_ranges *v, uint32_t view)
{
    for (int i = 0; i < v->count; i++) {
        if (view >= v->range[i].first && view <= v->range[i].last)
            return 1;
    }
    return v->count == 0;
}
