/* What the mutation test and the libFuzzer target do with a policy file: it is refused with a sentence, or every view that it draws is one that a cache can hold. */
#ifndef KD_TESTS_FUZZ_EXERCISE_POLICY_H
#define KD_TESTS_FUZZ_EXERCISE_POLICY_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/image/policy_file.h"

#define POLICY_MUST(condition)                                                                  \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            fprintf(stderr, "%s:%d: %s is not so\n", __FILE__, __LINE__, #condition);           \
            abort();                                                                            \
        }                                                                                       \
    } while (0)

/* Plans of pictures of many shapes are records that read back, inside the picture, and of the size asked for. */
static inline void exercise_plans(const kd_policy *p) {
    static const int side[] = {1, 5, 64, 300, 65500};
    for (uint32_t i = 0; i < 25; i++) {
        int width = side[i % 5], height = side[i / 5];
        kd_hash128 id = kd_xxh128(&i, sizeof i);
        kd_plan plan = kd_plan_draw(p, i, &id, i, width, height), again;
        uint8_t record[KD_PLAN_BYTES];
        kd_err err;
        kd_plan_encode(&plan, record);
        POLICY_MUST(kd_plan_decode(&again, record, &err) == KD_OK);
        POLICY_MUST(plan.crop_x + plan.crop_w <= width && plan.crop_y + plan.crop_h <= height);
        POLICY_MUST(plan.out_w == p->image_w && plan.out_h == p->image_h);
    }
}

/* And one of them becomes a view. */
static inline void exercise_view(const kd_policy *p) {
    static uint8_t rgb[30 * 40 * 3], out[64 * 96 * 3];
    kd_image img = {.rgb = rgb, .width = 40, .height = 30, .capacity = sizeof rgb};
    kd_hash128 id = kd_xxh128("picture", 7);
    kd_plan plan = kd_plan_draw(p, 0, &id, 0, img.width, img.height);
    kd_view_scratch scratch = {0};
    kd_err err;
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i * i * 31);
    if ((int64_t)plan.resize_w * plan.resize_h < 1 << 22)
        POLICY_MUST(kd_plan_apply(&plan, &img, out, &scratch, &err) == KD_OK);
    kd_view_scratch_free(&scratch);
}

/* 1 when the bytes are a policy. */
static inline int exercise_policy(const uint8_t *data, size_t size) {
    char path[40];
    size_t before = kd_mem_live_bytes();
    kd_policy p;
    kd_err err = {0};
    int fd = memfd_create("policy", 0);
    POLICY_MUST(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    kd_status status = kd_policy_read_file(&p, path, 64, 96, &err);
    close(fd);
    POLICY_MUST(status == KD_OK || (status == KD_EUSAGE && strstr(err.msg, path)));
    if (status == KD_OK) {
        json_decref(kd_policy_json(&p));
        exercise_plans(&p);
        exercise_view(&p);
    }
    POLICY_MUST(kd_mem_live_bytes() == before);
    return status == KD_OK;
}

#endif
