/* kd-cache repair. */
#include <stdio.h>
#include <string.h>

#include "cache/commands.h"
#include "cache/repair.h"

static const kd_option table[] = {
    {"FILE.kdc|DIR", KD_OPT_STRINGS, offsetof(kd_cache_config, files), "FILE.kdc|DIR", NULL, 0, 0, KD_OPT_REQUIRED | KD_OPT_POSITIONAL,
     "damaged cache, or folder of shards, all of which go into one; give a damaged shard alone to leave the others as they are"},
    KD_OPTION_FLAG(kd_cache_config, drop_bad, "drop-bad", "write --out; without it, only say what would be dropped"),
    KD_OPTION_STRING(kd_cache_config, out, "out", "REPAIRED.kdc", NULL, 0, "file to write; the views that are lost are listed in REPAIRED.kdc.missing.txt"),
    KD_CACHE_FORCE,
    KD_OPTION_END,
};
const kd_program kd_cache_repair_program = {
    .name = "kd-cache repair",
    .summary = "Saves every sound view of a damaged cache into a new file and lists the others for kd-precompute --fill.",
    .examples = "  $ kd-cache repair photos.kdc\n  $ kd-cache repair photos.kdc --drop-bad --out repaired.kdc\n",
    .epilog = "Reads every byte, and works on files that no other command opens: broken pages, cut files, a missing manifest. The damaged file stays as it is.\n"
              "Exit codes: 0 sound, or with --drop-bad: written; 2 usage; 10 not found; 12 damaged, or with --drop-bad: nothing could be saved; 13 files of different recipes; 14 no space; "
              "130, 143 interrupted.\n",
    .options = table,
};

static void report(void *ctx, const char *sentence)
{
    const kd_cache_config *config = ctx;
    char text[5000];
    json_t *line;
    kd_text_escape(text, sizeof text, sentence);
    if (!config->json) {
        printf("%s\n", text);
        return;
    }
    line = json_pack("{s:s,s:s}", "type", "result", "problem", text);
    kd_json_line(line);
    json_decref(line);
}

static void summary(const kd_cache_config *config, const kd_repair_result *r)
{
    char missing[5000], out[5000];
    json_t *line;
    if (config->json) {
        line = json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "type", "summary", "files", (json_int_t)r->files, "bad_files", (json_int_t)r->bad_files, "images", (json_int_t)r->images,
                         "views", (json_int_t)r->views, "lost_views", (json_int_t)r->lost_views, "lost_entries", (json_int_t)r->lost_entries, "lost_images", (json_int_t)r->lost_images);
        if (config->drop_bad)
            json_object_set_new(line, "out", kd_json_bytes(config->out, strlen(config->out)));
        if (r->missing[0])
            json_object_set_new(line, "missing", kd_json_bytes(r->missing, strlen(r->missing)));
        kd_json_line(line);
        json_decref(line);
        return;
    }
    printf("%llu views of %llu images are sound, %llu views are lost\n", (unsigned long long)r->views, (unsigned long long)r->images, (unsigned long long)r->lost_views);
    if (r->lost_images)
        printf("%llu more images are lost without a trace: kd-precompute on the same images computes what is missing\n", (unsigned long long)r->lost_images);
    if (config->drop_bad)
        printf("written: %s\n", kd_text_escape(out, sizeof out, config->out));
    if (r->missing[0])
        printf("listed: %s, for kd-precompute --fill\n", kd_text_escape(missing, sizeof missing, r->missing));
}

kd_status kd_cache_repair_run(const kd_cache_config *config, kd_err *err)
{
    kd_repair_job job = {.paths = config->files.item, .count = config->files.count, .out = config->drop_bad ? config->out : NULL, .force = config->force, .command = config->command,
                         .report = report,
                         .ctx = (void *)(uintptr_t)config};
    kd_repair_result r;
    if (!config->drop_bad != !config->out)
        return kd_fail(err, KD_EUSAGE, "--drop-bad and --out REPAIRED.kdc belong together; without both, nothing is written and the damage is only counted");
    KD_TRY(kd_cache_repair(&job, &r, err));
    summary(config, &r);
    if (!config->drop_bad && (r.bad_files > 0 || r.lost_views > 0 || r.lost_entries > 0))
        return kd_fail(err, KD_EDAMAGED, "%s: damaged: %llu views would be dropped; kd-cache repair %s --drop-bad --out REPAIRED.kdc saves the other %llu", config->files.item[0],
                       (unsigned long long)r.lost_views, config->files.item[0], (unsigned long long)r.views);
    return KD_OK;
}
