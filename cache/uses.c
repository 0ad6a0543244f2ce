#include "cache/uses.h"

#include <stdio.h>
#include <string.h>

#include "common/image/augment.h"

/* By what of the teacher they learn with their own weights (docs/losses.md): the CLS token; patches; patches, but no single token of them. tests/unit/test_uses.c holds them against kd-train's rule. */
static const char losses_of_cls[] = "std-mse, kl-queue, kl-queue+intra, mse-normalized, cosine, cos-sl1, radio, unic, smooth-l1, kl-logits";
static const char losses_of_patches[] = "std-mse, mse, kl-queue+intra, mse-normalized, cosine, cos-sl1, radio, unic, smooth-l1, gram";
static const char losses_of_sums[] = "std-mse, mse";

/* "resnet18" or, where its map fits at a smaller size, "resnet18 --student-size 112". 0: its map is never h x w. */
static int fitting(char out[KD_USE_TEXT], const char *name, const kd_recipe *r, int h, int w)
{
    static const int stride[] = {14, 16, 32};
    char size[KD_SIZE_TEXT];
    kd_map_size map;
    if (kd_student_map(&map, name, r->image_h, r->image_w, NULL) == KD_OK && map.h == h && map.w == w) {
        snprintf(out, KD_USE_TEXT, "%s", name);
        return 1;
    }
    for (int i = 0; i < 3; i++) {
        int height = h * stride[i], width = w * stride[i];
        if (height > r->image_h || width > r->image_w || kd_student_map(&map, name, height, width, NULL) != KD_OK || map.h != h || map.w != w)
            continue;
        snprintf(out, KD_USE_TEXT, "%s --student-size %s", name, kd_image_size_text(height, width, size));
        return 1;
    }
    return 0;
}

static void find_students(kd_use *u, const kd_recipe *r, const kd_target *t)
{
    const char *name;
    for (size_t i = 0; (name = kd_student_example(i)) != NULL && u->students < KD_USE_STUDENTS; i++)
        u->students += fitting(u->student[u->students], name, r, t->h, t->w);
}

int kd_recipe_uses(kd_use use[1 + KD_MAX_TARGETS], const kd_recipe *r)
{
    int n = 0;
    char target[KD_TARGET_TEXT];
    if (kd_recipe_has(r, KD_FEATURE_CLS))
        use[n++] = (kd_use){.stored = "cls", .every = 1, .losses = losses_of_cls};
    for (int i = 0; i < r->targets; i++) {
        kd_use *u = &use[n++];
        int adjoint = r->target[i].kind == KD_TARGET_ADJOINT;
        *u = (kd_use){.every = !adjoint, .losses = adjoint ? losses_of_sums : losses_of_patches};
        snprintf(u->stored, sizeof u->stored, "patch %s", kd_target_text(&r->target[i], target));
        if (!u->every)
            find_students(u, r, &r->target[i]);
    }
    return n;
}

/* A student that sees views of this size. */
static const char *any_student(const kd_recipe *r)
{
    const char *name;
    kd_map_size map;
    for (size_t i = 0; (name = kd_student_example(i)) != NULL; i++) {
        if (kd_student_map(&map, name, r->image_h, r->image_w, NULL) == KD_OK)
            return name;
    }
    return NULL;
}

const char *kd_recipe_train_arguments(const kd_recipe *r, char *buf, size_t cap)
{
    kd_use use[1 + KD_MAX_TARGETS];
    int n = kd_recipe_uses(use, r), cls = kd_recipe_has(r, KD_FEATURE_CLS), patches = 0;
    const char *student = NULL;
    buf[0] = 0;
    for (int i = cls; i < n && !student; i++) {
        student = use[i].every ? any_student(r) : use[i].students ? use[i].student[0] : NULL;
        patches = student != NULL;
    }
    if (!student && cls)
        student = any_student(r);
    if (student)
        snprintf(buf, cap, "--student %s%s%s", student, cls ? "" : " --cls-weight 0", patches ? "" : " --patch-weight 0");
    return buf;
}
