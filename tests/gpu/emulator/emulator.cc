/* The emulated device: memory, streams of queued work, blocks of fibers. See cuda_runtime.h. */
#include "cuda_runtime.h"

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern char __start_kd_emulated_shared[], __stop_kd_emulated_shared[]; /* the linker's: a section named like an identifier */
__attribute__((used)) __shared__ int never_empty; /* so that there is such a section */

[[noreturn]] __attribute__((format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("emulated device: ", stderr);
    vfprintf(stderr, format, args);
    fputs("\n", stderr);
    abort();
}

bool kd_emulator_fault(const char *name) {
    const char *given = getenv("KD_EMULATOR_FAULT");
    return given && strcmp(given, name) == 0;
}

static bool reversed() {
    static const bool is = getenv("KD_EMULATOR_ORDER") && strcmp(getenv("KD_EMULATOR_ORDER"), "reverse") == 0;
    return is;
}

/* ---- memory: one region, unreadable for the host outside of device work ---- */

static const size_t FILLED = 64 << 10; /* of a large allocation only its beginning becomes NaN: every touched page costs time at each opening and closing */
static const size_t REGION = size_t(1) << 36, GRAIN = 512; /* of addresses; pages are taken when they are touched */
static char *region;
static std::map<char *, size_t> allocations; /* by address; the gaps between them are free */
static size_t used_bytes;
static int open_depth;

static size_t memory_limit() {
    const char *given = getenv("KD_EMULATOR_MEMORY");
    return given ? strtoull(given, nullptr, 10) : size_t(16) << 30;
}

/* While one lives, device memory can be reached; taken where queued work is run. Closing costs as much as there are touched pages, so after the first thousand times only every 32nd is real: a host that
 * touches device memory does so again and again. */
struct device_work {
    static bool is_open;
    static unsigned closings;
    device_work() {
        if (region && open_depth++ == 0 && !is_open)
            protect(PROT_READ | PROT_WRITE);
    }
    ~device_work() {
        if (region && --open_depth == 0 && (++closings < 1000 || closings % 32 == 0))
            protect(PROT_NONE);
    }
    static void protect(int how) {
        if (mprotect(region, REGION, how) != 0)
            die("mprotect failed");
        is_open = how != PROT_NONE;
    }
};
bool device_work::is_open;
unsigned device_work::closings;

static bool on_device(const void *p) {
    return region && (const char *)p >= region && (const char *)p < region + REGION;
}

static void check_inside(const void *p, size_t bytes, const char *what) {
    if (!on_device(p))
        return;
    auto next = allocations.upper_bound((char *)p);
    if (next == allocations.begin())
        die("%s of %zu bytes at an address that isn't allocated", what, bytes);
    auto a = std::prev(next);
    if ((const char *)p + bytes > a->first + a->second)
        die("%s of %zu bytes runs %zu bytes past the end of an allocation of %zu", what, bytes, (size_t)((const char *)p + bytes - a->first - a->second), a->second);
}

void kd_emulator_check_range(const void *p, size_t bytes, const char *what) {
    if (!on_device(p))
        die("%s: not memory of the device", what);
    check_inside(p, bytes, what);
}

extern "C" cudaError_t cudaMalloc(void **out, size_t bytes) {
    if (!region) {
        void *p = mmap(nullptr, REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            die("no address space");
        region = (char *)p;
    }
    *out = nullptr;
    size_t size = (bytes + 2 * GRAIN - 1) / GRAIN * GRAIN; /* at least a grain of distance to the next one */
    if (bytes > memory_limit() || used_bytes + bytes > memory_limit())
        return cudaErrorMemoryAllocation;
    char *at = region;
    for (auto &a : allocations) {
        if (at + size <= a.first)
            break;
        at = a.first + (a.second + 2 * GRAIN - 1) / GRAIN * GRAIN;
    }
    if (at + size > region + REGION)
        return cudaErrorMemoryAllocation;
    allocations[at] = bytes;
    used_bytes += bytes;
    device_work work;
    memset(at, 0xff, bytes < FILLED ? bytes : FILLED);
    *out = at;
    return cudaSuccess;
}

static void run_everything();

extern "C" cudaError_t cudaFree(void *p) {
    if (!p)
        return cudaSuccess;
    run_everything(); /* as cudaFree waits for the device */
    auto a = allocations.find((char *)p);
    if (a == allocations.end())
        die("cudaFree of an address that isn't an allocation");
    used_bytes -= a->second;
    device_work work;
    const uintptr_t PAGE = 4096; /* only pages that are this allocation's alone: a neighbour begins a grain behind it */
    uintptr_t first = ((uintptr_t)a->first + PAGE - 1) / PAGE * PAGE, end = ((uintptr_t)a->first + a->second) / PAGE * PAGE;
    if (first < end)
        madvise((void *)first, end - first, MADV_DONTNEED);
    allocations.erase(a);
    return cudaSuccess;
}

extern "C" cudaError_t cudaMallocHost(void **out, size_t bytes) {
    *out = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (*out)
        memset(*out, 0xff, bytes < FILLED ? bytes : FILLED);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

extern "C" cudaError_t cudaFreeHost(void *p) {
    run_everything();
    free(p);
    return cudaSuccess;
}

extern "C" cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = memory_limit();
    *free_bytes = memory_limit() > used_bytes ? memory_limit() - used_bytes : 0;
    return cudaSuccess;
}

/* ---- streams: what is queued runs when something waits for it ---- */

typedef std::function<void()> task;

static thread_local int current_device;

struct CUstream_st {
    int device = current_device;
    std::deque<task> waiting;
    bool capturing = false;
    std::vector<task> captured;
};
struct CUevent_st {
    uint64_t recorded = 0, reached = 0; /* number of the last record asked for, and of the last one that ran */
    CUstream_st *stream = nullptr;
};
struct CUgraph_st {
    std::vector<task> tasks;
};
struct CUgraphExec_st {
    std::vector<task> tasks;
};

static std::vector<CUstream_st *> streams;

static void run_next(CUstream_st *s) {
    device_work open;
    task next = std::move(s->waiting.front());
    s->waiting.pop_front();
    next();
}

static void drain(CUstream_st *s) {
    if (s->waiting.empty())
        return;
    device_work open;
    while (!s->waiting.empty())
        run_next(s);
}

static void run_everything() {
    for (CUstream_st *s : streams)
        drain(s);
}

static void reach(CUevent_st *e, uint64_t number) {
    device_work open;
    while (e->reached < number) {
        if (e->stream->waiting.empty())
            die("an event is waited for that no stream will reach");
        run_next(e->stream);
    }
}

static cudaError_t enqueue(cudaStream_t s, task work) {
    if (!s)
        die("work on the default stream: every call of this backend names its stream");
    if (s->capturing)
        s->captured.push_back(std::move(work));
    else
        s->waiting.push_back(std::move(work));
    return cudaSuccess;
}

cudaError_t kd_emulator_enqueue(cudaStream_t stream, task work) {
    return enqueue(stream, std::move(work));
}

static void refuse_in_capture(const char *what) {
    for (CUstream_st *s : streams)
        if (s->capturing)
            die("%s while a stream is captured", what);
}

extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    *out = new CUstream_st;
    streams.push_back(*out);
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamDestroy(cudaStream_t s) {
    if (!s)
        return cudaSuccess;
    drain(s);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s)
            streams.erase(streams.begin() + (long)i);
    delete s;
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    refuse_in_capture("cudaStreamSynchronize");
    drain(s);
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) {
    *out = new CUevent_st;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventDestroy(cudaEvent_t e) {
    if (e && e->stream)
        reach(e, e->recorded);
    delete e;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    if (s && s->capturing)
        die("cudaEventRecord in a capture: this backend has no use for it");
    uint64_t number = ++e->recorded;
    e->stream = s;
    return enqueue(s, [e, number] { e->reached = number; });
}

extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    refuse_in_capture("cudaEventSynchronize");
    reach(e, e->recorded);
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    uint64_t number = e->recorded;
    return enqueue(s, [e, number] { reach(e, number); });
}

extern "C" cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice, from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (on_device(dst) != to_device || on_device(src) != from_device)
        return cudaErrorInvalidValue;
    check_inside(dst, bytes, "a copy to the device");
    check_inside(src, bytes, "a copy from the device");
    return kd_emulator_enqueue(s, [=] { memmove(dst, src, bytes); });
}

extern "C" cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t s) {
    if (!on_device(dst))
        return cudaErrorInvalidValue;
    check_inside(dst, bytes, "a memset");
    return kd_emulator_enqueue(s, [=] { memset(dst, value, bytes); });
}

/* ---- captured sequences ---- */

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (s->capturing)
        return cudaErrorStreamCaptureUnsupported;
    s->capturing = true;
    s->captured.clear();
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out) {
    if (!s->capturing)
        return cudaErrorStreamCaptureUnsupported;
    s->capturing = false;
    *out = new CUgraph_st{std::move(s->captured)};
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    *out = new CUgraphExec_st{graph->tasks};
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    for (const task &t : exec->tasks)
        enqueue(s, t);
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

/* ---- the device ---- */

extern "C" cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (kd_emulator_fault("no-driver") || kd_emulator_fault("old-driver"))
        return cudaErrorInsufficientDriver;
    if (kd_emulator_fault("no-device"))
        return cudaErrorNoDevice;
    *count = 2;
    return cudaSuccess;
}

extern "C" cudaError_t cudaDriverGetVersion(int *version) {
    *version = kd_emulator_fault("no-driver") ? 0 : kd_emulator_fault("old-driver") ? 11040 : 13000;
    return cudaSuccess;
}

extern "C" cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

extern "C" cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= 2)
        return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device) {
    if (device < 0 || device >= 2)
        return cudaErrorInvalidDevice;
    *prop = cudaDeviceProp{"emulated device", memory_limit(), kd_emulator_fault("sm_75") ? 7 : 9, kd_emulator_fault("sm_75") ? 5 : 0, 4};
    return cudaSuccess;
}

extern "C" cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp prop;
    cudaError_t status = cudaGetDeviceProperties(&prop, device);
    if (status == cudaSuccess && attribute != cudaDevAttrComputeCapabilityMajor)
        return cudaErrorInvalidValue;
    if (status == cudaSuccess)
        *value = prop.major;
    return status;
}

extern "C" cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}

extern "C" const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    default: return "cudaError";
    }
}

extern "C" const char *cudaGetErrorString(cudaError_t e) {
    return cudaGetErrorName(e);
}

/* ---- blocks: every thread a fiber, switched at barriers ---- */

enum { MAX_THREADS = 1024, WARP = 32 };
static const size_t STACK = 128 << 10;

enum fiber_state { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, ENDED };

/* A stack serves thread after thread: when one has ended, its fiber waits at `idle` for the next. */
struct fiber_stack {
    char *memory;
    jmp_buf idle;
    ucontext_t first; /* how it is entered for the first time */
};

struct fiber {
    fiber_state state;
    fiber_stack *stack; /* NULL: hasn't begun */
    jmp_buf at;
    unsigned shuffles; /* that it has taken part in */
};

static fiber fibers[MAX_THREADS];
static int thread_count, current = -1;
static std::vector<fiber_stack *> free_stacks;
static jmp_buf scheduler;
static const task *body;
static uint64_t slots[2][MAX_THREADS]; /* of shuffles, in turn: a lane that writes the next one's may do so before all have read */

static void set_indices(int t) {
    current = t;
    threadIdx.x = (unsigned)t % blockDim.x;
    threadIdx.y = (unsigned)t / blockDim.x % blockDim.y;
    threadIdx.z = (unsigned)t / (blockDim.x * blockDim.y);
}

static void fiber_main() {
    fiber_stack *mine = fibers[current].stack;
    for (;;) {
        (*body)();
        fibers[current].state = ENDED;
        if (_setjmp(mine->idle) == 0)
            _longjmp(scheduler, 1);
    }
}

static void run_fiber(int t) {
    fiber *f = &fibers[t];
    set_indices(t);
    if (_setjmp(scheduler) != 0)
        return;
    if (f->stack)
        _longjmp(f->at, 1);
    if (!free_stacks.empty()) {
        f->stack = free_stacks.back();
        free_stacks.pop_back();
        _longjmp(f->stack->idle, 1);
    }
    f->stack = new fiber_stack;
    f->stack->memory = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (f->stack->memory == (char *)MAP_FAILED)
        die("no memory for the stack of a thread");
    getcontext(&f->stack->first);
    f->stack->first.uc_stack.ss_sp = f->stack->memory;
    f->stack->first.uc_stack.ss_size = STACK;
    f->stack->first.uc_link = nullptr;
    makecontext(&f->stack->first, fiber_main, 0);
    setcontext(&f->stack->first);
}

static void wait_at(fiber_state barrier) {
    if (current < 0)
        die("a barrier outside of a kernel");
    int me = current;
    fibers[me].state = barrier;
    if (_setjmp(fibers[me].at) == 0)
        _longjmp(scheduler, 1);
}

void __syncthreads() {
    wait_at(AT_BLOCK_BARRIER);
}

void __syncwarp(unsigned mask) {
    (void)mask;
    wait_at(AT_WARP_BARRIER);
}

int kd_emulator_lane() {
    return current % WARP;
}

uint64_t kd_emulator_shuffle(uint64_t value, int from) {
    int me = current, warp = me / WARP * WARP;
    uint64_t *slot = slots[fibers[me].shuffles++ % 2];
    slot[me] = value;
    wait_at(AT_WARP_BARRIER);
    return from >= 0 && from < WARP && warp + from < thread_count ? slot[warp + from] : value;
}

/* Opens the barriers that everyone has reached; whether any was. */
static bool open_barriers() {
    bool opened = false;
    int live = 0, at_block = 0;
    for (int w = 0; w < thread_count; w += WARP) {
        int n = 0, waiting = 0;
        for (int t = w; t < w + WARP && t < thread_count; t++) {
            n += fibers[t].state != ENDED;
            waiting += fibers[t].state == AT_WARP_BARRIER;
            at_block += fibers[t].state == AT_BLOCK_BARRIER;
        }
        live += n;
        for (int t = w; n > 0 && waiting == n && t < w + WARP && t < thread_count; t++)
            if (fibers[t].state == AT_WARP_BARRIER) {
                fibers[t].state = READY;
                opened = true;
            }
    }
    for (int t = 0; live > 0 && at_block == live && t < thread_count; t++)
        if (fibers[t].state == AT_BLOCK_BARRIER) {
            fibers[t].state = READY;
            opened = true;
        }
    return opened;
}

static void run_block() {
    int ended = 0;
    memset(__start_kd_emulated_shared, 0xff, (size_t)(__stop_kd_emulated_shared - __start_kd_emulated_shared));
    for (int t = 0; t < thread_count; t++)
        fibers[t].state = READY, fibers[t].stack = nullptr, fibers[t].shuffles = 0;
    while (ended < thread_count) {
        for (int i = 0; i < thread_count; i++) {
            int t = reversed() ? thread_count - 1 - i : i;
            if (fibers[t].state != READY)
                continue;
            run_fiber(t);
            if (fibers[t].state == ENDED) {
                ended++;
                free_stacks.push_back(fibers[t].stack);
            }
        }
        if (ended < thread_count && !open_barriers())
            die("block (%u,%u,%u): a barrier that only some of the threads reach", blockIdx.x, blockIdx.y, blockIdx.z);
    }
    current = -1;
}

cudaError_t kd_emulator_launch(const cudaLaunchConfig_t *given, task thread) {
    cudaLaunchConfig_t c = *given;
    if (c.stream && c.stream->device != current_device)
        die("a launch on a stream of device %d while device %d is the thread's", c.stream->device, current_device);
    uint64_t threads = (uint64_t)c.blockDim.x * c.blockDim.y * c.blockDim.z, blocks = (uint64_t)c.gridDim.x * c.gridDim.y * c.gridDim.z;
    if (threads == 0 || threads > MAX_THREADS || blocks == 0 || c.gridDim.x > 0x7fffffffu || c.gridDim.y > 65535 || c.gridDim.z > 65535)
        return cudaErrorInvalidValue;
    return kd_emulator_enqueue(c.stream, [c, thread, threads, blocks] {
        thread_count = (int)threads;
        blockDim = c.blockDim;
        gridDim = c.gridDim;
        body = &thread;
        for (uint64_t i = 0; i < blocks; i++) {
            uint64_t k = reversed() ? blocks - 1 - i : i;
            blockIdx = uint3{(unsigned)(k % c.gridDim.x), (unsigned)(k / c.gridDim.x % c.gridDim.y), (unsigned)(k / c.gridDim.x / c.gridDim.y)};
            run_block();
        }
    });
}
