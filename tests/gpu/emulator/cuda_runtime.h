/* The part of the CUDA runtime that kernels/cuda uses, run on the host: kernels are compiled by the host's C++ compiler and every thread of a block is a fiber. For machines without
 * a CUDA device: the op tests run through it, so that indices, barriers, plans and the order of copies are tested without one. What it can't show: speed, the device's own arithmetic beyond IEEE
 * operations (erff, expf), real races. Nothing here is taken from NVIDIA's headers; kernels/cuda is compiled against those too wherever the toolkit is found.
 *
 * What it is strict about, because a device is:
 *   - device memory can't be touched by the host (it is unmapped outside of device work, the first thousand times and then every 32nd), so that a wrong dereference crashes here as well;
 *   - work is queued: kernels and copies run when something waits for them, as late as possible, so that a missing wait shows;
 *   - a barrier that not all threads reach, a launch on another device than the thread's, a launch beyond the limits, a copy outside of its allocation end the program with a sentence;
 *   - shared memory and new device memory (of a large allocation its first 64 KiB) begin as NaN;
 *   - KD_EMULATOR_ORDER=reverse runs threads and blocks backwards: results that change show a missing barrier.
 *
 * KD_EMULATOR_FAULT=no-driver|no-device|old-driver|sm_75|no-gemm|no-conv|no-bf16-conv and KD_EMULATOR_MEMORY=BYTES make it a machine with that fault. Thread rule: one host thread at a time. */
#ifndef KD_EMULATOR_CUDA_RUNTIME_H
#define KD_EMULATOR_CUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorStreamCaptureUnsupported = 900
} cudaError_t;
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75 };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
};

#ifdef __cplusplus
extern "C" {
#endif
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaMalloc(void **out, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **out, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGetLastError(void);
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
#ifdef __cplusplus
}

#include <cmath>
#include <functional>
#include <math.h>

/* ---- in kernels ---- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("kd_emulated_shared")))

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return float2{x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return uint2{x, y}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffffu);
/* Exchanges 8 bytes with lane `from` of the same warp; every lane of the warp that hasn't ended takes part. */
uint64_t kd_emulator_shuffle(uint64_t value, int from);
int kd_emulator_lane();

template <class T> static inline T kd_emulator_shuffle_any(T value, int from) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = kd_emulator_shuffle(bits, from);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> static inline T __shfl_sync(unsigned, T value, int from, int width = 32) { return kd_emulator_shuffle_any(value, (kd_emulator_lane() & ~(width - 1)) | (from & (width - 1))); }
template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask, int width = 32) { (void)width; return kd_emulator_shuffle_any(value, kd_emulator_lane() ^ mask); }
template <class T> static inline T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
    int lane = kd_emulator_lane(), from = lane + (int)delta;
    return kd_emulator_shuffle_any(value, (from & ~(width - 1)) == (lane & ~(width - 1)) ? from : lane);
}

static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float rsqrtf(float a) { return 1 / __builtin_sqrtf(a); }
static inline float __frcp_rn(float a) { return 1 / a; }
static inline int __float2int_rn(float a) { return (int)__builtin_rintf(a); }
static inline unsigned __float_as_uint(float a) { unsigned u; __builtin_memcpy(&u, &a, 4); return u; }
static inline float __uint_as_float(unsigned u) { float a; __builtin_memcpy(&a, &u, 4); return a; }
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }

/* ---- launches ---- */

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    void *attrs;
    unsigned numAttrs;
};
cudaError_t kd_emulator_launch(const cudaLaunchConfig_t *config, std::function<void()> thread);

/* Arguments by value, as a device takes them at the launch. Static, and without templates of the library over their types: structures of one name in two files must stay two types. */
template <class... P, class... A> static cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...args) {
    return kd_emulator_launch(config, [kernel, ... values = static_cast<P>(args)] { kernel(values...); });
}
bool kd_emulator_fault(const char *name); /* KD_EMULATOR_FAULT is `name` */
/* For emulated libraries: work in the order of a stream, with device memory at hand; a check that all of a range lies in one allocation, or the program ends with a sentence. */
cudaError_t kd_emulator_enqueue(cudaStream_t stream, std::function<void()> work);
void kd_emulator_check_range(const void *p, size_t bytes, const char *what);
#endif
#endif
