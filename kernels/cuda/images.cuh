/* Loops over a tensor image by image (or row of pixels by row of pixels): a block belongs to one of them, blockIdx.x, so that what a thread divides by is 32 bits wide. */
#ifndef KD_KERNELS_CUDA_IMAGES_CUH
#define KD_KERNELS_CUDA_IMAGES_CUH

#include "kernels/cuda/device.cuh"

enum { KD_IMAGE_THREADS = 128 };

/* A width in steps: groups of eight values where it is a multiple of eight, else single values, so that neighbouring threads always touch neighbouring memory. `each` and `whole` are what
 * kd_load_some and its like take. */
typedef struct kd_steps {
    unsigned count;
    int each, whole;
} kd_steps;

static inline kd_steps kd_steps_of(size_t width) {
    int whole = width % 8 == 0;
    KD_ASSERT(width <= INT32_MAX);
    return (kd_steps){(unsigned)(whole ? width / 8 : width), whole ? 8 : 1, whole};
}

/* The grid for `each` items of each image, KD_IMAGE_THREADS threads a block. */
static inline dim3 kd_image_grid(size_t images, size_t each) {
    size_t blocks = (each + KD_IMAGE_THREADS - 1) / KD_IMAGE_THREADS;
    KD_ASSERT(images <= INT32_MAX && each <= INT32_MAX);
    return dim3((unsigned)images, (unsigned)(blocks < 65535 ? blocks : 65535));
}

#define kd_each_of_image(i, n) for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < (n); i += gridDim.y * blockDim.x)

#endif
