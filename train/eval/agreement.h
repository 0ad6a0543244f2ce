/* Agreement: how much of the teacher's neighbourhood a student keeps. For each image its k nearest others by the teacher's feature and by the student's; the share of the teacher's that the student
 * has too, averaged over the images. 1 = the same neighbours, k / (n - 1) = chance. It needs no labels and no head, and features of different widths can be compared.
 *
 *     KD_TRY(kd_agreement(&share, NULL, backend, teacher, 384, student, 512, n, kd_agreement_neighbours(n, KD_AGREEMENT_K), err));
 *
 * Similarity is the cosine; an image isn't its own neighbour; of equally similar ones the lower index is nearer. Neighbours are searched on the backend (neighbours.h). */
#ifndef KD_TRAIN_AGREEMENT_H
#define KD_TRAIN_AGREEMENT_H

#include <stddef.h>

#include "kernels/backend.h"

enum { KD_AGREEMENT_K = 20 /* what reports use */, KD_AGREEMENT_MAX = 1024 /* images that a run compares each epoch */ };

/* teacher [n, teacher_width], student [n, student_width]; n >= 2 (asserted). Fewer than k others: all but one of them, at least one. each: NULL, or the share of each image [n].
 * Errors: those of kd_neighbours_find. */
kd_status kd_agreement(double *share, double *each, kd_backend *b, const float *teacher, size_t teacher_width, const float *student, size_t student_width, size_t n, int k, kd_err *err);
/* How many neighbours to ask for: k; of few images at most a quarter of the others, at least one, or chance alone would look like agreement. */
int kd_agreement_neighbours(size_t n, int k);

#endif
