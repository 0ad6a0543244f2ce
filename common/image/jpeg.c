/* JPEG through the libjpeg API: the only file that includes jpeglib.h.
 *
 * What is accepted mirrors Pillow (src/libImaging/JpegDecode.c): the source suspends at the end of the bytes, so a picture whose
 * last row can't be decoded from what is there is truncated; a missing end marker after the last row is not. Warnings about
 * corrupt entropy data are tolerated, as Pillow does. On top come limits against hostile files: pixels, scans, memory. */
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
/* jerror.h after jpeglib.h: the codes that tell "unsupported" from "corrupt". */
#include <jerror.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/image/codecs.h"

#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo is needed: other libjpegs decode to other pixels"
#endif
#if LIBJPEG_TURBO_VERSION_NUMBER < 2000003
#error "libjpeg-turbo 2.0.3 or newer is needed (4:4:0 upsampling changed there)"
#endif

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

enum { ROWS_PER_CALL = 8 };
/* Coefficient memory of the largest picture that the pixel cap admits: 4 components x 2 bytes, and half as much again for incomplete blocks and buffers. */
enum { MEMORY_PER_PIXEL = 12, MEMORY_AT_LEAST = 64 << 20 };

typedef struct jpeg_failure {
    struct jpeg_error_mgr pub; /* first: libjpeg hands back a pointer to it */
    jmp_buf jump;
    int code;
    char text[JMSG_LENGTH_MAX];
} jpeg_failure;

/* Replaces libjpeg's exit(): leaves through the setjmp of the running function. */
static void on_error(j_common_ptr cinfo) {
    jpeg_failure *f = (jpeg_failure *)cinfo->err;
    f->code = f->pub.msg_code;
    f->pub.format_message(cinfo, f->text);
    longjmp(f->jump, 1);
}

static void on_message(j_common_ptr cinfo, int level) {
    if (level < 0)
        cinfo->err->num_warnings++;
}

static void on_output(j_common_ptr cinfo) { (void)cinfo; }

static struct jpeg_error_mgr *failure_init(jpeg_failure *f) {
    jpeg_std_error(&f->pub);
    f->pub.error_exit = on_error;
    f->pub.emit_message = on_message;
    f->pub.output_message = on_output;
    return &f->pub;
}

/* ---- decoding ---- */

typedef struct jpeg_reader {
    struct jpeg_decompress_struct cinfo;
    jpeg_failure failure;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    int too_many_scans;
    kd_image *img;
    int64_t max_pixels;
    const char *name;
    kd_err *err;
    kd_want_box want; /* NULL: the whole picture */
    void *want_ctx;
    int trust_parts;  /* 1: a part is decoded alone without asking whether that is exact (this is how it is found out) */
} jpeg_reader;

static void source_nothing(j_decompress_ptr cinfo) { (void)cinfo; }

/* All bytes were there from the start: asking for more means that the file ends early, and FALSE suspends the decoder. */
static boolean source_fill(j_decompress_ptr cinfo) {
    (void)cinfo;
    return FALSE;
}

static void source_skip(j_decompress_ptr cinfo, long bytes) {
    struct jpeg_source_mgr *s = cinfo->src;
    if (bytes <= 0)
        return;
    size_t n = (size_t)bytes < s->bytes_in_buffer ? (size_t)bytes : s->bytes_in_buffer;
    s->next_input_byte += n;
    s->bytes_in_buffer -= n;
}

/* Called by libjpeg between rows and scans: a file of thousands of scans would take seconds for a few kilobytes. */
static void count_scans(j_common_ptr cinfo) {
    j_decompress_ptr d = (j_decompress_ptr)cinfo;
    if (d->input_scan_number > KD_JPEG_MAX_SCANS) {
        jpeg_reader *r = d->client_data;
        r->too_many_scans = 1;
        longjmp(r->failure.jump, 1);
    }
}

static kd_status truncated(const jpeg_reader *r) {
    return kd_fail(r->err, KD_EFAIL, "%s is truncated: the JPEG data ends before row %u of %u is complete", r->name,
                   (unsigned)r->cinfo.output_scanline + 1, (unsigned)r->cinfo.image_height);
}

/* Pillow reads CMYK files as inverted whether or not an Adobe marker says so ("CMYK;I"), then Convert.c cmyk2rgb. */
static void cmyk_row_to_rgb(uint8_t *rgb, const uint8_t *cmyk, size_t width) {
    for (size_t x = 0; x < width; x++, rgb += 3, cmyk += 4) {
        int light = cmyk[3]; /* 255 - K, where K = 255 - stored */
        for (int c = 0; c < 3; c++) {
            int v = light - kd_div255((unsigned)(255 - cmyk[c]) * (unsigned)light);
            rgb[c] = (uint8_t)(v < 0 ? 0 : v);
        }
    }
}

static kd_status read_cmyk_rows(jpeg_reader *r) {
    j_decompress_ptr d = &r->cinfo;
    JSAMPARRAY row = d->mem->alloc_sarray((j_common_ptr)d, JPOOL_IMAGE, d->output_width * 4, 1);
    while (d->output_scanline < d->output_height) {
        uint8_t *dst = r->img->rgb + (size_t)d->output_scanline * d->output_width * 3;
        if (jpeg_read_scanlines(d, row, 1) != 1)
            return truncated(r);
        cmyk_row_to_rgb(dst, row[0], d->output_width);
    }
    return KD_OK;
}

static kd_status read_rgb_rows(jpeg_reader *r) {
    j_decompress_ptr d = &r->cinfo;
    while (d->output_scanline < d->output_height) {
        JSAMPROW row[ROWS_PER_CALL];
        unsigned left = d->output_height - d->output_scanline;
        unsigned n = left < ROWS_PER_CALL ? left : ROWS_PER_CALL;
        for (unsigned i = 0; i < n; i++)
            row[i] = r->img->rgb + ((size_t)d->output_scanline + i) * d->output_width * 3;
        if (jpeg_read_scanlines(d, row, n) == 0)
            return truncated(r);
    }
    return KD_OK;
}

int kd_jpeg_next_segment(const uint8_t *bytes, size_t size, size_t *at, size_t *length) {
    size_t p = *at;
    while (size >= 4 && p <= size - 4) {
        int marker = bytes[p + 1];
        if (bytes[p] != 0xFF || marker == 0xFF || marker == 0) {
            p++;
            continue;
        }
        p += 2;
        if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) /* without a segment */
            continue;
        size_t n = (size_t)bytes[p] << 8 | bytes[p + 1];
        if (marker == 0xD9 || marker == 0xDA || n < 2 || n > size - p)
            return 0;
        *at = p + 2;
        *length = n - 2;
        return marker;
    }
    return 0;
}

/* libjpeg-turbo 3 decodes lossless JPEGs, 2 doesn't: what is accepted must not depend on it, and the identity of the decoder doesn't cover them. */
static kd_status refuse_lossless(const jpeg_reader *r, const uint8_t *bytes, size_t size) {
    size_t at = 2, n;
    for (int marker; (marker = kd_jpeg_next_segment(bytes, size, &at, &n)) != 0; at += n)
        if (marker == 0xC3 || marker == 0xC7 || marker == 0xCB || marker == 0xCF)
            return kd_fail(r->err, KD_EFAIL, "%s: lossless JPEG isn't supported; convert it to an 8-bit baseline or progressive JPEG, or to PNG", r->name);
    return KD_OK;
}

static kd_status check_header(jpeg_reader *r) {
    j_decompress_ptr d = &r->cinfo;
    KD_TRY(kd_image_check_size(d->image_width, d->image_height, r->max_pixels, r->name, r->err));
    if (d->data_precision != 8)
        return kd_fail(r->err, KD_EFAIL, "%s: JPEG with %d bits per sample isn't supported (8 are); convert it first", r->name, d->data_precision);
    if (d->num_components != 1 && d->num_components != 3 && d->num_components != 4)
        return kd_fail(r->err, KD_EFAIL, "%s: JPEG with %d components isn't supported (1, 3 and 4 are)", r->name, d->num_components);
    return KD_OK;
}

/* ---- a part of a picture ----
 *
 * In a picture of one scan, rows above the box are only read (their codes must be, to know where the next ones begin), columns beside it aren't transformed,
 * and rows below it aren't touched. Upsampled chroma depends on the neighbours, and the edge of what is decoded would count as the edge of the picture: so a
 * margin is decoded on each side, up to the border of a unit (MCU), and thrown away. One pixel has a wrong neighbour. */
enum { MARGIN = 2 };

/* Whether the coded data from p on reaches the end marker with nothing but restart markers between: then the decoder can't run out of bytes, nor meet anything
 * behind the rows that would fail the whole picture, and leaving rows out accepts the same files. */
static int reaches_end_marker(const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    while ((p = memchr(p, 0xFF, (size_t)(end - p))) != NULL) {
        while (p < end && *p == 0xFF)
            p++;
        if (p == end)
            return 0;
        if (*p != 0 && (*p < 0xD0 || *p > 0xD7))
            return *p == 0xD9;
    }
    return 0;
}

/* Gray, and three components of which the first has all the samples: what cameras and encoders write, and what the tests compare. */
static int has_common_layout(const struct jpeg_decompress_struct *d) {
    for (int i = d->num_components == 3; i < d->num_components; i++)
        if (d->comp_info[i].h_samp_factor != 1 || d->comp_info[i].v_samp_factor != 1)
            return 0;
    return d->num_components == 1 || d->num_components == 3;
}

static int can_decode_part(jpeg_reader *r) {
    j_decompress_ptr d = &r->cinfo;
    return has_common_layout(d) && !jpeg_has_multiple_scans(d) && !d->arith_code && reaches_end_marker(r->source.next_input_byte, r->source.bytes_in_buffer) &&
           (r->trust_parts || kd_jpeg_parts_are_exact());
}

static kd_box unit_of(const struct jpeg_decompress_struct *d) {
    return (kd_box){.w = d->max_h_samp_factor * DCTSIZE, .h = d->max_v_samp_factor * DCTSIZE};
}

/* The columns or rows (from .. from + n of `all`) that are decoded for the wanted ones: the margins, in whole units. */
static void widen(int *from, int *n, int unit, int all) {
    int lo = *from < MARGIN ? 0 : (*from - MARGIN) / unit * unit, hi = (*from + *n + MARGIN + unit - 1) / unit * unit;
    *from = lo;
    *n = (hi > all ? all : hi) - lo;
}

/* Rows `y` .. into the image's first row and on, of which the columns of the box are kept. */
static kd_status read_part(jpeg_reader *r, kd_box box, kd_box wide) {
    j_decompress_ptr d = &r->cinfo;
    JDIMENSION x = (JDIMENSION)wide.x, width = (JDIMENSION)wide.w;
    if (!jpeg_start_decompress(d))
        return truncated(r);
    jpeg_crop_scanline(d, &x, &width);
    KD_ASSERT((int)x == wide.x && (int)width >= wide.w);
    JSAMPARRAY row = d->mem->alloc_sarray((j_common_ptr)d, JPOOL_IMAGE, width * 3, ROWS_PER_CALL);
    if (wide.y > 0 && jpeg_skip_scanlines(d, (JDIMENSION)wide.y) != (JDIMENSION)wide.y)
        return truncated(r);
    const size_t bytes = 3 * (size_t)box.w, left = 3 * (size_t)(box.x - wide.x);
    const int end = box.y + box.h;
    for (int y = wide.y; y < end;) {
        int most = y < box.y ? box.y - y : end - y;
        int n = (int)jpeg_read_scanlines(d, row, (JDIMENSION)(most < ROWS_PER_CALL ? most : ROWS_PER_CALL));
        if (n == 0)
            return truncated(r);
        for (int i = 0; i < n && y >= box.y; i++)
            memcpy(r->img->rgb + (size_t)(y - box.y + i) * bytes, row[i] + left, bytes);
        y += n;
    }
    return KD_OK;
}

/* The wanted part of the picture; KD_DONE when the whole is to be decoded. */
static kd_status decode_part(jpeg_reader *r) {
    j_decompress_ptr d = &r->cinfo;
    const int width = (int)d->image_width, height = (int)d->image_height;
    if (r->want == NULL)
        return KD_DONE;
    kd_box box = r->want(r->want_ctx, width, height), unit = unit_of(d), wide = box;
    KD_ASSERT(box.x >= 0 && box.y >= 0 && box.w > 0 && box.h > 0 && box.w <= width && box.h <= height && box.x <= width - box.w && box.y <= height - box.h);
    widen(&wide.x, &wide.w, unit.w, width);
    widen(&wide.y, &wide.h, unit.h, height);
    if ((wide.w == width && wide.h == height) || !can_decode_part(r))
        return KD_DONE;
    KD_TRY(kd_image_resize_buffer(r->img, box.w, box.h, r->err));
    r->img->x = box.x;
    r->img->y = box.y;
    return read_part(r, box, wide);
}

/* Between setjmp and a longjmp only objects behind r change, so nothing here is indeterminate after the jump. */
static kd_status decode_guarded(jpeg_reader *r, const uint8_t *bytes, size_t size) {
    j_decompress_ptr d = &r->cinfo;
    if (setjmp(r->failure.jump)) {
        int code = r->failure.code;
        if (r->too_many_scans)
            return kd_fail(r->err, KD_EFAIL, "%s: JPEG with more than %d scans; such files are made to waste time, re-encode it", r->name, KD_JPEG_MAX_SCANS);
        if (code == JERR_BAD_PRECISION || code == JERR_SOF_UNSUPPORTED || code == JERR_ARITH_NOTIMPL || code == JERR_CONVERSION_NOTIMPL)
            return kd_fail(r->err, KD_EFAIL, "%s: this kind of JPEG isn't supported (%s); convert it to an 8-bit baseline or progressive JPEG", r->name,
                           r->failure.text);
        return kd_fail(r->err, KD_EFAIL, "%s: corrupt JPEG: %s", r->name, r->failure.text);
    }
    jpeg_create_decompress(d);
    d->client_data = r;
    d->mem->max_memory_to_use = MEMORY_AT_LEAST + MEMORY_PER_PIXEL * (long)r->max_pixels;
    r->source = (struct jpeg_source_mgr){.next_input_byte = bytes, .bytes_in_buffer = size, .init_source = source_nothing,
        .fill_input_buffer = source_fill, .skip_input_data = source_skip, .resync_to_restart = jpeg_resync_to_restart, .term_source = source_nothing};
    d->src = &r->source;
    r->progress.progress_monitor = count_scans;
    d->progress = &r->progress;

    KD_TRY(refuse_lossless(r, bytes, size));
    if (jpeg_read_header(d, TRUE) != JPEG_HEADER_OK)
        return kd_fail(r->err, KD_EFAIL, "%s is truncated: the JPEG data ends inside the header", r->name);
    KD_TRY(check_header(r));
    d->out_color_space = d->num_components == 4 ? JCS_CMYK : JCS_RGB;
    kd_status part = decode_part(r);
    if (part != KD_DONE)
        return part;
    KD_TRY(kd_image_resize_buffer(r->img, (int)d->image_width, (int)d->image_height, r->err));
    if (!jpeg_start_decompress(d))
        return truncated(r);
    KD_TRY(d->num_components == 4 ? read_cmyk_rows(r) : read_rgb_rows(r));
    /* FALSE means that the end marker is missing: every row is there, and Pillow accepts it too. */
    (void)jpeg_finish_decompress(d);
    return KD_OK;
}

static kd_status decode(jpeg_reader *r, const uint8_t *bytes, size_t size) {
    r->cinfo.err = failure_init(&r->failure);
    kd_status status = decode_guarded(r, bytes, size);
    jpeg_destroy_decompress(&r->cinfo);
    return status;
}

kd_status kd_jpeg_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err) {
    jpeg_reader r = {.img = img, .max_pixels = max_pixels, .name = name, .err = err};
    return decode(&r, bytes, size);
}

kd_status kd_jpeg_decode_box(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_want_box want, void *ctx, kd_err *err) {
    jpeg_reader r = {.img = img, .max_pixels = max_pixels, .name = name, .err = err, .want = want, .want_ctx = ctx};
    return decode(&r, bytes, size);
}

/* ---- whether parts are exact with the linked library ---- */

/* A box in the middle, at several distances from the borders of units. */
static kd_box middle(void *ctx, int width, int height) {
    const int *shift = ctx;
    int x = width / 2 - *shift, y = height / 2 - *shift;
    return (kd_box){x < 0 ? 0 : x, y < 0 ? 0 : y, (width + 3) / 4, (height + 3) / 4};
}

static int parts_exact;

static void compare_parts(void) {
    kd_image whole = {0}, part = {0};
    int same = 1;
    for (size_t i = 0; i < kd_golden_jpeg_count && same; i++) {
        const kd_golden_picture *g = &kd_golden_jpegs[i];
        jpeg_reader all = {.img = &whole, .max_pixels = KD_IMAGE_MAX_PIXELS, .name = g->name};
        same = decode(&all, g->bytes, g->size) == KD_OK;
        for (int shift = 0; shift <= 8 && same; shift += 2) {
            jpeg_reader some = {.img = &part, .max_pixels = KD_IMAGE_MAX_PIXELS, .name = g->name, .want = middle, .want_ctx = &shift, .trust_parts = 1};
            same = decode(&some, g->bytes, g->size) == KD_OK;
            for (int y = 0; y < part.height && same; y++)
                same = memcmp(part.rgb + (size_t)y * (size_t)part.width * 3, whole.rgb + ((size_t)(part.y + y) * (size_t)whole.width + (size_t)part.x) * 3,
                              (size_t)part.width * 3) == 0;
        }
    }
    parts_exact = same;
    kd_image_free(&whole);
    kd_image_free(&part);
}

int kd_jpeg_parts_are_exact(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, compare_parts);
    return parts_exact;
}

/* ---- encoding ---- */

typedef struct jpeg_writer {
    struct jpeg_compress_struct cinfo;
    jpeg_failure failure;
    unsigned char *bytes; /* malloc'd by jpeg_mem_dest */
    unsigned long size;
} jpeg_writer;

static kd_status encode_guarded(jpeg_writer *w, const char *path, const uint8_t *rgb, int width, int height, int quality, int optimize, kd_err *err) {
    j_compress_ptr c = &w->cinfo;
    if (setjmp(w->failure.jump))
        return kd_fail(err, KD_EFAIL, "%s: encoding the JPEG failed: %s", path, w->failure.text);
    jpeg_create_compress(c);
    jpeg_mem_dest(c, &w->bytes, &w->size);
    c->image_width = (JDIMENSION)width;
    c->image_height = (JDIMENSION)height;
    c->input_components = 3;
    c->in_color_space = JCS_RGB;
    jpeg_set_defaults(c); /* 4:2:0, baseline */
    jpeg_set_quality(c, quality, TRUE);
    c->optimize_coding = optimize;
    jpeg_start_compress(c, TRUE);
    while (c->next_scanline < c->image_height) {
        JSAMPROW row = (JSAMPROW)(uintptr_t)(rgb + (size_t)c->next_scanline * (size_t)width * 3); /* libjpeg doesn't write to it */
        jpeg_write_scanlines(c, &row, 1);
    }
    jpeg_finish_compress(c);
    return KD_OK;
}

kd_status kd_jpeg_encode(uint8_t **buf, size_t *cap, size_t *size, const uint8_t *rgb, int width, int height, int quality, const char *name, kd_err *err) {
    jpeg_writer w = {.bytes = NULL};
    w.cinfo.err = failure_init(&w.failure);
    kd_status status = encode_guarded(&w, name, rgb, width, height, quality, 1, err);
    jpeg_destroy_compress(&w.cinfo);
    if (status == KD_OK && w.size > *cap) {
        kd_free(*buf);
        *cap = w.size + w.size / 2;
        *buf = kd_malloc(*cap);
        if (*buf == NULL) {
            *cap = 0;
            status = kd_fail(err, KD_EFAIL, "%s: out of memory for %lu bytes of JPEG", name, w.size);
        }
    }
    if (status == KD_OK)
        memcpy(*buf, w.bytes, *size = w.size);
    free(w.bytes);
    return status;
}

kd_status kd_jpeg_write(const char *path, const uint8_t *rgb, int width, int height, int quality, kd_err *err) {
    jpeg_writer w = {.bytes = NULL};
    w.cinfo.err = failure_init(&w.failure);
    kd_status status = encode_guarded(&w, path, rgb, width, height, quality, 0, err);
    jpeg_destroy_compress(&w.cinfo);
    if (status == KD_OK)
        status = kd_io_write_atomic(path, w.bytes, w.size, err);
    free(w.bytes);
    return status;
}

const char *kd_jpeg_version(void) { return "libjpeg-turbo " TEXT(LIBJPEG_TURBO_VERSION); }
