// Attention of a whole batch of sequences of different lengths, without padding and without a matrix of scores.
//
// A block has 16 queries of one head of one sequence, four to a warp. It walks over the keys that any of them sees, 32 at a
// time: each lane of a warp has the score of one key, the softmax is kept as a running largest score and a running
// sum (Milakov and Gimelshein, 2018), and of the result each lane has every 32nd number of a head. All sums are in
// 32 bits. No tensor cores: in the models at hand attention is a small part of the work.
//
// The same source is run on the CPU by tests/cuda, thread by thread, to see that it computes what it should.

#ifndef ON_THE_CPU
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define KERNEL extern "C" __global__ void
#define SCRATCH(name) extern __shared__ float name[]
#endif

#define WARPS 4u
#define QUERIES 4u                  // of a warp
#define BLOCK_QUERIES (WARPS * QUERIES)
#define KEYS 32u                    // one for each lane
#define ALL 0xffffffffu
#define NOTHING (-INFINITY)

// What one launch computes. The fields are those of `Arguments` in attention.rs.
struct Arguments {
    unsigned width;                 // numbers of a head
    unsigned shared;                // heads of queries that share one of keys
    unsigned query_stride;          // from one token's row to the next, in numbers
    unsigned key_stride;
    unsigned value_stride;
    unsigned causal;                // 1: only what came before is seen
    unsigned window;                // only what is so many places away or nearer
    unsigned places;                // of the table of distances; 0: there is none
};

template <typename T> __device__ float wide(T value);
template <typename T> __device__ T narrow(float value);
template <> __device__ float wide(float value) { return value; }
template <> __device__ float narrow(float value) { return value; }
#ifndef ON_THE_CPU
template <> __device__ float wide(__half value) { return __half2float(value); }
template <> __device__ __half narrow(float value) { return __float2half(value); }
template <> __device__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }
template <> __device__ __nv_bfloat16 narrow(float value) { return __float2bfloat16(value); }
#endif

// Copies a head of some tokens to the scratch, as 32-bit numbers, each row `stride` numbers long.
template <typename T>
__device__ void fetch(float *to, unsigned stride, const T *from, size_t from_stride, unsigned rows, unsigned width) {
    for (unsigned at = threadIdx.x; at < rows * width; at += WARPS * 32) {
        unsigned row = at / width, column = at % width;
        to[row * stride + column] = wide<T>(from[row * from_stride + column]);
    }
}

// PARTS: numbers of a head that a lane has of the result.
template <typename T, int PARTS>
__device__ void attend(
    const T *queries, const T *keys, const T *values, T *output,
    const unsigned *starts,         // the first row of each sequence, and the end of the last
    const unsigned *tiles,          // for each block: the sequence, and the place of its first query
    const float *distances,         // for each head, what is added for a key -(places - 1) to places - 1 places on
    Arguments with
) {
    SCRATCH(scratch);               // KEYS + BLOCK_QUERIES rows of width + 1 numbers
    // One number more than there are, so that neighbouring lanes read from different banks.
    const unsigned stride = with.width + 1;
    float *tile = scratch, *own = scratch + KEYS * stride;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned head = blockIdx.y, heads = gridDim.y, group = head / with.shared;
    const unsigned sequence = tiles[2 * blockIdx.x], first = tiles[2 * blockIdx.x + 1];
    const unsigned row = starts[sequence], tokens = starts[sequence + 1] - row;
    const unsigned here = min(BLOCK_QUERIES, tokens - first);

    fetch(own, stride, queries + (size_t)(row + first) * with.query_stride + head * with.width, with.query_stride, here,
          with.width);
    float largest[QUERIES], sum[QUERIES], result[QUERIES][PARTS];
    for (unsigned q = 0; q < QUERIES; q++) {
        largest[q] = NOTHING;
        sum[q] = 0;
        for (int part = 0; part < PARTS; part++) result[q][part] = 0;
    }

    const unsigned last = first + here - 1;
    const unsigned begin = first > with.window ? first - with.window : 0;
    const unsigned end = with.causal || with.window >= tokens - 1 - last
        ? (with.causal ? last + 1 : tokens)
        : last + with.window + 1;
    for (unsigned base = begin; base < end; base += KEYS) {
        const unsigned count = min(KEYS, end - base);
        __syncthreads();
        fetch(tile, stride, keys + (size_t)(row + base) * with.key_stride + group * with.width, with.key_stride, count,
              with.width);
        __syncthreads();
        float share[QUERIES];
        for (unsigned q = 0; q < QUERIES; q++) {
            const unsigned mine = warp * QUERIES + q, query = first + mine, key = base + lane;
            const unsigned apart = query > key ? query - key : key - query;
            const bool sees = mine < here && lane < count && apart <= with.window && !(with.causal && key > query);
            float score = NOTHING;
            if (sees) {
                score = 0;
                for (unsigned i = 0; i < with.width; i++) score += own[mine * stride + i] * tile[lane * stride + i];
                if (with.places) {
                    score += distances[(size_t)head * (2 * with.places - 1) + with.places - 1 + key - query];
                }
            }
            float most = score;
            for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, step));
            most = fmaxf(most, largest[q]);
            // Before the first key that is seen there is nothing to scale, and infinities have no difference.
            const float scale = most == NOTHING ? 1.0f : expf(largest[q] - most);
            share[q] = sees ? expf(score - most) : 0.0f;
            float total = share[q];
            for (int step = 16; step; step /= 2) total += __shfl_xor_sync(ALL, total, step);
            sum[q] = sum[q] * scale + total;
            largest[q] = most;
            for (int part = 0; part < PARTS; part++) result[q][part] *= scale;
        }
        __syncthreads();
        fetch(tile, stride, values + (size_t)(row + base) * with.value_stride + group * with.width, with.value_stride, count,
              with.width);
        __syncthreads();
        for (unsigned key = 0; key < count; key++) {
            float value[PARTS];
            for (int part = 0; part < PARTS; part++) {
                const unsigned column = lane + 32 * part;
                value[part] = column < with.width ? tile[key * stride + column] : 0.0f;
            }
            for (unsigned q = 0; q < QUERIES; q++) {
                const float factor = __shfl_sync(ALL, share[q], key);
                for (int part = 0; part < PARTS; part++) result[q][part] += factor * value[part];
            }
        }
    }
    for (unsigned q = 0; q < QUERIES; q++) {
        const unsigned mine = warp * QUERIES + q;
        if (mine >= here) continue;
        T *to = output + ((size_t)(row + first + mine) * heads + head) * with.width;
        for (int part = 0; part < PARTS; part++) {
            const unsigned column = lane + 32 * part;
            if (column < with.width) to[column] = narrow<T>(result[q][part] / sum[q]);
        }
    }
}

// Adds up the rows of each sequence, each times its weight: the pooling of all sequences at once.
KERNEL pool_f32(const float *rows, const float *weights, float *output, const unsigned *starts, unsigned width) {
    const unsigned sequence = blockIdx.x, column = blockIdx.y * 128 + threadIdx.x;
    if (column >= width) return;
    float sum = 0;
    for (unsigned row = starts[sequence]; row < starts[sequence + 1]; row++) {
        sum += weights[row] * rows[(size_t)row * width + column];
    }
    output[(size_t)sequence * width + column] = sum;
}

#define ATTEND(T, name, PARTS)                                                                                        \
    KERNEL name##_##PARTS(const T *queries, const T *keys, const T *values, T *output, const unsigned *starts,        \
                          const unsigned *tiles, const float *distances, Arguments with) {                            \
        attend<T, PARTS>(queries, keys, values, output, starts, tiles, distances, with);                              \
    }

ATTEND(float, attend_f32, 1)
ATTEND(float, attend_f32, 2)
ATTEND(float, attend_f32, 4)
ATTEND(float, attend_f32, 8)
#ifndef ON_THE_CPU
ATTEND(__half, attend_f16, 1)
ATTEND(__half, attend_f16, 2)
ATTEND(__half, attend_f16, 4)
ATTEND(__half, attend_f16, 8)
ATTEND(__nv_bfloat16, attend_bf16, 1)
ATTEND(__nv_bfloat16, attend_bf16, 2)
ATTEND(__nv_bfloat16, attend_bf16, 4)
ATTEND(__nv_bfloat16, attend_bf16, 8)
#endif
