/* Models once they are found: what sizes and layers they take, their graphs and what those cost. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernels/nn/graph_impl.h"
#include "kernels/nn/model_builders.h"

enum { LARGEST_SIDE = 8192 };

/* ---- sizes and layers ---- */

static kd_status check_side(const kd_model_info *m, int side, const char *which, kd_err *err) {
    int fitting = (side + m->multiple / 2) / m->multiple * m->multiple, largest = LARGEST_SIDE / m->multiple * m->multiple;
    fitting = fitting < m->smallest ? m->smallest : fitting > largest ? largest : fitting;
    if (side != fitting)
        return kd_fail(err, KD_EUSAGE, "%s: image %s %d isn't a multiple of %d from %d to %d; the nearest is %d", m->name, which, side, m->multiple, m->smallest, LARGEST_SIDE, fitting);
    return KD_OK;
}

kd_status kd_model_check_size(const kd_model_info *m, int height, int width, kd_err *err) {
    KD_TRY(check_side(m, height, height == width ? "size" : "height", err));
    KD_TRY(check_side(m, width, "width", err));
    return KD_OK;
}

kd_status kd_model_check_layers(const kd_model_info *m, const kd_layer_choice *c, kd_err *err) {
    if (c->features == 0 || c->layers < 1)
        return kd_fail(err, KD_EUSAGE, "nothing is asked of the teacher: name at least one feature and one layer");
    if (c->layers > KD_LAYERS_MAX)
        return kd_fail(err, KD_EUSAGE, "%d layers are asked for, and at most %d can be", c->layers, KD_LAYERS_MAX);
    if ((c->features & KD_WANT_REGISTERS) && m->vit.registers == 0)
        return kd_fail(err, KD_EUSAGE, "%s has no register tokens; leave \"registers\" out of the features", m->name);
    for (int i = 0; i < c->layers; i++) {
        if (c->layer[i] < 1 || c->layer[i] > m->vit.depth)
            return kd_fail(err, KD_EUSAGE, "layer %d isn't one of %s, which has %d blocks (1 is the last, %d the first)", c->layer[i], m->name, m->vit.depth, m->vit.depth);
        if (i > 0 && c->layer[i] <= c->layer[i - 1])
            return kd_fail(err, KD_EUSAGE, "layers %d, %d aren't in ascending order", c->layer[i - 1], c->layer[i]);
    }
    return KD_OK;
}

/* ---- building ---- */

static kd_val images(kd_graph *g, const kd_model_info *m, int height, int width) {
    KD_ASSERT(height >= m->smallest && height % m->multiple == 0 && width >= m->smallest && width % m->multiple == 0);
    return kd_graph_normalize(g, kd_graph_images(g, height, width), m->mean, m->std);
}

void kd_model_add_tap(kd_graph *g, kd_model_taps *taps, kd_val x, const char *format, ...) {
    va_list args;
    int rank;
    int64_t shape[3];
    if (taps->maps == KD_MODEL_TAPS)
        memmove(taps->tap, taps->tap + 1, (size_t)--taps->maps * sizeof *taps->tap);
    kd_model_tap *t = &taps->tap[taps->maps++];
    va_start(args, format);
    vsnprintf(t->name, sizeof t->name, format, args);
    va_end(args);
    kd_graph_shape(g, x, &rank, shape);
    t->val = x;
    t->h = (int)shape[0];
    t->w = (int)shape[1];
    t->channels = (int)shape[2];
}

void kd_model_set_map(kd_graph *g, kd_model_taps *taps, kd_val x) {
    int rank;
    int64_t shape[3];
    kd_graph_shape(g, x, &rank, shape);
    taps->map = kd_graph_as_f32(g, x);
    taps->map_h = (int)shape[0];
    taps->map_w = (int)shape[1];
    taps->pooled = taps->cls = kd_graph_mean_tokens(g, x);
}

kd_val kd_model_drop_path(kd_graph *g, kd_val y, const kd_model_info *m, const kd_model_options *o, int branch) {
    char name[32];
    if (!(kd_model_drop_chance(m, o->drop_path, branch) > 0))
        return y;
    snprintf(name, sizeof name, "drop_path.%d", branch);
    return kd_graph_row_scale(g, y, kd_graph_input(g, name, 1, (int64_t[]){1}));
}

const kd_model_tap *kd_model_tap_find(const kd_model_taps *taps, const char *name) {
    for (int i = 0; i < taps->maps; i++)
        if (strcmp(taps->tap[i].name, name) == 0)
            return &taps->tap[i];
    return NULL;
}

double kd_model_drop_chance(const kd_model_info *m, double drop_path, int branch) {
    if (!(drop_path > 0) || m->branches == 0)
        return 0;
    int blocks = m->branches / m->block_branches;
    return blocks > 1 ? drop_path * (branch / m->block_branches) / (blocks - 1) : 0;
}

kd_model_taps kd_model_build_with(kd_graph *g, const kd_model_info *m, int height, int width, const kd_model_options *o) {
    const kd_model_family *family = kd_model_family_of(m);
    kd_val x = images(g, m, height, width);
    kd_model_taps taps = family ? family->build(g, x, m, o) : kd_vit_build(g, x, m, o);
    kd_graph_output(g, taps.pooled, "pooled");
    kd_graph_output(g, taps.cls, "cls");
    kd_graph_output(g, taps.map, "map");
    return taps;
}

kd_model_taps kd_model_build(kd_graph *g, const kd_model_info *m, int height, int width) {
    return kd_model_build_with(g, m, height, width, &(kd_model_options){0});
}

void kd_model_build_layers(kd_graph *g, const kd_model_info *m, int height, int width, const kd_layer_choice *choice) {
    KD_ASSERT(m->kind == KD_MODEL_VIT && kd_model_check_layers(m, choice, NULL) == KD_OK);
    kd_vit_build_layers(g, images(g, m, height, width), m, choice);
}

kd_status kd_model_graph(kd_graph **out, const kd_model_info *m, kd_err *err) {
    *out = kd_graph_create();
    if (!*out)
        return kd_fail(err, KD_EFAIL, "out of memory for the names of %s", m->name);
    kd_model_build(*out, m, m->smallest, m->smallest); /* names don't depend on the size */
    return KD_OK;
}

/* ---- what it costs ---- */

static kd_tdesc one_row(const kd_graph *g, kd_val v) {
    const kd_gval *gv = &g->vals[v];
    kd_tdesc t = {.dtype = KD_F32, .rank = 1 + gv->rank, .shape = {1}};
    for (int i = 0; i < gv->rank; i++)
        t.shape[1 + i] = gv->shape[i];
    return t;
}

static double node_flops(const kd_graph *g, const kd_gnode *n) {
    kd_op_desc d = n->desc;
    for (int k = 0; k < d.inputs; k++)
        d.x[k] = one_row(g, n->x[k]);
    d.y = one_row(g, n->y);
    return kd_op_flops(&d);
}

kd_status kd_model_measure(kd_model_facts *f, const kd_model_info *m, int height, int width, kd_err *err) {
    *f = (kd_model_facts){0};
    kd_graph *g = kd_graph_create();
    if (g)
        f->taps = kd_model_build(g, m, height, width);
    kd_status status = !g || g->failed ? kd_fail(err, KD_EFAIL, "out of memory for the graph of %s", m->name) : KD_OK;
    for (int i = 0; status == KD_OK && i < g->param_count; i++)
        f->parameters += g->params[i].info.is_state || g->params[i].info.carried ? 0 : g->params[i].info.count;
    for (int i = 0; status == KD_OK && i < g->node_count; i++)
        f->flops += node_flops(g, &g->nodes[i]);
    kd_graph_destroy(g);
    return status;
}
