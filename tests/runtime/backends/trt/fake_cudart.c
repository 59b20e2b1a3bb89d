/* A CUDA runtime library that is none: device memory is memory of the host, streams do all at once.

   With the toolkit's header the compiler compares every function with NVIDIA's declaration of it. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WITH_CUDA_HEADER
#include <cuda_runtime_api.h>
#else
typedef int cudaError_t;
typedef void *cudaStream_t, *cudaGraph_t, *cudaGraphExec_t;
enum cudaMemcpyKind { cudaMemcpyUnused };
enum cudaDeviceAttr { cudaDevAttrUnused };
enum cudaStreamCaptureMode { cudaStreamCaptureModeUnused };
struct cudaDeviceProp { char name[256]; char rest[900]; };
#endif

static char fail_name[64];
static int fail_code, num_devices = 1, sticky, live_device, live_host, live_graphs, live_execs;

void fake_fail(const char *name, int code) { snprintf(fail_name, 64, "%s", name); fail_code = code; }
void fake_devices(int count) { num_devices = count; }
int fake_live(int kind) { return (int[]){live_device, live_host, live_graphs, live_execs}[kind]; }

static int enter(const char *name)
{
    if (!strcmp(name, fail_name)) { sticky = fail_code; return fail_code; }
    return 0;
}
#define ENTER int code = enter(__func__); if (code) return code

#define MAX_BLOCKS 64
static struct { char *start; size_t size; } blocks[MAX_BLOCKS];

static int on_device(const void *address, size_t size)
{
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].start && (char *)address >= blocks[i].start &&
            (char *)address + size <= blocks[i].start + blocks[i].size)
            return 1;
    return 0;
}

/* A recording: copies and fills to do later. */
struct op { void *dst; const void *src; size_t dpitch, spitch, width, height; int value; };
struct cudaRecord { struct op ops[16]; int count; };
static struct cudaRecord *recording;

static void apply(struct op op)
{
    for (size_t row = 0; row < op.height; row++) {
        char *to = (char *)op.dst + row * op.dpitch;
        if (op.src) memcpy(to, (const char *)op.src + row * op.spitch, op.width);
        else memset(to, op.value, op.width);
    }
}

static void put(struct op op)
{
    if (recording) recording->ops[recording->count++] = op;
    else apply(op);
}

cudaError_t cudaGetDeviceCount(int *count) { ENTER; *count = num_devices; return 0; }
cudaError_t cudaGetDevice(int *device) { ENTER; *device = 3; return 0; }

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device)
{
    ENTER;
    if (device != 3) return 101;
    *value = attr == 75 ? 8 : attr == 76 ? 7 : -1;
    return 0;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    ENTER;
    memset(prop, 0x5A, sizeof *prop);
    snprintf(prop->name, 256, "Orin %d", device);
    return 0;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    ENTER;
    *free_bytes = (size_t)5 << 32;
    *total = (size_t)8 << 32;
    return 0;
}

cudaError_t cudaMalloc(void **address, size_t size)
{
    ENTER;
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (!blocks[i].start) {
            *address = blocks[i].start = aligned_alloc(256, (size + 255) / 256 * 256);
            blocks[i].size = size;
            live_device++;
            return 0;
        }
    return 2;
}

cudaError_t cudaFree(void *address)
{
    ENTER;
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].start == address) {
            free(address);
            blocks[i].start = NULL;
            live_device--;
            return 0;
        }
    return 1;
}

cudaError_t cudaMallocHost(void **address, size_t size) { ENTER; *address = malloc(size); live_host++; return 0; }
cudaError_t cudaFreeHost(void *address) { ENTER; free(address); live_host--; return 0; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    ENTER;
    if (flags != 1) return 1;
    *stream = (cudaStream_t)(uintptr_t)0x1234567890ABULL; /* more than 32 bits */
    return 0;
}
static int wrong(cudaStream_t stream) { return (uintptr_t)stream != 0x1234567890ABULL; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { ENTER; return wrong(stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { ENTER; return wrong(stream); }

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t count, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    ENTER;
    if (wrong(stream) || on_device(src, count) != (kind == 2 || kind == 3)) return 21;
    if (on_device(dst, count) != (kind == 1 || kind == 3)) return 21;
    put((struct op){dst, src, count, count, count, 1, 0});
    return 0;
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    ENTER;
    if (wrong(stream) || kind != 3 || width > dpitch || width > spitch) return 12;
    if (!on_device(src, (height - 1) * spitch + width)) return 21;
    if (!on_device(dst, (height - 1) * dpitch + width)) return 21;
    put((struct op){dst, src, dpitch, spitch, width, height, 0});
    return 0;
}

cudaError_t cudaMemsetAsync(void *address, int value, size_t count, cudaStream_t stream)
{
    ENTER;
    if (wrong(stream) || !on_device(address, count)) return 1;
    put((struct op){address, NULL, count, 0, count, 1, value});
    return 0;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    ENTER;
    if (wrong(stream) || mode != 1) return 1;
    recording = calloc(1, sizeof *recording);
    return 0;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    struct cudaRecord *done = recording;
    recording = NULL;
    *graph = NULL;
    ENTER;
    if (wrong(stream) || !done) return 901;
    *graph = (cudaGraph_t)done;
    live_graphs++;
    return 0;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    ENTER;
    if (flags) return 1;
    struct cudaRecord *copy = malloc(sizeof *copy);
    *copy = *(struct cudaRecord *)graph;
    *exec = (cudaGraphExec_t)copy;
    live_execs++;
    return 0;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { ENTER; free(graph); live_graphs--; return 0; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { ENTER; free(exec); live_execs--; return 0; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    ENTER;
    if (wrong(stream)) return 1;
    struct cudaRecord *record = (struct cudaRecord *)exec;
    for (int i = 0; i < record->count; i++) apply(record->ops[i]);
    return 0;
}

cudaError_t cudaGetLastError(void) { int was = sticky; sticky = 0; return was; }
const char *cudaGetErrorName(cudaError_t code) { return code == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorOther"; }
const char *cudaGetErrorString(cudaError_t code) { return code == 2 ? "out of memory" : "something else"; }
int fake_sticky(void) { return sticky; }
