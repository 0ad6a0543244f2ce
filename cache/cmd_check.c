/* kd-cache check. */
#include "cache/check.h"
#include "cache/commands.h"
#include "common/base/mem.h"

static const kd_option table[] = {
    KD_CACHE_FILES,
    KD_OPTION_STRING(kd_cache_config, images, "images", "DIR|TAR|LIST", NULL, 0, "also replay every view from these images and compare it with what the teacher saw"),
    KD_CACHE_NULL,
    KD_OPTION_INT(kd_cache_config, threads, "threads", "N", "0", 0, 1024, "threads; 0 = every processor"),
    KD_OPTION_END,
};
const kd_program kd_cache_check_program = {
    .name = "kd-cache check",
    .summary = "Reads every byte of a cache and says what is damaged; with --images proves that training will see the teacher's pixels.",
    .examples = "  $ kd-cache check photos.kdc\n  $ kd-cache check photos.kdc --images photos --threads 8\n",
    .epilog = "Exit codes: 0 sound; 3 sound, but images are missing from --images or were changed; 10 not found; 12 damaged; 13 a replayed view differs from the teacher's, or the decoder does.\n",
    .options = table,
};

static void report(void *ctx, const char *sentence)
{
    const kd_cache_config *config = ctx;
    char text[2400];
    json_t *line;
    if (!config->json) {
        printf("%s\n", kd_text_escape(text, sizeof text, sentence));
        return;
    }
    line = json_pack("{s:s,s:s}", "type", "result", "problem", kd_text_escape(text, sizeof text, sentence));
    kd_json_line(line);
    json_decref(line);
}

static void summary(const kd_cache_config *config, const kd_check_result *r)
{
    json_t *line;
    char text[600], places[2400];
    if (!config->json) {
        printf("%llu images, %llu views, %llu records, %llu bytes: %llu problems\n", (unsigned long long)r->images, (unsigned long long)r->views, (unsigned long long)r->records,
               (unsigned long long)r->bytes, (unsigned long long)r->bad);
        if (config->images)
            printf("%llu views replayed: %llu differ, %llu more lack their image\nof the %llu images %s\n", (unsigned long long)r->replayed, (unsigned long long)r->replay_bad,
                   (unsigned long long)r->replay_missing, (unsigned long long)r->images, kd_text_escape(places, sizeof places, kd_search_text(&r->search, text, sizeof text)));
        return;
    }
    line = json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:b}", "type", "summary", "images", (json_int_t)r->images, "views", (json_int_t)r->views, "records", (json_int_t)r->records,
                     "bytes", (json_int_t)r->bytes, "bad", (json_int_t)r->bad, "replayed", (json_int_t)r->replayed, "replay_bad", (json_int_t)r->replay_bad, "replay_missing",
                     (json_int_t)r->replay_missing, "decoder_differs", r->decoder_differs);
    if (config->images) {
        static const char *const key[KD_WHEREABOUTS] = {"in_place", "moved", "changed", "missing"};
        for (int w = 0; w < KD_WHEREABOUTS; w++)
            json_object_set_new(line, key[w], json_integer((json_int_t)r->search.count[w]));
    }
    kd_json_line(line);
    json_decref(line);
}

static kd_status verdict(const kd_cache_config *config, const kd_check_result *r, kd_err *err)
{
    const char *name = config->files.item[0];
    char text[600];
    if (r->bad)
        return kd_fail(err, KD_EDAMAGED, "%s: %llu problems; copy the cache again from where it came, or remove it and run kd-precompute again", name, (unsigned long long)r->bad);
    if (r->replay_bad)
        return kd_fail(err, KD_EMISMATCH, "%s: %llu of %llu replayed views differ from what the teacher saw; training here would stop at the first of them", name,
                       (unsigned long long)r->replay_bad, (unsigned long long)r->replayed);
    if (r->decoder_differs)
        return kd_fail(err, KD_EMISMATCH, "%s: the decoder here is not the one that made the cache, so training is refused, although every view that was replayed came out the same", name);
    if (r->replay_missing)
        return kd_fail(err, KD_ESKIPPED, "%s: sound, but of its %llu images under %s %s; restore those that are changed or missing, or train on the rest with kd-train --allow-missing", name,
                       (unsigned long long)r->images, config->images, kd_search_text(&r->search, text, sizeof text));
    return KD_OK;
}

kd_status kd_cache_check_run(const kd_cache_config *config, kd_err *err)
{
    kd_check_result r;
    kd_cache *c;
    kd_status status;
    KD_TRY(kd_cache_open_files(&c, config, err));
    status = kd_cache_check(c, config->images, kd_cache_list_format(config), (int)config->threads, report, (void *)(uintptr_t)config, &r, err);
    if (status == KD_OK) {
        summary(config, &r);
        status = verdict(config, &r, err);
    }
    kd_cache_close(c); /* the result's examples are names in it */
    return status;
}
