/* The small random teachers of tests/golden/teachers/cases.txt: their weights and pictures, computed by the formula that make_golden.py uses (README.md there), and the outputs of the original
 * implementations. For tests only: everything is asserted. */
#ifndef KD_TESTS_TEACHER_CASES_H
#define KD_TESTS_TEACHER_CASES_H

#include <stdio.h>

#include "common/tensor/tensor.h"

#define TEACHER_FOLDER "tests/golden/teachers/"
enum { TEACHER_MAX_TENSORS = 128, TEACHER_PATCH_ROWS = 4 };

typedef struct teacher_case {
    char name[80];
    int patch, width, registers, depth;
    char prefix[64];    /* text before every name in the file */
    char normalize[32]; /* --normalize that this file needs; "auto" when detection knows */
    size_t count;
    kd_tensor tensor[TEACHER_MAX_TENSORS]; /* names with the prefix; values from malloc */
} teacher_case;

/* Reads the next case; 0 at the end of the file. The previous one must have been freed. */
int teacher_case_next(FILE *cases, teacher_case *c);
void teacher_case_free(teacher_case *c);
/* Values in offset - scale .. offset + scale. */
void teacher_formula(const char *name, float offset, float scale, float *out, size_t n);
/* uint8 [height,width,3] */
void teacher_pixels(int height, int width, unsigned char *out);
/* Which patch of `patches` is row `row` of a golden tensor's four. */
int teacher_patch_row(int row, int patches);

#endif
