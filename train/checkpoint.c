#include "train/checkpoint.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/weights/safetensors.h"
#include "kernels/nn/inspect.h"

enum { VERSION = 2 };
static const char AVERAGE[] = "ema."; /* before the names of averaged parameters */
static const char VERSION_KEY[] = "kdcache_checkpoint", JSON_KEY[] = "state", HASH_KEY[] = "state_xxh3";

struct kd_checkpoint {
    kd_weights *weights;
    json_t *json;
};

/* ---- writing ---- */

typedef struct file {
    kd_arena *names;
    kd_tensor *tensors;
    void **copy; /* of the tensor of the same place, from a device's memory; NULL where the tensor is read in place */
    size_t count;
} file;

/* Adds a tensor to the hash of a set of named tensors, whatever their order. */
static void add_hash(kd_hash128 *set, const char *name, const void *data, size_t bytes) {
    kd_hash128 h = kd_xxh128_2(name, strlen(name), data, bytes);
    for (size_t i = 0; i < sizeof h.b; i++)
        set->b[i] ^= h.b[i];
}

static void hash_text(json_t *object, const char *key, kd_hash128 h) {
    char hex[33];
    kd_hex(hex, h.b, sizeof h.b);
    json_object_set_new(object, key, json_string(hex));
}

/* A new f32 tensor of the file, with the backend's values at `values`, and its hash. In the host's memory they are read where they are: a copy of weights and optimizer would be a peak of its own. */
static kd_status add_tensor(file *f, const kd_student *s, const char *name, int rank, const int64_t *shape, const float *values, kd_hash128 *hash, kd_err *err) {
    kd_tensor *t = &f->tensors[f->count];
    void *copy = NULL;
    *t = (kd_tensor){.name = kd_arena_printf(f->names, "%s/%s", s->name, name), .dtype = KD_F32, .rank = rank, .data = values};
    if (t->name == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for a checkpoint");
    for (int i = 0; i < rank; i++)
        t->shape[i] = shape[i];
    size_t count = kd_tensor_numel(t);
    if (s->backend->v->host_memory) {
        KD_TRY(s->backend->v->sync(s->backend, err));
    } else {
        KD_TRY(kd_alloc_array(&copy, count, sizeof *values, err));
        f->copy[f->count] = copy;
        t->data = copy;
    }
    f->count++;
    if (copy != NULL)
        KD_TRY(s->backend->v->download(s->backend, copy, values, count * sizeof *values, err));
    add_hash(hash, name, t->data, count * sizeof *values);
    return KD_OK;
}

static kd_status add_params(file *f, const kd_student *s, const char *prefix, const kd_params *p, kd_hash128 *hash, kd_err *err) {
    for (int i = 0; i < kd_params_count(p); i++) {
        kd_param_info info = kd_params_info(p, i);
        char name[256];
        if (info.is_counter)
            continue;
        snprintf(name, sizeof name, "%s%s", prefix, info.name);
        KD_TRY(add_tensor(f, s, name, info.rank, info.shape, kd_params_data(p, i), hash, err));
    }
    return KD_OK;
}

static kd_status add_slots(file *f, const kd_student *s, json_t *names, kd_hash128 *hash, kd_err *err) {
    for (int k = 0; k < s->optim.slots; k++) {
        const kd_optim_slot *slot = &s->optim.slot[k];
        int64_t shape[1] = {(int64_t)s->optim.total};
        KD_TRY(add_tensor(f, s, slot->name, 1, shape, slot->data, hash, err));
        json_array_append_new(names, json_string(slot->name));
    }
    return KD_OK;
}

/* Loss, then the terms. */
static json_t *sums_json(const kd_student *s) {
    json_t *list = json_array();
    for (int i = 0; i <= s->loss.terms; i++)
        json_array_append_new(list, json_real(s->sum[i]));
    return list;
}

/* Everything but tensors; hashes are added to it. */
static json_t *student_json(const kd_student *s) {
    return json_pack("{s:s, s:s, s:[i,i], s:I, s:I, s:o, s:I, s:o, s:I, s:[]}", "name", s->name, "model", s->model.name, "image_size", s->program[0].view.image_h,
                     s->program[0].view.image_w, "counter", (json_int_t)kd_params_counter(s->params), "steps", (json_int_t)s->optim.steps, "best_loss",
                     isfinite(s->best_loss) ? json_real(s->best_loss) : json_null(), "best_epoch", (json_int_t)s->best_epoch, "sum", sums_json(s), "summed",
                     (json_int_t)s->summed, "slots");
}

static kd_status add_student(file *f, const kd_student *s, int with_optimizer, json_t *list, kd_err *err) {
    kd_hash128 tensors = {{0}}, average = {{0}}, optimizer = {{0}};
    json_t *j = student_json(s);
    if (j == NULL || json_array_append_new(list, j) != 0)
        return kd_fail(err, KD_EFAIL, "out of memory for a checkpoint");
    KD_TRY(add_params(f, s, "", s->params, &tensors, err));
    hash_text(j, "tensors", tensors);
    if (s->ema.average != NULL) {
        KD_TRY(add_params(f, s, AVERAGE, s->ema.average, &average, err));
        hash_text(j, "average", average);
    }
    if (with_optimizer) {
        KD_TRY(add_slots(f, s, json_object_get(j, "slots"), &optimizer, err));
        hash_text(j, "optimizer", optimizer);
    }
    return KD_OK;
}

static json_t *metadata_of(const json_t *json) {
    char *text = kd_json_canonical(json), hex[33];
    if (text == NULL)
        return NULL;
    kd_hash128 h = kd_xxh128(text, strlen(text));
    kd_hex(hex, h.b, sizeof h.b);
    json_t *m = json_pack("{s:s, s:s, s:s}", VERSION_KEY, "2", JSON_KEY, text, HASH_KEY, hex);
    kd_free(text);
    return m;
}

kd_status kd_checkpoint_write(const char *path, kd_student *const *students, size_t n, const json_t *run, int with_optimizer, kd_err *err) {
    file f = {.names = kd_arena_create()};
    size_t tensors = 0;
    json_t *list = json_array(), *metadata = NULL;
    json_t *json = json_pack("{s:O, s:O}", "run", run, "students", list);
    for (size_t i = 0; i < n; i++)
        tensors += 2 * (size_t)kd_params_count(students[i]->params) + KD_OPTIM_SLOTS;
    kd_status status = f.names != NULL && json != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for a checkpoint");
    if (status == KD_OK)
        status = kd_alloc_array(&f.tensors, tensors, sizeof *f.tensors, err);
    if (status == KD_OK)
        status = kd_alloc_array(&f.copy, tensors, sizeof *f.copy, err);
    for (size_t i = 0; i < n && status == KD_OK; i++)
        status = add_student(&f, students[i], with_optimizer, list, err);
    if (status == KD_OK && (metadata = metadata_of(json)) == NULL)
        status = kd_fail(err, KD_EFAIL, "out of memory for a checkpoint");
    if (status == KD_OK)
        status = kd_safetensors_write(path, f.tensors, f.count, metadata, err);
    for (size_t i = 0; i < f.count; i++)
        kd_free(f.copy[i]);
    kd_free(f.copy);
    kd_free(f.tensors);
    kd_arena_destroy(f.names);
    json_decref(metadata);
    json_decref(json);
    json_decref(list);
    return status;
}

/* ---- reading ---- */

static kd_status bad(const kd_checkpoint *c, const char *what, kd_err *err) {
    return kd_fail(err, KD_EFAIL, "%s: %s; the file is damaged or not a checkpoint of this program, take another one or begin a new run", kd_weights_path(c->weights), what);
}

static kd_status read_json(kd_checkpoint *c, kd_err *err) {
    const json_t *m = kd_weights_metadata(c->weights);
    const char *version = json_string_value(json_object_get(m, VERSION_KEY));
    const char *text = json_string_value(json_object_get(m, JSON_KEY)), *hash = json_string_value(json_object_get(m, HASH_KEY));
    if (version == NULL || text == NULL || hash == NULL)
        return bad(c, "has no checkpoint metadata", err);
    if (strcmp(version, "2") != 0)
        return kd_fail(err, KD_EFAIL, "%s: checkpoint version %s and this program knows %d; resume with the program that wrote it", kd_weights_path(c->weights), version, VERSION);
    kd_hash128 h = kd_xxh128(text, strlen(text));
    char hex[33];
    kd_hex(hex, h.b, sizeof h.b);
    if (strcmp(hex, hash) != 0)
        return bad(c, "its metadata fail their hash", err);
    KD_TRY(kd_json_parse(text, strlen(text), kd_weights_path(c->weights), &c->json, err));
    if (!json_is_object(json_object_get(c->json, "run")) || !json_is_array(json_object_get(c->json, "students")))
        return bad(c, "its metadata lack the run or the students", err);
    return KD_OK;
}

kd_status kd_checkpoint_open(kd_checkpoint **out, const char *path, kd_err *err) {
    kd_checkpoint *c;
    *out = NULL;
    KD_TRY(kd_alloc_array(&c, 1, sizeof *c, err));
    kd_status status = kd_weights_open(&c->weights, path, err);
    if (status == KD_OK)
        status = read_json(c, err);
    if (status != KD_OK) {
        kd_checkpoint_close(c);
        return status;
    }
    *out = c;
    return KD_OK;
}

void kd_checkpoint_close(kd_checkpoint *c) {
    if (c == NULL)
        return;
    kd_weights_close(c->weights);
    json_decref(c->json);
    kd_free(c);
}

const json_t *kd_checkpoint_run(const kd_checkpoint *c) {
    return json_object_get(c->json, "run");
}

size_t kd_checkpoint_students(const kd_checkpoint *c) {
    return json_array_size(json_object_get(c->json, "students"));
}

const json_t *kd_checkpoint_student(const kd_checkpoint *c, size_t i) {
    return json_array_get(json_object_get(c->json, "students"), i);
}

kd_status kd_checkpoint_find(const kd_checkpoint *c, const char *name, size_t *index, kd_err *err) {
    char names[600] = "";
    size_t n = kd_checkpoint_students(c), used = 0;
    for (size_t i = 0; i < n; i++) {
        const char *have = json_string_value(json_object_get(kd_checkpoint_student(c, i), "name"));
        if (have == NULL)
            return bad(c, "a student has no name", err);
        if (name == NULL ? n == 1 : strcmp(have, name) == 0) {
            *index = i;
            return KD_OK;
        }
        if (used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "", have);
    }
    if (name == NULL)
        return kd_fail(err, KD_EUSAGE, "%s holds several students; choose one with --student: %s", kd_weights_path(c->weights), names);
    return kd_fail(err, KD_EUSAGE, "%s holds no student %s; it has: %s", kd_weights_path(c->weights), name, names);
}

/* Tensor "student/name" with exactly `count` values, added to *hash. */
static kd_status read_tensor(const kd_checkpoint *c, const char *student, const char *name, float **values, size_t count, kd_hash128 *hash, kd_err *err) {
    char full[300];
    snprintf(full, sizeof full, "%s/%s", student, name);
    int at = kd_weights_find(c->weights, full);
    if (at < 0)
        return kd_fail(err, KD_EFAIL, "%s: tensor %s is missing; the file is damaged or of another version", kd_weights_path(c->weights), full);
    float *grown = kd_realloc(*values, count * sizeof(float));
    if (grown == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for tensor %s", full);
    *values = grown;
    KD_TRY(kd_weights_read_f32(c->weights, at, *values, count, err));
    add_hash(hash, name, *values, count * sizeof(float));
    return KD_OK;
}

static kd_status check_hash(const kd_checkpoint *c, const json_t *student, const char *key, kd_hash128 got, kd_err *err) {
    char hex[33];
    const char *want = json_string_value(json_object_get(student, key));
    kd_hex(hex, got.b, sizeof got.b);
    return want != NULL && strcmp(want, hex) == 0 ? KD_OK : bad(c, "the values of a student fail their hash", err);
}

static kd_status read_params(const kd_checkpoint *c, const json_t *student, const char *prefix, kd_params *p, float **values, kd_hash128 *hash, kd_err *err) {
    const char *name = json_string_value(json_object_get(student, "name"));
    long long counter;
    for (int i = 0; i < kd_params_count(p); i++) {
        kd_param_info info = kd_params_info(p, i);
        char full[256];
        if (info.is_counter)
            continue;
        snprintf(full, sizeof full, "%s%s", prefix, info.name);
        KD_TRY(read_tensor(c, name, full, values, info.count, hash, err));
        KD_TRY(kd_params_set(p, i, *values, err));
    }
    KD_TRY(kd_json_get_int(student, "counter", "the checkpoint", &counter, err));
    kd_params_set_counter(p, counter);
    return KD_OK;
}

static kd_status read_slots(const kd_checkpoint *c, const json_t *student, kd_student *s, float **values, kd_err *err) {
    kd_hash128 hash = {{0}};
    for (int k = 0; k < s->optim.slots; k++) {
        KD_TRY(read_tensor(c, s->name, s->optim.slot[k].name, values, s->optim.total, &hash, err));
        KD_TRY(s->backend->v->upload(s->backend, s->optim.slot[k].data, *values, s->optim.total * sizeof(float), err));
    }
    return check_hash(c, student, "optimizer", hash, err);
}

static kd_status read_average(const kd_checkpoint *c, const json_t *student, kd_student *s, float **values, kd_err *err) {
    kd_hash128 hash = {{0}};
    KD_TRY(read_params(c, student, AVERAGE, s->ema.average, values, &hash, err));
    return check_hash(c, student, "average", hash, err);
}

static kd_status read_history(const json_t *j, kd_student *s, kd_err *err) {
    const json_t *best = json_object_get(j, "best_loss"), *sum = json_object_get(j, "sum");
    long long steps, best_epoch, summed;
    KD_TRY(kd_json_get_int(j, "steps", "the checkpoint", &steps, err));
    KD_TRY(kd_json_get_int(j, "best_epoch", "the checkpoint", &best_epoch, err));
    KD_TRY(kd_json_get_int(j, "summed", "the checkpoint", &summed, err));
    s->optim.steps = steps;
    s->best_epoch = best_epoch;
    s->summed = summed;
    s->best_loss = json_is_real(best) ? json_real_value(best) : INFINITY;
    for (size_t i = 0; i <= (size_t)s->loss.terms; i++)
        s->sum[i] = json_number_value(json_array_get(sum, i));
    return KD_OK;
}

kd_status kd_checkpoint_restore(const kd_checkpoint *c, kd_student *s, kd_err *err) {
    size_t i;
    kd_hash128 hash = {{0}};
    float *values = NULL;
    KD_TRY(kd_checkpoint_find(c, s->name, &i, err));
    const json_t *j = kd_checkpoint_student(c, i);
    kd_status status = read_params(c, j, "", s->params, &values, &hash, err);
    if (status == KD_OK)
        status = check_hash(c, j, "tensors", hash, err);
    if (status == KD_OK && s->ema.average != NULL)
        status = read_average(c, j, s, &values, err);
    if (status == KD_OK)
        status = read_slots(c, j, s, &values, err);
    if (status == KD_OK)
        status = read_history(j, s, err);
    kd_free(values);
    return status;
}

static int is_slot(const json_t *student, const char *name) {
    size_t i;
    json_t *slot;
    json_array_foreach(json_object_get(student, "slots"), i, slot)
        if (json_is_string(slot) && strcmp(json_string_value(slot), name) == 0)
            return 1;
    return 0;
}

/* The hash covers the heads too: what the model doesn't have of the parameters, or of the averages, is read only to be hashed. */
static kd_status hash_rest(const kd_checkpoint *c, const json_t *student, const char *prefix, const kd_params *p, float **values, kd_hash128 *hash, kd_err *err) {
    const char *owner = json_string_value(json_object_get(student, "name"));
    size_t length = strlen(owner);
    for (int i = 0; i < kd_weights_count(c->weights); i++) {
        kd_tensor t = kd_weights_info(c->weights, i);
        if (strncmp(t.name, owner, length) != 0 || t.name[length] != '/')
            continue;
        const char *name = t.name + length + 1;
        int averaged = strncmp(name, AVERAGE, strlen(AVERAGE)) == 0;
        if (averaged == (prefix[0] != '\0') && !is_slot(student, name) && kd_params_find(p, name + strlen(prefix)) < 0)
            KD_TRY(read_tensor(c, owner, name, values, kd_tensor_numel(&t), hash, err));
    }
    return KD_OK;
}

kd_status kd_checkpoint_restore_model(const kd_checkpoint *c, size_t i, kd_params *p, kd_err *err) {
    const json_t *j = kd_checkpoint_student(c, i);
    const char *set = json_object_get(j, "average") != NULL ? "average" : "tensors", *prefix = strcmp(set, "average") == 0 ? AVERAGE : "";
    kd_hash128 hash = {{0}};
    float *values = NULL;
    kd_status status = read_params(c, j, prefix, p, &values, &hash, err);
    if (status == KD_OK)
        status = hash_rest(c, j, prefix, p, &values, &hash, err);
    if (status == KD_OK)
        status = check_hash(c, j, set, hash, err);
    kd_free(values);
    return status;
}
