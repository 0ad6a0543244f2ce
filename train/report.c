#include "train/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/image/augment.h"
#include "train/report_charts.h"

static const char style[] =
    ":root{color-scheme:light}"
    "body{margin:0;background:#f1f5f9;color:#0f172a;font:15px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"
    "main{max-width:1240px;margin:0 auto;padding:28px 24px 60px}"
    "h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 12px}h3{font-size:16px;margin:0 0 10px}"
    ".lead{color:#475569;margin:0 0 18px}.bar{height:6px;border-radius:3px;background:#cbd5e1;overflow:hidden;margin:0 0 22px}.bar i{display:block;height:100%;background:#0072b2}"
    ".card,figure{background:#fff;border:1px solid #e2e8f0;border-radius:10px;padding:14px 16px;margin:0}"
    ".card{margin-bottom:12px}.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px}"
    ".tile{border-left:3px solid #e2e8f0;padding:0 0 0 10px}.tile b{display:block;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums}"
    ".tile span{display:block;color:#475569;font-size:13px}.tile small{color:#64748b}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));gap:14px}"
    "figcaption{display:flex;flex-wrap:wrap;gap:4px 14px;align-items:center;margin-bottom:6px}figure p{margin:4px 0 0;color:#64748b;font-size:13px}figure>svg{width:100%;height:auto;display:block}"
    ".key{display:inline-flex;gap:6px;align-items:center;color:#475569;font-size:13px}.students{display:flex;gap:18px;flex-wrap:wrap;margin:0 0 12px}"
    ".axis{fill:none;stroke:#94a3b8}.grid{stroke:#e2e8f0}.tick{fill:#64748b;font-size:11px;font-family:inherit}"
    ".maps{overflow-x:auto}.maps table{border-spacing:10px 8px;margin:-8px -10px}.maps th{font-weight:600;font-size:13px;text-align:left;vertical-align:middle;width:130px}"
    ".maps td{vertical-align:top;color:#64748b;font-size:12px;max-width:150px}.maps img{width:150px;height:auto;display:block;border-radius:6px;image-rendering:pixelated}.maps img.photo{image-rendering:auto}"
    ".path{display:block;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;direction:rtl;text-align:left}"
    ".tables{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:14px;align-items:start}"
    ".tables table{width:100%;border-collapse:collapse;font-size:13px}.tables td{padding:3px 0;border-top:1px solid #f1f5f9;vertical-align:top;overflow-wrap:anywhere}"
    ".tables td:first-child{color:#475569;padding-right:16px;white-space:nowrap}"
    "@media(max-width:520px){.charts,.tables{grid-template-columns:1fr}}@media print{body{background:#fff}.card,figure{break-inside:avoid}}";

/* ---- the top: where the run stands ---- */

static int last_of(const kd_curves *c, const char *student, const char *key, double *value) {
    const kd_curve *curve = kd_curves_find(c, student, key);
    if (curve == NULL)
        return 0;
    *value = curve->point[curve->count - 1].y;
    return 1;
}

/* A number under its name; "held" is preferred, and the number on seen views is put beside it. */
static void tile(kd_text *out, const kd_curves *c, const char *student, const char *name, const char *key, const char *format, double scale) {
    char held[96], seen[96];
    double value, other;
    snprintf(held, sizeof held, "val_%s", key);
    snprintf(seen, sizeof seen, "seen_%s", key);
    int has_held = last_of(c, student, held, &value), has_seen = last_of(c, student, seen, &other), bare = !has_held && !has_seen && last_of(c, student, key, &value);
    if (!has_held && !has_seen && !bare)
        return;
    kd_text_printf(out, "<div class=\"tile\"><span>%s</span><b>", name);
    kd_text_printf(out, format, scale * (has_held || bare ? value : other));
    kd_text_printf(out, "</b><small>%s", has_held ? "held out" : has_seen ? "seen in training" : "");
    if (has_held && has_seen) {
        kd_text_printf(out, "; seen ");
        kd_text_printf(out, format, scale * other);
    }
    kd_text_printf(out, "</small></div>");
}

static void best_tile(kd_text *out, const kd_curves *c, const char *student) {
    const kd_curve *best = kd_curves_find(c, student, "best"), *loss = kd_curves_find(c, student, "val_loss");
    if (best == NULL || loss == NULL)
        return;
    double epoch = best->point[best->count - 1].x, value = NAN;
    for (size_t i = 0; i < loss->count; i++)
        if (loss->point[i].x == epoch)
            value = loss->point[i].y;
    kd_text_printf(out, "<div class=\"tile\"><span>best held-out loss</span><b>%.4f</b><small>epoch %.0f</small></div>", value, epoch);
}

static void put_student(kd_text *out, const kd_setup *u, const kd_curves *c, size_t i) {
    const kd_student *s = u->students[i];
    kd_text_printf(out, "<div class=\"card\"><h3 style=\"color:%s\">", u->count > 1 ? kd_report_colour(i) : "inherit");
    kd_text_html(out, s->name);
    kd_text_printf(out, "</h3><div class=\"tiles\">");
    tile(out, c, s->name, "loss", "loss", "%.4f", 1);
    best_tile(out, c, s->name);
    tile(out, c, s->name, "R\xc2\xb2 of CLS", "r2_cls", "%.3f", 1);
    tile(out, c, s->name, "R\xc2\xb2 of patches", "r2_patch", "%.3f", 1);
    tile(out, c, s->name, "cosine of CLS", "cos_cls", "%.3f", 1);
    tile(out, c, s->name, "cosine of patches", "cos_patch", "%.3f", 1);
    tile(out, c, s->name, "neighbours kept", "agreement", "%.1f %%", 100);
    tile(out, c, s->name, "k-NN top-1, k = 20", "knn_top1_k20", "%.2f %%", 100);
    kd_text_printf(out, "</div></div>\n");
}

static void put_speed(kd_text *out, const kd_setup *u, const kd_curves *c) {
    double speed, wait;
    if (last_of(c, u->students[0]->name, "images_per_s", &speed) && last_of(c, u->students[0]->name, "data_wait", &wait))
        kd_text_printf(out, "; lately %.1f images/s, %.0f%% of the time waiting for data", speed, 100 * wait);
}

static void put_head(kd_text *out, const kd_setup *u, int64_t step, const kd_curves *c) {
    kd_text_printf(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>kd-train:");
    for (size_t i = 0; i < u->count; i++) {
        kd_text_printf(out, i > 0 ? ", " : " ");
        kd_text_html(out, u->students[i]->name);
    }
    kd_text_printf(out, "</title>\n<style>%s</style></head>\n<body><main>\n<h1>", style);
    for (size_t i = 0; i < u->count; i++) {
        kd_text_printf(out, i > 0 ? ", " : "");
        kd_text_html(out, u->students[i]->name);
    }
    kd_text_printf(out, "</h1>\n<p class=\"lead\">%s: epoch %.4g of %lld, step %lld of %lld; %zu images to train on, %zu held out; batches of %lld",
                   step >= u->steps ? "Finished" : "In progress", (double)step / (double)u->epoch_steps, (long long)u->config->epochs, (long long)step, (long long)u->steps, u->split.train_count,
                   u->split.held_count, (long long)u->config->batch_size);
    put_speed(out, u, c);
    kd_text_printf(out, ".</p>\n<div class=\"bar\"><i style=\"width:%.1f%%\"></i></div>\n", 100.0 * (double)step / (double)u->steps);
    for (size_t i = 0; i < u->count; i++)
        put_student(out, u, c, i);
}

/* ---- maps ---- */

static kd_status put_picture(kd_text *out, const uint8_t *rgb, int height, int width, const char *class, const char *alt, kd_err *err) {
    uint8_t *png;
    size_t size;
    KD_TRY(kd_png_encode(&png, &size, rgb, width, height, "a picture of the report", err));
    kd_text_printf(out, "<img%s alt=\"", class);
    kd_text_html(out, alt);
    kd_text_printf(out, "\" src=\"data:image/png;base64,");
    kd_text_base64(out, png, size);
    kd_text_printf(out, "\">");
    kd_free(png);
    return KD_OK;
}

static kd_status put_maps(kd_text *out, const kd_maps *m, kd_err *err) {
    if (m->photos == 0)
        return KD_OK;
    kd_text_printf(out, "<h2>What teacher and students see</h2>\n<div class=\"card\"><p class=\"lead\">The three main directions of the teacher's patch features in these photos, as red, green and blue; each "
                        "student's predictions in the same colours. Equal colours are equal features. Under a student's map: its cosine to the teacher's.</p>\n<div class=\"maps\"><table>\n");
    for (size_t c = 0; c < m->columns; c++) {
        const kd_maps_column *x = &m->column[c];
        kd_text_printf(out, "<tr><th>");
        kd_text_html(out, x->title);
        kd_text_printf(out, "</th>");
        for (int i = 0; i < m->photos; i++) {
            kd_text_printf(out, "<td>");
            KD_TRY(put_picture(out, x->tile[i], x->h, x->w, c == 0 ? " class=\"photo\"" : "", c == 0 ? m->name[i] : x->title, err));
            if (c == 0) {
                kd_text_printf(out, "<span class=\"path\">");
                kd_text_html(out, m->name[i]);
                kd_text_printf(out, "</span>");
            } else if (x->student >= 0) {
                kd_text_printf(out, "%.3f", x->cosine[i]);
            }
            kd_text_printf(out, "</td>");
        }
        kd_text_printf(out, "</tr>\n");
    }
    kd_text_printf(out, "</table></div></div>\n");
    return KD_OK;
}

/* ---- tables ---- */

static void row(kd_text *out, const char *name, const char *value) {
    kd_text_printf(out, "<tr><td>");
    kd_text_html(out, name);
    kd_text_printf(out, "</td><td>");
    kd_text_html(out, value);
    kd_text_printf(out, "</td></tr>\n");
}

static void put_setting(kd_text *out, const char *name, const json_t *value) {
    char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    row(out, name, json_is_string(value) ? json_string_value(value) : text != NULL ? text : "");
    free(text); /* jansson's allocator */
}

static void put_identity_of(kd_text *out, const kd_setup *u, size_t k) {
    const kd_source *source = &u->groups.group[k].source;
    const kd_recipe *r = kd_source_recipe(source);
    const json_t *teacher = json_object_get(r->json, "teacher");
    const char *family = json_string_value(json_object_get(teacher, "family")), *sha256 = json_string_value(json_object_get(teacher, "sha256"));
    char sha[65], text[120], size[KD_SIZE_TEXT];
    kd_hex(sha, r->sha.b, 32);
    row(out, u->groups.count > 1 ? "recipe (one of several)" : "recipe of the cache", sha);
    snprintf(text, sizeof text, "%zu images, %llu views of %s px", kd_source_images(source), (unsigned long long)kd_source_views(source), kd_image_size_text(r->image_h, r->image_w, size));
    row(out, "cache", text);
    snprintf(text, sizeof text, "%s%swidth %d, layer %d", family != NULL ? family : "", family != NULL ? ", " : "", r->width, (int)u->config->teacher_layer);
    row(out, "teacher", text);
    row(out, "teacher's weights (SHA-256)", sha256 != NULL ? sha256 : "unknown");
}

static void put_tables(kd_text *out, const kd_setup *u) {
    char text[240], hex[33];
    const char *key;
    json_t *value;
    kd_text_printf(out, "<h2>Settings and identity</h2>\n<div class=\"tables\"><div class=\"card\"><h3>Identity</h3><table>\n");
    for (size_t k = 0; k < u->groups.count; k++)
        put_identity_of(out, u, k);
    kd_hex(hex, u->images.b, 16);
    row(out, "images and views in use (XXH3)", hex);
    row(out, "device", u->backend->v->describe(u->backend));
    snprintf(text, sizeof text, "%d", u->threads);
    row(out, "threads", text);
    row(out, "decoder", kd_decoder_version());
    row(out, "kdcache", kd_version);
    for (size_t i = 0; i < u->count; i++) {
        const kd_student *s = u->students[i];
        char size[KD_SIZE_TEXT];
        snprintf(text, sizeof text, "%.2f M parameters with heads, at %s px, loss %s, learning rate %.3g, weight decay %.3g", (double)s->optim.total * 1e-6,
                 kd_image_size_text(s->program[0].view.image_h, s->program[0].view.image_w, size), s->loss.name, s->hyper.lr, s->hyper.optim.weight_decay);
        row(out, s->name, text);
    }
    kd_text_printf(out, "</table></div>\n<div class=\"card\"><h3>Settings</h3><table>\n");
    json_object_foreach(u->options, key, value) {
        put_setting(out, key, value);
    }
    kd_text_printf(out, "</table></div></div>\n");
}

/* ---- the page ---- */

static kd_status put_charts(kd_text *out, const kd_setup *u, const kd_curves *c, kd_err *err) {
    const char **names;
    KD_TRY(kd_alloc_array(&names, u->count, sizeof *names, err));
    for (size_t i = 0; i < u->count; i++)
        names[i] = u->students[i]->name;
    kd_text_printf(out, "<h2>Curves</h2>\n");
    kd_report_charts(out, c, names, u->count, err);
    kd_free(names);
    return KD_OK;
}

static kd_status compose(kd_text *out, const kd_setup *u, int64_t step, const kd_maps *maps, const char *metrics, kd_err *err) {
    kd_curves c = {0};
    kd_status status = kd_curves_read(&c, metrics, u->epoch_steps, err);
    if (status == KD_OK) {
        put_head(out, u, step, &c);
        status = put_charts(out, u, &c, err);
    }
    kd_curves_free(&c);
    KD_TRY(status);
    KD_TRY(put_maps(out, maps, err));
    put_tables(out, u);
    kd_text_printf(out, "</main></body></html>\n");
    return kd_text_check(out, "the report", err);
}

kd_status kd_report_write(const kd_setup *setup, int64_t step, const kd_maps *maps, kd_err *err) {
    char *metrics = kd_asprintf("%s/metrics.jsonl", setup->config->out), *path = kd_asprintf("%s/report.html", setup->config->out);
    kd_text page = {0};
    kd_status status = metrics != NULL && path != NULL ? compose(&page, setup, step, maps, metrics, err) : kd_fail(err, KD_EFAIL, "out of memory for the report");
    if (status == KD_OK)
        status = kd_io_write_atomic(path, page.at, page.size, err);
    kd_text_free(&page);
    kd_free(metrics);
    kd_free(path);
    return status;
}
