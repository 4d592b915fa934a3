// Runs a CUDA kernel on the CPU, one block after the other and the threads of a block in turns: each runs until it meets
// the others (__syncthreads, a shuffle), where all of them must arrive at the same kind of meeting. Slow, and exact about
// what belongs to which thread. Scratch memory begins as NaN, so that reading what nobody wrote shows.

#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <vector>

#define ON_THE_CPU
#define __device__
#define KERNEL static void
#define SCRATCH(name) float *name = block.scratch.data()

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, gridDim;

enum Meeting { NONE, BLOCK, WARP, OVER };

struct Block {
    std::vector<float> scratch;
    std::vector<float> exchanged;
    std::vector<ucontext_t> threads;
    std::vector<std::vector<char>> stacks;
    std::vector<Meeting> at;
    std::function<void()> kernel;
    ucontext_t turn;
};
static Block block;

static void meet(Meeting meeting) {
    unsigned self = threadIdx.x;
    block.at[self] = meeting;
    swapcontext(&block.threads[self], &block.turn);
}
static void run_thread() {
    block.kernel();
    block.at[threadIdx.x] = OVER;
}
static void __syncthreads() { meet(BLOCK); }
static float exchange(float value, unsigned from) {
    block.exchanged[threadIdx.x] = value;
    meet(WARP);
    float other = block.exchanged[from];
    meet(WARP);
    return other;
}
static float __shfl_xor_sync(unsigned, float value, int lanes) { return exchange(value, threadIdx.x ^ lanes); }
static float __shfl_sync(unsigned, float value, int lane) { return exchange(value, threadIdx.x / 32 * 32 + lane); }
static unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

// Runs every block of a grid.
static void launch(Index grid, unsigned threads, size_t scratch, std::function<void()> kernel) {
    gridDim = grid;
    block.kernel = kernel;
    block.exchanged.assign(threads, 0);
    block.threads.resize(threads);
    block.stacks.assign(threads, std::vector<char>(1 << 16));
    for (unsigned y = 0; y < grid.y; y++) {
        for (unsigned x = 0; x < grid.x; x++) {
            blockIdx = {x, y, 0};
            block.scratch.assign(scratch, std::numeric_limits<float>::quiet_NaN());
            block.at.assign(threads, NONE);
            for (unsigned thread = 0; thread < threads; thread++) {
                getcontext(&block.threads[thread]);
                block.threads[thread].uc_stack.ss_sp = block.stacks[thread].data();
                block.threads[thread].uc_stack.ss_size = block.stacks[thread].size();
                block.threads[thread].uc_link = &block.turn;
                makecontext(&block.threads[thread], run_thread, 0);
            }
            while (block.at[0] != OVER) {
                for (unsigned thread = 0; thread < threads; thread++) {
                    threadIdx = {thread, 0, 0};
                    swapcontext(&block.turn, &block.threads[thread]);
                }
                for (Meeting at : block.at) {
                    if (at != block.at[0]) {
                        fprintf(stderr, "threads of a block part ways\n");
                        exit(1);
                    }
                }
            }
        }
    }
}
