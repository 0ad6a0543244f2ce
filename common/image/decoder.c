/* Identity of the linked JPEG and WebP decoders: the hash of what they make of the pictures built into the program. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/image/codecs.h"

static pthread_once_t once = PTHREAD_ONCE_INIT, version_once = PTHREAD_ONCE_INIT;
static char version[64];
static kd_hash128 decoder_hash;
static kd_err decoder_err;
static kd_status decoder_status;

static void put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* Appends u32 width, u32 height and the pixels of one picture. */
static kd_status append(uint8_t **all, size_t *size, const kd_golden_picture *g, kd_image *img, kd_err *err) {
    KD_TRY(kd_image_decode(img, g->bytes, g->size, g->name, NULL, err));
    size_t pixels = (size_t)img->width * (size_t)img->height * 3;
    uint8_t *grown = kd_realloc(*all, *size + 8 + pixels);
    if (!grown)
        return kd_fail(err, KD_EFAIL, "out of memory: %zu bytes for the decoder's identity", *size + 8 + pixels);
    *all = grown;
    put_u32(grown + *size, (uint32_t)img->width);
    put_u32(grown + *size + 4, (uint32_t)img->height);
    memcpy(grown + *size + 8, img->rgb, pixels);
    *size += 8 + pixels;
    return KD_OK;
}

static void compute(void) {
    kd_image img = {0};
    uint8_t *all = NULL;
    size_t size = 0;
    for (size_t i = 0; i < kd_golden_jpeg_count && decoder_status == KD_OK; i++)
        decoder_status = append(&all, &size, &kd_golden_jpegs[i], &img, &decoder_err);
    for (size_t i = 0; i < kd_golden_webp_count && decoder_status == KD_OK; i++)
        decoder_status = append(&all, &size, &kd_golden_webps[i], &img, &decoder_err);
    if (decoder_status == KD_OK)
        decoder_hash = kd_xxh128(all, size);
    kd_free(all);
    kd_image_free(&img);
}

kd_status kd_decoder_hash(kd_hash128 *out, kd_err *err) {
    pthread_once(&once, compute);
    if (decoder_status != KD_OK)
        return kd_fail(err, decoder_status, "the decoder (%s) can't read a built-in picture: %s", kd_decoder_version(), decoder_err.msg);
    *out = decoder_hash;
    return KD_OK;
}

static void compose_version(void) {
    char webp[32];
    kd_webp_version(webp, sizeof webp);
    snprintf(version, sizeof version, "%s, %s", kd_jpeg_version(), webp);
}

const char *kd_decoder_version(void) {
    pthread_once(&version_once, compose_version);
    return version;
}
