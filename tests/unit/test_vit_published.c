/* The published models, by the names and shapes that the original implementations print (tests/golden/teachers/names, recipe there): every one is recognised, whole, with its hub name and its number
 * of parameters; and networks that are no teachers are called what they are. The files are sparse: all header, no data. */
#include <fcntl.h>

#include "common/base/json.h"
#include "common/weights/vit_spec.h"
#include "tests/weight_files.h"

#define NAMES "tests/golden/teachers/names/"
enum { MAX_LINES = 64, LINE = 160 };

/* One paragraph of a golden file. */
typedef struct paragraph {
    char head[LINE];
    char line[MAX_LINES][LINE];
    int lines;
} paragraph;

/* 0 at the end of the file. */
static int next_paragraph(FILE *f, paragraph *p)
{
    char line[LINE];
    p->lines = 0;
    p->head[0] = '\0';
    while (fgets(line, sizeof line, f) != NULL) {
        assert_true(strlen(line) < LINE - 1);
        line[strcspn(line, "\n")] = '\0';
        if (line[0] == '\0')
            break;
        if (p->head[0] == '\0') {
            snprintf(p->head, LINE, "%s", line);
        } else {
            assert_true(p->lines < MAX_LINES);
            snprintf(p->line[p->lines++], LINE, "%s", line);
        }
    }
    return p->head[0] != '\0';
}

/* -- a file of these tensors ---------------------------------------------------------------------------------------------------------- */

static float rounded_periods[64];

/* Adds one F32 tensor to the header; periods get values, all else stays a hole. */
static void describe(json_t *header, const char *line, int block, uint64_t *end, uint64_t *periods_at)
{
    char name[2 * LINE], pattern[LINE];
    const char *rest = strchr(line, ' ');
    size_t n = rest != NULL ? (size_t)(rest - line) : strlen(line);
    snprintf(pattern, sizeof pattern, "%.*s", (int)n, line);
    char *mark = strchr(pattern, '#');
    if (mark != NULL)
        snprintf(name, sizeof name, "%.*s%d%s", (int)(mark - pattern), pattern, block, mark + 1);
    else
        snprintf(name, sizeof name, "%s", pattern);
    json_t *shape = json_array();
    uint64_t bytes = 4;
    for (char *p = (char *)(rest != NULL ? rest : ""); *p != '\0';) {
        long size = strtol(p, &p, 10);
        json_array_append_new(shape, json_integer(size));
        bytes *= (uint64_t)size;
    }
    if (strstr(name, "periods") != NULL)
        *periods_at = *end;
    assert_int_equal(json_object_set_new(header, name, json_pack("{s:s, s:o, s:[I,I]}", "dtype", "F32", "shape", shape, "data_offsets", (json_int_t)*end, (json_int_t)(*end + bytes))), 0);
    *end += bytes;
}

/* Depth 0: names are whole. */
static kd_weights *open_paragraph(const paragraph *p, int depth)
{
    json_t *header = json_object();
    uint64_t end = 0, periods_at = UINT64_MAX;
    for (int i = 0; i < p->lines; i++)
        for (int block = 0; block < (strchr(p->line[i], '#') != NULL ? depth : 1); block++)
            describe(header, p->line[i], block, &end, &periods_at);
    char *text = json_dumps(header, JSON_COMPACT);
    const char *path = wf_path("published.safetensors");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint64_t size = strlen(text);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, &size, 8), 8);
    assert_int_equal(write(fd, text, size), (ssize_t)size);
    assert_int_equal(ftruncate(fd, (off_t)(8 + size + end)), 0);
    if (periods_at != UINT64_MAX)
        assert_true(pwrite(fd, rounded_periods, sizeof rounded_periods, (off_t)(8 + size + periods_at)) > 0);
    assert_int_equal(close(fd), 0);
    free(text);
    json_decref(header);
    kd_err err = {0};
    kd_weights *w = NULL;
    if (kd_weights_open(&w, path, &err) != KD_OK)
        fail_msg("%s", err.msg);
    unlink(path);
    return w;
}

/* -- teachers -------------------------------------------------------------------------------------------------------------------------- */

static void same_numbers(const kd_vit_spec *a, const kd_vit_spec *b)
{
    assert_int_equal(a->family, b->family);
    assert_int_equal(a->heads, b->heads);
    assert_int_equal(a->ffn, b->ffn);
    assert_int_equal(a->ffn_hidden, b->ffn_hidden);
    assert_int_equal(a->registers, b->registers);
    assert_int_equal(a->pos_grid, b->pos_grid);
    assert_int_equal(a->periods, b->periods);
    assert_true(a->ln_eps == b->ln_eps);
    assert_int_equal(a->parameters, b->parameters);
}

/* What the canonical parameters have and the file leaves out: zero biases, and the class token's row of positions that timm has added to the token. */
static int64_t left_out(const kd_vit_spec *s, long long numbers)
{
    int64_t d = s->width, missing = s->parameters - numbers, blocks = s->depth * d;
    return missing == 0 || missing == d || missing == blocks || missing == 3 * blocks ? missing : -1;
}

static void check_model(const paragraph *p, kd_vit_layout layout)
{
    int depth, used, from;
    long long numbers;
    kd_err err = {0};
    kd_vit_report r;
    kd_vit_spec named;
    if (sscanf(p->head, "model %d %d %lld %n", &depth, &used, &numbers, &from) < 3)
        fail_msg("not a model: %s", p->head);
    kd_weights *w = open_paragraph(p, depth);
    if (kd_vit_inspect(w, NULL, &r, &err) != KD_OK)
        fail_msg("%s: %s", p->head, err.msg);
    if (r.problem[0] != '\0')
        fail_msg("%s: %s", p->head, r.problem);
    assert_string_equal(r.spec.name, p->head + from);
    assert_int_equal(r.spec.layout, layout);
    assert_int_equal(r.spec.depth, depth);
    assert_int_equal(r.used, used);
    assert_int_equal(r.missing.count + r.unexpected.count + r.misshapen.count + r.outside, 0);
    assert_int_equal(r.used + r.ignored.count, kd_weights_count(w));
    if (left_out(&r.spec, numbers) < 0 || (layout == KD_VIT_LAYOUT_OFFICIAL && r.spec.width != 4096 && numbers != r.spec.parameters))
        fail_msg("%s: %lld parameters of %lld", p->head, (long long)r.spec.parameters, numbers);
    if (strchr(r.spec.name, ' ') == NULL) {
        assert_true(kd_vit_named(r.spec.name, &named));
        same_numbers(&r.spec, &named);
    }
    kd_vit_report_free(&r);
    kd_weights_close(w);
}

static int check_models(const char *file, kd_vit_layout layout)
{
    FILE *f = fopen(file, "r");
    paragraph p;
    int models = 0;
    assert_non_null(f);
    for (int i = 0; i < 64; i++)
        rounded_periods[i] = 1.0f + (float)i; /* any above 0 */
    for (; next_paragraph(f, &p); models++)
        check_model(&p, layout);
    fclose(f);
    return models;
}

static void every_official_model_is_recognised(void **state)
{
    (void)state;
    assert_int_equal(check_models(NAMES "official.txt", KD_VIT_LAYOUT_OFFICIAL), 16);
}

static void every_hugging_face_model_is_recognised(void **state)
{
    (void)state;
    assert_int_equal(check_models(NAMES "hf.txt", KD_VIT_LAYOUT_HF), 30);
}

static void every_timm_model_is_recognised(void **state)
{
    (void)state;
    assert_int_equal(check_models(NAMES "timm.txt", KD_VIT_LAYOUT_TIMM), 32);
}

/* The published counts (DINOv2's with its mask token, DINOv3's too): dinov2 MODEL_CARD.md says 21M, 86M, 300M, 1,100M. */
static void parameters_are_those_of_the_model_cards(void **state)
{
    (void)state;
    static const struct { const char *name; int64_t published; } cases[] = {
        {"dinov2_vits14", 22056576}, {"dinov2_vits14_reg", 22058112}, {"dinov2_vitb14", 86580480}, {"dinov2_vitb14_reg", 86583552}, {"dinov2_vitl14", 304368640},
        {"dinov2_vitl14_reg", 304372736}, {"dinov2_vitg14", 1136480768}, {"dinov2_vitg14_reg", 1136486912}, {"dinov3_vits16", 21601152}, {"dinov3_vits16plus", 28697472},
        {"dinov3_vitb16", 85669632}, {"dinov3_vitl16", 303154176}, {"dinov3_vitl16plus", 403915776}, {"dinov3_vith16plus", 840633600},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kd_vit_spec s;
        assert_true(kd_vit_named(cases[i].name, &s));
        assert_int_equal(s.parameters + s.width, cases[i].published);
    }
}

static void every_name_has_a_model(void **state)
{
    (void)state;
    const char *const *names;
    size_t n = kd_vit_names(&names);
    kd_vit_spec s;
    assert_true(n >= 31);
    for (size_t i = 0; i < n; i++) {
        assert_true(kd_vit_named(names[i], &s));
        assert_string_equal(s.name, names[i]);
        assert_true(s.parameters > 0 && s.mean[0] > 0 && s.heads > 0 && s.width % s.heads == 0);
    }
    assert_false(kd_vit_named("resnet18", &s));
}

/* -- other networks ---------------------------------------------------------------------------------------------------------------------- */

static void other_networks_are_called_what_they_are(void **state)
{
    (void)state;
    FILE *f = fopen(NAMES "foreign.txt", "r");
    paragraph p;
    int networks = 0;
    assert_non_null(f);
    for (; next_paragraph(f, &p); networks++) {
        kd_vit_spec s;
        kd_err err = {0};
        assert_int_equal(strncmp(p.head, "foreign ", 8), 0);
        kd_weights *w = open_paragraph(&p, 0);
        assert_int_equal(kd_vit_detect(w, NULL, &s, &err), KD_EUSAGE);
        kd_weights_close(w);
        if (strstr(err.msg, p.head + 8) == NULL)
            fail_msg("expected '%s' in: %s", p.head + 8, err.msg);
    }
    fclose(f);
    assert_true(networks >= 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_official_model_is_recognised),
        cmocka_unit_test(every_hugging_face_model_is_recognised),
        cmocka_unit_test(every_timm_model_is_recognised),
        cmocka_unit_test(parameters_are_those_of_the_model_cards),
        cmocka_unit_test(every_name_has_a_model),
        cmocka_unit_test(other_networks_are_called_what_they_are),
    };
    return cmocka_run_group_tests_name("vit_published", tests, NULL, NULL);
}
