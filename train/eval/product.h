/* Product: matrix products of the linear classifiers (logreg.h in f64, linear.h in f32), which train on the host.
 *
 *     out[m][n] += sum over k of a(m, k) * b[k][n]        a(m, k) = a[m * a_row + k * a_k]
 *
 * The strides of a make one function serve both products of a step: scores X W (a_row = width, a_k = 1) and gradients X^T R (a_row = 1, a_k = width).
 * Each element is summed in the order of k, in unfused operations of its type, whatever m is: splitting the rows over threads changes no bit. */
#ifndef KD_TRAIN_PRODUCT_H
#define KD_TRAIN_PRODUCT_H

#include <stddef.h>

enum { KD_PRODUCT_COLUMNS = 16 }; /* n must be a multiple; pad with zeros */

/* Smallest allowed n that holds `columns`. */
size_t kd_product_padded(size_t columns);
/* out [m][n] and b [k][n] are dense and don't overlap with a or each other. One thread. */
void kd_product_f64(double *out, const double *a, size_t a_row, size_t a_k, const double *b, size_t m, size_t k, size_t n);
void kd_product_f32(float *out, const float *a, size_t a_row, size_t a_k, const float *b, size_t m, size_t k, size_t n);

#endif
