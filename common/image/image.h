/* Images: decoding foreign bytes to 8-bit RGB exactly as Pillow's Image.open(...).convert("RGB") does, and writing PNG.
 *
 *     kd_image img = {0};
 *     KD_TRY(kd_image_decode(&img, bytes, size, name, NULL, err));    // img.rgb is grown as needed and re-used
 *     ...
 *     kd_image_free(&img);
 *
 * In Pillow's words, with im = Image.open(file):
 *   JPEG          im.convert("RGB"): libjpeg's defaults (islow DCT, fancy upsampling, block smoothing), gray replicated, CMYK and YCCK inverted
 *   PNG, WebP     im.convert("RGB") where nothing is transparent, else (this project's choice, as Pillow's convert would uncover what alpha hides)
 *                 white = Image.new("RGB", im.size, "white"); white.paste(im.convert("RGB"), mask=im.convert("RGBA").getchannel("A"))
 *                 which is also Image.alpha_composite(Image.new("RGBA", im.size, "white"), im.convert("RGBA")).convert("RGB")
 *   16-bit PNG    of every sample the high byte; Pillow's convert does so too, but for gray, which it clips at 255 (use numpy: np.asarray(im) >> 8).
 *                 A transparent colour (tRNS) is compared at the file's own depth, as the PNG specification says; Pillow compares 8-bit samples with it.
 * Ignored, as by Pillow: colour profiles, gamma, EXIF orientation (unless the options say otherwise). Thread rule: no shared state. */
#ifndef KD_COMMON_IMAGE_IMAGE_H
#define KD_COMMON_IMAGE_IMAGE_H

#include "common/base/hash.h"

typedef struct kd_image {
    uint8_t *rgb; /* height x width x 3, row-major, no padding */
    int width, height;
    size_t capacity; /* bytes allocated at rgb; managed by the functions of common/image */
    uint8_t *spare;  /* second buffer: pixels with alpha, or where a picture is turned (then the two change places) */
    size_t spare_capacity;
    int x, y;        /* where the picture that rgb is a part of has this part's first pixel; 0, 0 unless kd_image_decode_box decoded a part */
} kd_image;

enum { KD_IMAGE_MAX_PIXELS = 89478485 /* Pillow's MAX_IMAGE_PIXELS warning limit */, KD_IMAGE_MAX_SIDE = 65500, KD_JPEG_MAX_SCANS = 100, KD_SNIFF_BYTES = 32 };

typedef struct kd_box {
    int x, y, w, h;
} kd_box;

/* How a picture is decoded. exif_apply is part of a cache's recipe ("exif"); max_pixels only decides which pictures are refused. */
typedef struct kd_decode_options {
    int exif_apply;     /* 1: turned upright as its EXIF orientation says, like Pillow's ImageOps.exif_transpose; 0: as its pixels are stored */
    int64_t max_pixels; /* width x height above this is refused from the header; 0: KD_IMAGE_MAX_PIXELS */
} kd_decode_options;

/* Sniffs by content: JPEG, PNG and still WebP are decoded; HEIC, AVIF, TIFF, GIF, BMP, raw photos, video and others are refused naming the kind and a
 * converter. Options NULL: the defaults. KD_EFAIL for a bad image: empty, truncated (libjpeg's end-of-file warning is an error here, as in Pillow), corrupt,
 * too many pixels or scans. `name` is for the sentence. */
kd_status kd_image_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, const kd_decode_options *options, kd_err *err);
/* The same, of only as much of the picture as is wanted: when the header is read, `want` is called once with the size of the whole (upright) picture and
 * answers with a box inside it (asserted). img then has exactly the pixels that the whole picture has there, with img->x and img->y saying where; or the whole
 * picture, where a part can't be decoded alone (only JPEGs of one scan can, with the end marker in its place) or isn't wanted. Fails exactly when decoding the
 * whole fails. Speed: about the share of rows down to the box's end, for reading, and of the box's area, for all else. */
typedef kd_box (*kd_want_box)(void *ctx, int width, int height);
kd_status kd_image_decode_box(kd_image *img, const uint8_t *bytes, size_t size, const char *name, const kd_decode_options *options, kd_want_box want, void *ctx, kd_err *err);
/* What kind of file begins so: "JPEG", "PNG", "WebP", "HEIC picture", "video (AVI)", "unknown kind", ... The first KD_SNIFF_BYTES are enough.
 * *is_read: whether kd_image_decode reads that kind. */
const char *kd_image_sniff(const uint8_t *bytes, size_t size, int *is_read);
/* The EXIF orientation of a whole JPEG, PNG or WebP file: 1 to 8; 1 when it has none or none that can be understood. Looked for where Pillow's getexif
 * looks for EXIF (first "Exif" APP1, eXIf chunk, EXIF chunk of an extended WebP) and read as leniently; XMP isn't read. */
int kd_exif_orientation(const uint8_t *bytes, size_t size);
/* Grows img to width x height (content undefined). */
kd_status kd_image_resize_buffer(kd_image *img, int width, int height, kd_err *err);
void kd_image_free(kd_image *img);

/* Encodes an RGB image as PNG into a fresh buffer (*bytes, kd_free'd by the caller; NULL after a failure). `name` is for the sentence. KD_EFAIL: memory. */
kd_status kd_png_encode(uint8_t **bytes, size_t *size, const uint8_t *rgb, int width, int height, const char *name, kd_err *err);
/* Writes an RGB image as PNG, atomically. */
kd_status kd_png_write(const char *path, const uint8_t *rgb, int width, int height, kd_err *err);
/* Encodes as baseline JPEG, 4:2:0, with Huffman tables made for the picture, into a growing buffer (*buf of *cap bytes). One build of libjpeg gives one result. `name` is for the sentence. */
kd_status kd_jpeg_encode(uint8_t **buf, size_t *cap, size_t *size, const uint8_t *rgb, int width, int height, int quality, const char *name, kd_err *err);
/* Encodes as baseline JPEG, 4:2:0, given quality: used to draw the demo's picture files. */
kd_status kd_jpeg_write(const char *path, const uint8_t *rgb, int width, int height, int quality, kd_err *err);

/* Identity of the linked decoder: XXH3-128 over the decodes of the golden files built into the program (every subsampling and colour type).
 * Equal hash = equal pixels, whatever the libraries' versions. Computed once per process. */
kd_status kd_decoder_hash(kd_hash128 *out, kd_err *err);
const char *kd_decoder_version(void); /* "libjpeg-turbo 2.1.5, libwebp 1.2.4": provenance only */

#endif
