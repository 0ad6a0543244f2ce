/* WebP through libwebp: the only file that includes webp/decode.h.
 *
 * Still pictures, lossy and lossless. RGB is what libwebp's WebPDecode gives with its defaults (fancy upsampling, no dithering, no filtering of its own), and so
 * does Pillow. Transparent pictures are laid over white. Animations are refused: which frame would be meant? */
#include <stdio.h>
#include <string.h>

#include <webp/decode.h>

#include "common/image/codecs.h"

/* A RIFF file says how long it is. What follows is ignored, what is missing makes the file truncated, as libwebp's demuxer (and so Pillow) decides. */
static kd_status riff_size(const uint8_t *bytes, size_t *size, const char *name, kd_err *err) {
    uint32_t announced = (uint32_t)bytes[4] | (uint32_t)bytes[5] << 8 | (uint32_t)bytes[6] << 16 | (uint32_t)bytes[7] << 24;
    if ((uint64_t)announced + 8 > *size)
        return kd_fail(err, KD_EFAIL, "%s is truncated: the WebP header announces %llu bytes and the file has %zu", name, (unsigned long long)announced + 8, *size);
    *size = (size_t)announced + 8;
    return KD_OK;
}

static kd_status failed(VP8StatusCode code, const char *name, kd_err *err) {
    switch (code) {
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
        return kd_fail(err, KD_EFAIL, "%s is truncated: the WebP data end before the picture is complete", name);
    case VP8_STATUS_OUT_OF_MEMORY:
        return kd_fail(err, KD_EFAIL, "%s: out of memory in the WebP decoder", name);
    case VP8_STATUS_UNSUPPORTED_FEATURE:
        return kd_fail(err, KD_EFAIL, "%s: this kind of WebP isn't supported by libwebp; convert it to JPEG or PNG", name);
    default:
        return kd_fail(err, KD_EFAIL, "%s: corrupt WebP (libwebp's status %d)", name, (int)code);
    }
}

kd_status kd_webp_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err) {
    WebPDecoderConfig c;
    KD_TRY(riff_size(bytes, &size, name, err));
    if (!WebPInitDecoderConfig(&c))
        return kd_fail(err, KD_EFAIL, "%s: the WebP library that is loaded isn't the one that this program was built with", name);
    VP8StatusCode code = WebPGetFeatures(bytes, size, &c.input);
    if (code != VP8_STATUS_OK)
        return failed(code, name, err);
    if (c.input.has_animation)
        return kd_fail(err, KD_EFAIL, "%s is an animated WebP, which isn't read; take a frame of it, for example: webpmux -get frame 1 IN -o OUT.webp", name);
    KD_TRY(kd_image_check_size((uint64_t)c.input.width, (uint64_t)c.input.height, max_pixels, name, err));
    KD_TRY(kd_image_resize_buffer(img, c.input.width, c.input.height, err));
    size_t width = (size_t)img->width, pixels = width * (size_t)img->height, channels = c.input.has_alpha ? 4 : 3;
    if (c.input.has_alpha)
        KD_TRY(kd_image_reserve_spare(img, pixels * 4, err));
    c.output.colorspace = c.input.has_alpha ? MODE_RGBA : MODE_RGB;
    c.output.is_external_memory = 1;
    c.output.u.RGBA.rgba = c.input.has_alpha ? img->spare : img->rgb;
    c.output.u.RGBA.stride = (int)(width * channels);
    c.output.u.RGBA.size = pixels * channels;
    code = WebPDecode(bytes, size, &c);
    if (code != VP8_STATUS_OK)
        return failed(code, name, err);
    if (c.input.has_alpha)
        kd_over_white(img->rgb, img->spare, pixels);
    return KD_OK;
}

void kd_webp_version(char *out, size_t cap) {
    unsigned v = (unsigned)WebPGetDecoderVersion();
    snprintf(out, cap, "libwebp %u.%u.%u", v >> 16, v >> 8 & 255, v & 255);
}
