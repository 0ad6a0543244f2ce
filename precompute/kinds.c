#include "precompute/kinds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/image/image.h"

static void count(kd_kinds *k, const char *name) {
    size_t i = 0;
    while (i < k->kinds && strcmp(k->kind[i].name, name) != 0)
        i++;
    KD_ASSERT(i < KD_KINDS_MAX);
    if (i == k->kinds)
        k->kind[k->kinds++].name = name;
    k->kind[i].count++;
}

/* Insertion sort, so that equal counts stay in the order of their first files. */
static void sort(kd_kinds *k) {
    for (size_t i = 1; i < k->kinds; i++)
        for (size_t j = i; j > 0 && k->kind[j].count > k->kind[j - 1].count; j--) {
            const char *name = k->kind[j].name;
            size_t n = k->kind[j].count;
            k->kind[j] = k->kind[j - 1];
            k->kind[j - 1].name = name;
            k->kind[j - 1].count = n;
        }
}

kd_status kd_kinds_sample(kd_kinds *k, const kd_dataset *data, kd_err *err) {
    uint8_t *head = NULL;
    size_t cap = 0, size, files = data->count < KD_KINDS_SAMPLE ? data->count : KD_KINDS_SAMPLE;
    *k = (kd_kinds){0};
    head = kd_malloc(KD_SNIFF_BYTES + 1);
    if (head == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the first bytes of files");
    cap = KD_SNIFF_BYTES + 1;
    for (size_t i = 0; i < files; i++) {
        size_t file = (size_t)((uint64_t)i * data->count / files);
        int is_read = 0;
        kd_err unreadable;
        const char *name = "unreadable file";
        if (kd_dataset_head(data, file, KD_SNIFF_BYTES, &head, &cap, &size, &unreadable) == KD_OK)
            name = kd_image_sniff(head, size, &is_read);
        if (!is_read && k->unread++ == 0)
            k->example = file;
        count(k, name);
    }
    k->looked_at = files;
    kd_free(head);
    sort(k);
    return KD_OK;
}

void kd_kinds_log(const kd_kinds *k, const kd_dataset *data) {
    char list[1024] = "";
    size_t used = 0;
    for (size_t i = 0; i < k->kinds && used < sizeof list; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%zu %s", i > 0 ? ", " : "", k->kind[i].count, k->kind[i].name);
    kd_log(KD_LOG_INFO, "kinds     %s (of %zu files, %zu looked at)", list, data->count, k->looked_at);
    if (k->unread > 0)
        kd_log(KD_LOG_WARN, "%zu of the %zu files looked at would be skipped (first: %s); JPEG, PNG and still WebP are read, convert the others first", k->unread, k->looked_at,
               data->file[k->example].rel);
}

json_t *kd_kinds_json(const kd_kinds *k) {
    json_t *o = json_object();
    for (size_t i = 0; i < k->kinds; i++)
        json_object_set_new(o, k->kind[i].name, json_integer((json_int_t)k->kind[i].count));
    return o;
}
