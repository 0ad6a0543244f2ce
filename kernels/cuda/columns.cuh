/* Kernels that run down rows of channels. A thread has eight channels, keeps their parameters and sums in registers and takes row after row; a block is a tile of `across` threads beside
 * each other times `down` rows. Where a row is narrower than a tile, a warp takes several rows, which lie one after the other in memory.
 *
 *            channels ->  8 8 8 8 | 8 8 8 8
 *     rows of part 0      block 0 | block 1      tiles = 2, parts = 2: blocks are numbered along the channels, then along the parts, then along the images
 *     rows of part 1      block 2 | block 3
 *
 * Sums over rows: f32 over KD_TILE_FOLD_ROWS rows of a thread, those in f64 in shared memory, then over the block's threads, then (kd_parts) over the parts; how rows are parted depends on
 * the shape alone.
 * Everything here expects tensors that begin at a multiple of 16 bytes. */
#ifndef KD_KERNELS_CUDA_COLUMNS_CUH
#define KD_KERNELS_CUDA_COLUMNS_CUH

#include "kernels/cuda/device.cuh"

/* ---- eight values as they lie in memory: several loads are under way before the first is converted ---- */

struct kd_raw8 {
    uint4 low, high; /* bf16: eight values in `low` */
};

/* As kd_load_some. */
static __device__ __forceinline__ kd_raw8 kd_load_raw(const void *p, int bf16, size_t i, int n, int whole) {
    kd_raw8 r;
    r.low = r.high = make_uint4(0, 0, 0, 0);
    if (whole) {
        const uint4 *q = (const uint4 *)((const char *)p + (i << (bf16 ? 1 : 2)));
        r.low = q[0];
        if (!bf16)
            r.high = q[1];
    } else {
        kd_f8 v = kd_load_some(p, bf16, i, n, 0);
        r.low = make_uint4(__float_as_uint(v.v[0]), __float_as_uint(v.v[1]), __float_as_uint(v.v[2]), __float_as_uint(v.v[3]));
        r.high = make_uint4(__float_as_uint(v.v[4]), __float_as_uint(v.v[5]), __float_as_uint(v.v[6]), __float_as_uint(v.v[7]));
    }
    return r;
}

/* The values of kd_load_raw(.., bf16, .., whole). */
static __device__ __forceinline__ kd_f8 kd_values(kd_raw8 r, int bf16, int whole) {
    kd_f8 v;
    if (bf16 && whole) {
        v.v[0] = kd_low(r.low.x), v.v[1] = kd_high(r.low.x), v.v[2] = kd_low(r.low.y), v.v[3] = kd_high(r.low.y);
        v.v[4] = kd_low(r.low.z), v.v[5] = kd_high(r.low.z), v.v[6] = kd_low(r.low.w), v.v[7] = kd_high(r.low.w);
    } else {
        v.v[0] = __uint_as_float(r.low.x), v.v[1] = __uint_as_float(r.low.y), v.v[2] = __uint_as_float(r.low.z), v.v[3] = __uint_as_float(r.low.w);
        v.v[4] = __uint_as_float(r.high.x), v.v[5] = __uint_as_float(r.high.y), v.v[6] = __uint_as_float(r.high.z), v.v[7] = __uint_as_float(r.high.w);
    }
    return v;
}

/* act(v), and g times act' at v, for the activations that follow a normalisation or an addition; the choice is made once for eight values. */
template <int act> static __device__ __forceinline__ kd_f8 kd_act_values(kd_f8 v) {
    for (int k = 0; k < 8; k++)
        v.v[k] = kd_act_of(act, v.v[k]);
    return v;
}

template <int act> static __device__ __forceinline__ kd_f8 kd_dact_values(kd_f8 g, kd_f8 v) {
    for (int k = 0; k < 8; k++)
        g.v[k] *= kd_dact_of(act, v.v[k]);
    return g;
}

static __device__ __forceinline__ kd_f8 kd_act8(int act, kd_f8 v) {
    switch (act) {
    case KD_ACT_RELU: return kd_act_values<KD_ACT_RELU>(v);
    case KD_ACT_SILU: return kd_act_values<KD_ACT_SILU>(v);
    case KD_ACT_HARDSWISH: return kd_act_values<KD_ACT_HARDSWISH>(v);
    default: return v;
    }
}

static __device__ __forceinline__ kd_f8 kd_dact8(int act, kd_f8 g, kd_f8 v) {
    switch (act) {
    case KD_ACT_RELU: return kd_dact_values<KD_ACT_RELU>(g, v);
    case KD_ACT_SILU: return kd_dact_values<KD_ACT_SILU>(g, v);
    case KD_ACT_HARDSWISH: return kd_dact_values<KD_ACT_HARDSWISH>(g, v);
    default: return g;
    }
}

/* Where a flat loop over groups of eight stands: group g of rows whose width is taken in groups of its own. */
struct kd_place {
    size_t row, i;
    int n;
};

static inline __host__ __device__ size_t kd_groups(size_t width) {
    return (width + 7) / 8;
}

static __device__ __forceinline__ kd_place kd_place_of(size_t g, size_t width) {
    kd_place p;
    p.row = g / kd_groups(width);
    p.i = 8 * (g - p.row * kd_groups(width));
    p.n = width - p.i < 8 ? (int)(width - p.i) : 8;
    return p;
}

/* ---- tiles ---- */

enum { KD_TILE_THREADS = 256, KD_TILE_ACROSS = 32, KD_TILE_FOLD_ROWS = 32, KD_TILE_ROWS = 16 /* per thread, at least, before rows are parted */, KD_TILE_BLOCKS = 1536 };

typedef struct kd_tile {
    size_t rows, width; /* of one image */
    size_t parts;
    unsigned across, down, tiles; /* tiles: blocks that cover the width */
    int whole;                    /* every group of eight is full */
} kd_tile;

/* For kernels that sum: parts that depend on the shape alone. */
static inline kd_tile kd_tile_of(size_t images, size_t rows, size_t width) {
    size_t groups = kd_groups(width), tiles = (groups + KD_TILE_ACROSS - 1) / KD_TILE_ACROSS;
    kd_tile t = {rows, width, 1, (unsigned)((groups + tiles - 1) / tiles), 0, (unsigned)tiles, width % 8 == 0};
    t.down = KD_TILE_THREADS / t.across;
    size_t parts = rows / (t.down * KD_TILE_ROWS), most = KD_TILE_BLOCKS / (tiles * images);
    parts = parts < most ? parts : most;
    t.parts = parts > 1 ? parts : 1;
    return t;
}

/* For kernels that don't: as many as the device can use. */
static inline kd_tile kd_tile_spread(const kd_cuda *b, kd_tile t, size_t images) {
    size_t parts = (t.rows + t.down - 1) / t.down, most = (size_t)b->processors * 12 / (t.tiles * images);
    parts = parts < most ? parts : most;
    t.parts = parts > 1 ? parts : 1;
    return t;
}

static inline unsigned kd_tile_grid(const kd_tile *t, size_t images) {
    size_t blocks = t->tiles * t->parts * images;
    KD_ASSERT(blocks <= INT32_MAX);
    return (unsigned)blocks;
}

/* What a thread has to do: rows first, first + tile.down, .. below last of its image, channels i .. i + n - 1; none at all when it lies outside. */
struct kd_lane {
    size_t image, part, first, last, i;
    int n;
};

static __device__ __forceinline__ kd_lane kd_lane_of(const kd_tile &t) {
    unsigned rest = blockIdx.x / t.tiles, tile = blockIdx.x - rest * t.tiles, y = threadIdx.x / t.across, x = threadIdx.x - y * t.across;
    kd_lane l;
    l.image = rest / (unsigned)t.parts;
    l.part = rest - l.image * t.parts;
    l.i = 8 * ((size_t)tile * t.across + x);
    l.n = l.i >= t.width ? 0 : t.width - l.i < 8 ? (int)(t.width - l.i) : 8;
    l.first = t.rows * l.part / t.parts + y;
    l.last = y >= t.down || l.n == 0 ? 0 : t.rows * (l.part + 1) / t.parts;
    return l;
}

/* Eight planes of shared memory hold a thread's eight sums; this adds f32 sums there. */
static __device__ __forceinline__ void kd_fold8(double *plane, const float *sum) {
    for (int k = 0; k < 8; k++)
        plane[k * KD_TILE_THREADS + threadIdx.x] += (double)sum[k];
}

static __device__ __forceinline__ void kd_clear8(double *plane) {
    for (int k = 0; k < 8; k++)
        plane[k * KD_TILE_THREADS + threadIdx.x] = 0;
}

/* Sums over the block's rows, into the planes of the first `across` threads. All threads take part. */
static __device__ __forceinline__ void kd_tile_sum(double *plane, int planes, const kd_tile &t) {
    unsigned y = threadIdx.x / t.across;
    for (unsigned n = t.down; n > 1;) {
        unsigned half = (n + 1) / 2;
        __syncthreads();
        if (y + half < n)
            for (int p = 0; p < planes; p++)
                plane[p * KD_TILE_THREADS + threadIdx.x] += plane[p * KD_TILE_THREADS + threadIdx.x + half * t.across];
        n = half;
    }
}

/* part [image][part][value][width]: value `which` of `values`, from eight planes after kd_tile_sum; by the first `across` threads, whose own sums these are. */
static __device__ __forceinline__ void kd_store_part(double *part, const double *plane, const kd_tile &t, const kd_lane &l, int which, int values) {
    double *to = part + ((l.image * t.parts + l.part) * values + which) * t.width + l.i;
    if (threadIdx.x < t.across)
        for (int k = 0; k < l.n; k++)
            to[k] = plane[k * KD_TILE_THREADS + threadIdx.x];
}

static inline size_t kd_parts_bytes(const kd_tile *t, size_t images, size_t values) {
    return images * t->parts * values * t->width * sizeof(double);
}

/* ---- sums over parts: blocks of `lanes` threads per column ---- */

enum { KD_PARTS_THREADS = 256, KD_PARTS_LANES = 32 };

typedef struct kd_parts {
    const double *part;
    size_t parts, width;
    unsigned lanes, blocks; /* blocks per image */
    int values;
} kd_parts;

static inline kd_parts kd_parts_of(const void *part, const kd_tile *t, int values) {
    kd_parts p = {(const double *)part, t->parts, t->width, 1, 0, values};
    while (p.lanes < KD_PARTS_LANES && 4 * p.lanes < p.parts)
        p.lanes *= 2;
    size_t columns = KD_PARTS_THREADS / p.lanes;
    p.blocks = (unsigned)((p.width + columns - 1) / columns);
    return p;
}

struct kd_column {
    size_t image, c;
    int here; /* this thread has column c's sums: value v in shared[v * KD_PARTS_THREADS + threadIdx.x] */
};

/* shared: KD_PARTS_THREADS for each value. All threads take part. */
static __device__ __forceinline__ kd_column kd_parts_sum(double *shared, const kd_parts &p) {
    unsigned columns = KD_PARTS_THREADS / p.lanes, lane = threadIdx.x / columns, image = blockIdx.x / p.blocks;
    kd_column r;
    r.image = image;
    r.c = (size_t)(blockIdx.x - image * p.blocks) * columns + (threadIdx.x - lane * columns);
    r.here = lane == 0 && r.c < p.width;
    for (int v = 0; v < p.values; v++) {
        double sum = 0;
        for (size_t k = lane; k < p.parts && r.c < p.width; k += p.lanes)
            sum += p.part[((image * p.parts + k) * p.values + v) * p.width + r.c];
        shared[v * KD_PARTS_THREADS + threadIdx.x] = sum;
    }
    for (unsigned half = p.lanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half)
            for (int v = 0; v < p.values; v++)
                shared[v * KD_PARTS_THREADS + threadIdx.x] += shared[v * KD_PARTS_THREADS + threadIdx.x + half * columns];
    }
    return r;
}

#endif
