/* kd-cache check. */
#include "cache/check.h"
#include "cache/commands.h"
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"

static const kd_option table[] = {
    KD_CACHE_FILES,
    KD_OPTION_STRING(kd_cache_config, read_data, "read-data", "N/T", NULL, KD_OPT_OPTIONAL, "also read every byte: the file's SHA-256, the digest, every record; N/T: only the records of part N of T, such as 1/7 on Mondays"),
    KD_OPTION_STRING(kd_cache_config, images, "images", "DIR|TAR|LIST", NULL, 0, "also replay every view from these images and compare it with what the teacher saw"),
    KD_CACHE_NULL,
    KD_OPTION_INT(kd_cache_config, threads, "threads", "N", "0", 0, 1024, "threads; 0 = every processor"),
    KD_OPTION_END,
};
const kd_program kd_cache_check_program = {
    .name = "kd-cache check",
    .summary = "Says what is damaged: the structure in seconds, with --read-data every byte; with --images proves that training will see the teacher's pixels.",
    .examples = "  $ kd-cache check photos.kdc\n  $ kd-cache check photos.kdc --read-data\n  $ kd-cache check shards/ --read-data=3/30\n  $ kd-cache check photos.kdc --images photos --threads 8\n",
    .epilog = "Structure: every page of the B-trees, the manifest, every view's entry, and that no record is missing. What it finds sound is remembered in the user's cache directory, so that the next\n"
              "program opens the cache at once. Without --read-data a changed byte inside a record isn't noticed; whoever reads the record will.\n"
              "Exit codes: 0 sound; 3 sound, but images are missing from --images or were changed; 2 usage; 10 not found; 12 damaged; 13 a replayed view differs from the teacher's, or the decoder does.\n",
    .options = table,
};

/* "3/30"; "" is all. */
static kd_status parse_part(const char *text, kd_check_options *o, kd_err *err)
{
    char after;
    o->part = o->parts = 1;
    o->read_data = text != NULL;
    if (text == NULL || *text == '\0')
        return KD_OK;
    if (sscanf(text, "%u/%u%c", &o->part, &o->parts, &after) != 2 || o->part < 1 || o->part > o->parts || o->parts > 1000000)
        return kd_fail(err, KD_EUSAGE, "--read-data=%s: expected N/T, part N of T with 1 <= N <= T, such as 1/7", text);
    return KD_OK;
}

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

static void print_summary(const kd_cache_config *config, const kd_check_options *o, const kd_check_result *r)
{
    char text[600], places[2400], size[32];
    printf("structure: %llu images, %llu views, %s, %.2f s\n", (unsigned long long)r->images, (unsigned long long)r->views, kd_io_size_text(r->bytes, size, sizeof size), r->structure_s);
    if (o->read_data && o->parts == 1)
        printf("data: %llu records and the files' SHA-256, %.2f s\n", (unsigned long long)r->records, r->data_s);
    else if (o->read_data)
        printf("data: %llu records of part %u of %u, %.2f s\n", (unsigned long long)r->records, o->part, o->parts, r->data_s);
    if (config->images)
        printf("%llu views replayed: %llu differ, %llu more lack their image, %.2f s\nof the %llu images %s\n", (unsigned long long)r->replayed, (unsigned long long)r->replay_bad,
               (unsigned long long)r->replay_missing, r->replay_s, (unsigned long long)r->images, kd_text_escape(places, sizeof places, kd_search_text(&r->search, text, sizeof text)));
    printf("%llu problems\n", (unsigned long long)r->bad);
}

static void summary(const kd_cache_config *config, const kd_check_options *o, const kd_check_result *r)
{
    json_t *line;
    if (!config->json) {
        print_summary(config, o, r);
        return;
    }
    line = json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:b,s:b,s:f,s:f,s:f}", "type", "summary", "images", (json_int_t)r->images, "views", (json_int_t)r->views, "records",
                     (json_int_t)r->records, "bytes", (json_int_t)r->bytes, "bad", (json_int_t)r->bad, "replayed", (json_int_t)r->replayed, "replay_bad", (json_int_t)r->replay_bad,
                     "replay_missing", (json_int_t)r->replay_missing, "decoder_differs", r->decoder_differs, "read_data", o->read_data, "structure_s", r->structure_s, "data_s", r->data_s,
                     "replay_s", r->replay_s);
    if (config->images) {
        static const char *const key[KD_WHEREABOUTS] = {"in_place", "moved", "changed", "missing"};
        for (int w = 0; w < KD_WHEREABOUTS; w++)
            json_object_set_new(line, key[w], json_integer((json_int_t)r->search.count[w]));
    }
    kd_json_line(line);
    json_decref(line);
}

/* The very commands, since whoever reads this has a damaged cache and no time. */
static void advise_repair(const kd_cache_config *config)
{
    const char *name = config->files.item[0];
    size_t n = strlen(name);
    int stem;
    while (n > 1 && name[n - 1] == '/')
        n--;
    stem = (int)(n > 4 && strncmp(name + n - 4, ".kdc", 4) == 0 ? n - 4 : n);
    kd_log(KD_LOG_INFO, "copy it again from where it came, or keep what is sound and compute the rest again:");
    kd_log(KD_LOG_INFO, "  kd-cache repair %s --drop-bad --out %.*s-repaired.kdc", name, stem, name);
    kd_log(KD_LOG_INFO, "  kd-precompute --fill %.*s-repaired.kdc.missing.txt --cache DIR (a folder with the repaired file, and the options that made it: kd-cache info)", stem, name);
}

static kd_status verdict(const kd_cache_config *config, const kd_check_result *r, kd_err *err)
{
    const char *name = config->files.item[0];
    char text[600];
    if (r->bad)
        return kd_fail(err, KD_EDAMAGED, "%s: %llu problems", name, (unsigned long long)r->bad);
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
    kd_check_options o = {.images = config->images, .list = kd_cache_list_format(config), .threads = (int)config->threads};
    double begin = kd_now();
    kd_check_result r;
    kd_cache *c;
    kd_status status;
    KD_TRY(parse_part(config->read_data, &o, err));
    status = kd_cache_open_anew(&c, config->files.item, config->files.count, err);
    if (status == KD_OK)
        status = kd_cache_check(c, &o, kd_now() - begin, report, (void *)(uintptr_t)config, &r, err);
    if (status == KD_OK) {
        summary(config, &o, &r);
        status = verdict(config, &r, err);
    }
    if (status == KD_EDAMAGED)
        advise_repair(config);
    kd_cache_close(c); /* the result's examples are names in it */
    return status;
}
