/* Captions: a line of text in an RGB picture, for pictures that must say by themselves what they show. A dot matrix of 5 x 7 points (and one below for g, p, q, y) as character displays have it; printable
 * ASCII, any other character is drawn as '?'.
 *
 *     const uint8_t black[3] = {0};
 *     kd_caption_draw(rgb, height, width, 8, 8, 2, "teacher", black);    // 12 points a character, 16 high
 *
 * Thread rule: no shared state. */
#ifndef KD_COMMON_IMAGE_CAPTION_H
#define KD_COMMON_IMAGE_CAPTION_H

#include <stdint.h>

enum { KD_CAPTION_ADVANCE = 6, KD_CAPTION_HEIGHT = 8 /* of a character at scale 1 */ };

/* rgb [height][width][3]; the first character's upper left corner is at row y, column x; each point of a character becomes scale x scale pixels. What lies outside the picture isn't drawn. */
void kd_caption_draw(uint8_t *rgb, int height, int width, int y, int x, int scale, const char *text, const uint8_t colour[3]);
/* Characters of UTF-8 text: what it is drawn as. */
int kd_caption_length(const char *text);

#endif
