#include "train/live_check.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/image/mix.h"

enum { LARGEST_FILE = 1 << 30 };

static const char *path_of(const kd_live_set *s, size_t i) {
    return s->make->data->file[s->file[i]].rel;
}

/* Place of an id, which may be in the set. */
static int64_t find(const kd_live_set *s, const kd_hash128 *id) {
    size_t low = 0, high = s->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = memcmp(&s->id[middle], id, sizeof *id);
        if (order == 0)
            return (int64_t)middle;
        low = order < 0 ? middle + 1 : low;
        high = order < 0 ? high : middle;
    }
    return -1;
}

/* Of everything that the findings depend on. */
static void name_of(const kd_live_set *s, char out[33]) {
    char how[200];
    kd_sha256 ids = kd_sha256_of(s->id, s->count * sizeof *s->id);
    const kd_policy *p = s->make->policy;
    int n = snprintf(how, sizeof how, "exif %d, pixels %lld, mix %.17g, seed %llu, views %u", s->make->decode.exif_apply, (long long)s->make->decode.max_pixels, s->make->mix != NULL ? (double)p->mix_p : 0.0,
                     s->make->mix != NULL ? (unsigned long long)s->make->seed : 0, s->make->mix != NULL ? s->views : 0);
    kd_hash128 hash = kd_xxh128_2(ids.b, sizeof ids.b, how, (size_t)n);
    kd_hex(out, hash.b, sizeof hash.b);
}

/* ---- looking ---- */

typedef struct look {
    const kd_live_set *set;
    kd_view_worker *workers;
    uint8_t *usable;
    json_t *list; /* of what is skipped */
} look;

typedef struct finding {
    kd_err problem; /* status KD_OK, or why it is skipped */
} finding;

static kd_status look_at(void *ctx, int worker, uint64_t index, void *slot, kd_err *err) {
    const look *l = ctx;
    const kd_live_set *s = l->set;
    finding *f = slot;
    kd_view_item item = {.file = s->file[index]};
    KD_TRY(kd_views_read(s->make, &l->workers[worker], &item, err));
    if (memcmp(&item.id, &s->id[index], sizeof item.id) != 0)
        return kd_fail(err, KD_EFAIL, "%s was changed while the program ran; restore it and run the same command again", path_of(s, index));
    f->problem.status = kd_views_check(s->make, &l->workers[worker], &item, &f->problem);
    return KD_OK;
}

static kd_status skip(look *l, size_t i, const char *reason, kd_err *err) {
    const char *path = path_of(l->set, i);
    char id[33];
    kd_hex(id, l->set->id[i].b, sizeof l->set->id[i].b);
    l->usable[i] = 0;
    kd_log(KD_LOG_WARN, "skipped: %s", reason);
    json_t *entry = json_pack("{s:s, s:o, s:o}", "id", id, "path", kd_json_bytes(path, strlen(path)), "reason", kd_json_bytes(reason, strlen(reason)));
    if (entry == NULL || json_array_append_new(l->list, entry) != 0)
        return kd_fail(err, KD_EFAIL, "out of memory for the list of skipped pictures");
    if (!l->set->json)
        return KD_OK;
    json_t *line = json_pack("{s:s, s:O, s:O}", "type", "skipped", "path", json_object_get(entry, "path"), "reason", json_object_get(entry, "reason"));
    kd_json_line(line);
    json_decref(line);
    return KD_OK;
}

static kd_status look_at_all(look *l, kd_ordered *q, kd_progress *progress, kd_err *err) {
    for (size_t i = 0;; i++) {
        void *slot;
        kd_status status = kd_stop_requested();
        if (status != KD_OK)
            return kd_fail(err, status, "stopped while the live teacher's pictures were checked; the same command begins again");
        status = kd_ordered_next(q, &slot, err);
        if (status == KD_DONE)
            return KD_OK;
        KD_TRY(status);
        kd_err problem = ((finding *)slot)->problem;
        kd_ordered_release(q, slot);
        l->usable[i] = 1;
        if (problem.status != KD_OK)
            KD_TRY(skip(l, i, problem.msg, err));
        kd_progress_update(progress, i + 1, kd_ordered_wait_seconds(q), NULL);
    }
}

/* What the pictures' own files say. */
static kd_status look_at_files(look *l, kd_err *err) {
    const kd_live_set *s = l->set;
    kd_ordered *q = NULL;
    kd_progress *progress = kd_progress_create("checking", "picture", s->count, 0, s->json);
    kd_status status = kd_alloc_array(&l->workers, (size_t)s->threads, sizeof *l->workers, err);
    if (status == KD_OK)
        status = kd_ordered_create(&q, s->threads, kd_view_stage_slots(s->threads), sizeof(finding), s->count, look_at, NULL, l, err);
    if (status == KD_OK)
        status = look_at_all(l, q, progress, err);
    kd_ordered_destroy(q);
    kd_progress_finish(progress);
    for (int i = 0; i < s->threads && l->workers != NULL; i++)
        kd_view_worker_free(&l->workers[i]);
    kd_free(l->workers);
    return status;
}

/* Of the views of picture i, one that is mixed with a picture that can't be decoded, or -1. */
static int64_t spoilt_view(const look *l, const uint8_t *decoded, size_t i, size_t *partner) {
    const kd_view_maker *m = l->set->make;
    for (uint32_t v = 0; v < l->set->views; v++) {
        kd_plan plan = kd_plan_draw(m->policy, m->seed, &l->set->id[i], v, m->policy->image_w, m->policy->image_h); /* the mix doesn't depend on the picture's size */
        kd_mix_draw(&plan, m->policy, m->seed, &l->set->id[i], v, m->mix->id, m->mix->count);
        int64_t at = kd_plan_is_mixed(&plan) ? find(l->set, &plan.mix_partner) : -1;
        if (at >= 0 && !decoded[at]) {
            *partner = (size_t)at;
            return v;
        }
    }
    return -1;
}

static kd_status look_at_partners(look *l, kd_err *err) {
    uint8_t *decoded;
    if (l->set->make->mix == NULL || json_array_size(l->list) == 0)
        return KD_OK;
    KD_TRY(kd_alloc_array(&decoded, l->set->count, 1, err));
    memcpy(decoded, l->usable, l->set->count);
    kd_status status = KD_OK;
    for (size_t i = 0; i < l->set->count && status == KD_OK; i++) {
        size_t partner = 0;
        int64_t view = decoded[i] ? spoilt_view(l, decoded, i, &partner) : -1;
        char reason[sizeof(kd_err)];
        if (view < 0)
            continue;
        snprintf(reason, sizeof reason, "%.400s: its view %lld is mixed with %.400s, which can't be decoded", path_of(l->set, i), (long long)view, path_of(l->set, partner));
        status = skip(l, i, reason, err);
    }
    kd_free(decoded);
    return status;
}

/* ---- what is kept ---- */

/* KD_DONE: there is no such file, or it is of something else. */
static kd_status read_kept(const kd_live_set *s, const char *of, uint8_t *usable, kd_err *err) {
    json_t *kept, *entry;
    size_t k;
    if (s->path == NULL || !kd_io_exists(s->path))
        return KD_DONE;
    KD_TRY(kd_json_read_file(s->path, LARGEST_FILE, &kept, err));
    const char *have = json_string_value(json_object_get(kept, "of"));
    const json_t *list = json_object_get(kept, "skipped");
    kd_status status = have != NULL && strcmp(have, of) == 0 && json_is_array(list) ? KD_OK : KD_DONE;
    memset(usable, 1, s->count);
    json_array_foreach(list, k, entry) {
        const char *text = json_string_value(json_object_get(entry, "id"));
        kd_hash128 id;
        int64_t at = text != NULL && kd_unhex(id.b, text, sizeof id.b) == 0 ? find(s, &id) : -1;
        if (status == KD_OK && at < 0)
            status = kd_fail(err, KD_EFAIL, "%s: entry %zu names no picture of the set; the file is damaged", s->path, k + 1);
        else if (status == KD_OK)
            usable[at] = 0;
    }
    json_decref(kept);
    return status;
}

static kd_status write_kept(const kd_live_set *s, const char *of, const json_t *list, kd_err *err) {
    json_t *kept = json_pack("{s:s, s:O}", "of", of, "skipped", list);
    char *text = kept != NULL ? json_dumps(kept, JSON_INDENT(1)) : NULL;
    kd_status status = text != NULL ? kd_io_write_atomic(s->path, text, strlen(text), err) : kd_fail(err, KD_EFAIL, "out of memory for %s", s->path);
    free(text);
    json_decref(kept);
    return status;
}

static kd_status look_anew(const kd_live_set *s, const char *of, uint8_t *usable, kd_err *err) {
    look l = {.set = s, .usable = usable, .list = json_array()};
    if (l.list == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the list of skipped pictures");
    kd_status status = look_at_files(&l, err);
    if (status == KD_OK)
        status = look_at_partners(&l, err);
    if (status == KD_OK && s->path != NULL)
        status = write_kept(s, of, l.list, err);
    json_decref(l.list);
    return status;
}

kd_status kd_live_check(uint8_t *usable, size_t *skipped, const kd_live_set *s, kd_err *err) {
    char of[33];
    kd_err cause = {0};
    name_of(s, of);
    kd_status status = read_kept(s, of, usable, &cause);
    if (status != KD_OK && status != KD_DONE)
        kd_log(KD_LOG_WARN, "%s; the pictures are checked again", cause.msg);
    if (status != KD_OK)
        KD_TRY(look_anew(s, of, usable, err));
    *skipped = 0;
    for (size_t i = 0; i < s->count; i++)
        *skipped += !usable[i];
    return KD_OK;
}
