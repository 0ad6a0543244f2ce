#include "train/eval/pca_grid.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/image/caption.h"
#include "common/image/image.h"

enum { MARGIN = 16, GAP = 12, HEAD = 44 /* title and note */, FOOT = 24 /* a line below a tile */, LARGE = 2 };

typedef struct canvas {
    uint8_t *rgb;
    int h, w;
} canvas;

static const uint8_t ink[3] = {15, 23, 42}, pale[3] = {100, 116, 139};

/* text, or as much of it as fits in `width` pixels: its beginning, or with keep_end its end. */
static void draw_text(canvas *c, int y, int x, int width, int scale, const char *text, int keep_end, const uint8_t colour[3]) {
    char line[KD_PCA_CAPTION];
    size_t fits = (size_t)(width / (KD_CAPTION_ADVANCE * scale)), n = strlen(text);
    size_t from = keep_end && n > fits ? n - fits : 0;
    fits = fits < sizeof line - 1 ? fits : sizeof line - 1;
    size_t take = n - from < fits ? n - from : fits;
    memcpy(line, text + from, take);
    line[take] = '\0';
    kd_caption_draw(c->rgb, c->h, c->w, y, x, scale, line, colour);
}

static void draw_tile(canvas *c, int top, int left, const kd_pca_grid *g, const kd_pca_column *column, size_t photo) {
    const uint8_t *from = column->rgb + photo * (size_t)column->h * (size_t)column->w * 3;
    for (int y = 0; y < g->tile_h; y++)
        for (int x = 0; x < g->tile_w; x++)
            memcpy(c->rgb + ((size_t)(top + y) * (size_t)c->w + (size_t)(left + x)) * 3, from + ((size_t)(y * column->h / g->tile_h) * (size_t)column->w + (size_t)(x * column->w / g->tile_w)) * 3, 3);
}

kd_status kd_pca_grid_write(const char *path, const kd_pca_grid *g, kd_err *err) {
    int pitch_x = g->tile_w + GAP, pitch_y = g->tile_h + FOOT;
    canvas c = {.h = MARGIN + HEAD + (int)g->photos * pitch_y + MARGIN / 2, .w = 2 * MARGIN + (int)g->columns * pitch_x - GAP};
    KD_TRY(kd_alloc_array(&c.rgb, (size_t)c.h, (size_t)c.w * 3, err));
    memset(c.rgb, 255, (size_t)c.h * (size_t)c.w * 3);
    for (size_t k = 0; k < g->columns; k++) {
        const kd_pca_column *column = &g->column[k];
        int left = MARGIN + (int)k * pitch_x;
        int large = kd_caption_length(column->title) * KD_CAPTION_ADVANCE * LARGE <= g->tile_w;
        draw_text(&c, MARGIN, left, g->tile_w, large ? LARGE : 1, column->title, 0, ink);
        draw_text(&c, MARGIN + 24, left, g->tile_w, 1, column->note, 0, pale);
        for (size_t i = 0; i < g->photos; i++) {
            int top = MARGIN + HEAD + (int)i * pitch_y;
            draw_tile(&c, top, left, g, column, i);
            if (column->below != NULL)
                draw_text(&c, top + g->tile_h + 6, left, g->tile_w, 1, column->below[i], 1, ink);
        }
    }
    kd_status status = kd_png_write(path, c.rgb, c.w, c.h, err);
    kd_free(c.rgb);
    return status;
}
