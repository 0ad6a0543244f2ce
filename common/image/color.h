/* Colour operations on dense RGB uint8, bit for bit Pillow's ImageEnhance / torchvision's functional_pil (formulas: the sources named in color.c).
 * n = number of pixels. In place. Rounding to uint8 happens after each operation, as in Pillow. */
#ifndef KD_COMMON_IMAGE_COLOR_H
#define KD_COMMON_IMAGE_COLOR_H

#include <stddef.h>
#include <stdint.h>

void kd_color_brightness(uint8_t *rgb, size_t n, float factor);
void kd_color_contrast(uint8_t *rgb, size_t n, float factor);
void kd_color_saturation(uint8_t *rgb, size_t n, float factor);
void kd_color_hue(uint8_t *rgb, size_t n, float factor); /* factor in [-0.5, 0.5] */
void kd_color_grayscale(uint8_t *rgb, size_t n);
void kd_color_solarize(uint8_t *rgb, size_t n, int threshold); /* v < threshold ? v : 255 - v; 0 .. 256, 256 changes nothing */
void kd_color_hflip(uint8_t *rgb, int width, int height);
void kd_color_vflip(uint8_t *rgb, int width, int height);

#endif
