// Goal: the kernels of src/engine/gpu/cuda/attention.cu compute attention, and pooling, of sequences of any lengths.
// Method: their source runs on the CPU (on_the_cpu.h) beside the textbook's formula in 64 bits, over lengths on both sides of
// every border, heads of several widths, shared heads of keys, windows, causal or not, and distances.

#include "on_the_cpu.h"

#include "../../src/engine/gpu/cuda/attention.cu"

static unsigned long long seed = 42;
static float number() {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (float)((double)(seed >> 33) / (1ull << 31) * 2 - 1);
}
static std::vector<float> numbers(size_t count) {
    std::vector<float> all(count);
    for (float &value : all) value = number();
    return all;
}

struct Case {
    unsigned heads, shared, width, causal, window, places;
};

static double attention(const Case &of, const std::vector<unsigned> &lengths) {
    std::vector<unsigned> starts = {0}, tiles;
    for (unsigned sequence = 0; sequence < lengths.size(); sequence++) {
        for (unsigned first = 0; first < lengths[sequence]; first += BLOCK_QUERIES) {
            tiles.push_back(sequence);
            tiles.push_back(first);
        }
        starts.push_back(starts.back() + lengths[sequence]);
    }
    unsigned tokens = starts.back(), key_heads = of.heads / of.shared;
    unsigned stride = (of.heads + 2 * key_heads) * of.width;
    // Queries, keys and values side by side in a row, as they come from their product.
    std::vector<float> mixed = numbers((size_t)tokens * stride);
    for (float &value : mixed) value *= 1.5f;
    std::vector<float> table = numbers(of.places ? of.heads * (2 * of.places - 1) : 1);
    std::vector<float> output((size_t)tokens * of.heads * of.width, NAN);
    const float *queries = mixed.data(), *keys = queries + of.heads * of.width, *values = keys + key_heads * of.width;
    Arguments with = {of.width, of.shared, stride, stride, stride, of.causal, of.window, of.places};
    auto kernel = of.width <= 32 ? attend_f32_1 : of.width <= 64 ? attend_f32_2 : of.width <= 128 ? attend_f32_4 : attend_f32_8;
    launch({(unsigned)tiles.size() / 2, of.heads, 1}, WARPS * 32, (KEYS + BLOCK_QUERIES) * (of.width + 1), [&] {
        kernel(queries, keys, values, output.data(), starts.data(), tiles.data(), table.data(), with);
    });

    double farthest = 0;
    for (unsigned sequence = 0; sequence < lengths.size(); sequence++) {
        long row = starts[sequence], length = lengths[sequence];
        for (long query = 0; query < length; query++) {
            for (unsigned head = 0; head < of.heads; head++) {
                std::vector<double> score(length, -INFINITY);
                double most = -INFINITY, total = 0;
                for (long key = 0; key < length; key++) {
                    if (labs(query - key) > (long)of.window || (of.causal && key > query)) continue;
                    score[key] = of.places ? table[head * (2 * of.places - 1) + of.places - 1 + key - query] : 0;
                    for (unsigned i = 0; i < of.width; i++) {
                        score[key] += (double)queries[(row + query) * stride + head * of.width + i] *
                                      keys[(row + key) * stride + head / of.shared * of.width + i];
                    }
                    most = std::max(most, score[key]);
                }
                for (double &value : score) total += value = exp(value - most);
                for (unsigned i = 0; i < of.width; i++) {
                    double want = 0;
                    for (long key = 0; key < length; key++) {
                        want += score[key] / total * values[(row + key) * stride + head / of.shared * of.width + i];
                    }
                    double off = fabs(want - output[((row + query) * of.heads + head) * of.width + i]);
                    farthest = off <= farthest ? farthest : off;    // also a NaN
                }
            }
        }
    }
    return farthest;
}

static double pooling(const std::vector<unsigned> &lengths, unsigned width) {
    std::vector<unsigned> starts = {0};
    for (unsigned length : lengths) starts.push_back(starts.back() + length);
    std::vector<float> rows = numbers((size_t)starts.back() * width), weights = numbers(starts.back());
    std::vector<float> output(lengths.size() * width, NAN);
    launch({(unsigned)lengths.size(), (width + 127) / 128, 1}, 128, 1,
           [&] { pool_f32(rows.data(), weights.data(), output.data(), starts.data(), width); });
    double farthest = 0;
    for (unsigned sequence = 0; sequence < lengths.size(); sequence++) {
        for (unsigned column = 0; column < width; column++) {
            double want = 0;
            for (unsigned row = starts[sequence]; row < starts[sequence + 1]; row++) {
                want += (double)weights[row] * rows[(size_t)row * width + column];
            }
            double off = fabs(want - output[sequence * width + column]);
            farthest = off <= farthest ? farthest : off;
        }
    }
    return farthest;
}

int main() {
    const unsigned far = 1u << 30;
    const std::vector<unsigned> borders = {1, 2, 15, 16, 17, 31, 32, 33, 50, 70};
    const Case cases[] = {
        {2, 1, 32, 0, far, 0}, {1, 1, 12, 0, far, 0},   {4, 2, 16, 1, far, 0}, {2, 1, 64, 0, 3, 0},
        {2, 2, 40, 1, 7, 0},   {2, 1, 20, 0, far, 128}, {2, 2, 96, 0, 20, 0},  {1, 1, 256, 1, far, 0},
    };
    bool right = true;
    for (const Case &of : cases) {
        double off = attention(of, borders);
        printf("%u heads of %u, %u to a key, causal %u, window %u, distances %u: off by %.1e\n", of.heads, of.width, of.shared,
               of.causal, of.window, of.places, off);
        right = right && off < 2e-5;
    }
    double off = pooling(borders, 300);
    printf("pooling of rows of 300: off by %.1e\n", off);
    right = right && off < 1e-5;
    return right ? 0 : 1;
}
