// LoRA of a step's rows, each row with the adapter of its slot: y[row] += scale * (x[row] A) B. One call a layer.
//
// Rows of a slot are taken ROWS at a time, so that each weight that is read serves as many rows; nothing is gathered,
// padded or written back but the sums (Punica: Chen et al. 2023, SGMV). Sums are kept in float32.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int ROWS = 8;
constexpr int LANES = 16;
// How far ahead weights are fetched, in columns: hardware does not follow columns whose rows are pages apart.
constexpr int AHEAD = 128;
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

struct BFloat16 {
    uint16_t bits;
};

float widen(float value) { return value; }

float widen(BFloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

Floats load(const float* from) {
    Floats result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

Floats load(const BFloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// Rounds to the nearest, ties to even, as torch does; the weights of a model that gives NaN are lost anyway.
void store(BFloat16* to, Floats values) {
    Words bits = (Words)values;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Halves halves = __builtin_convertvector(bits, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// The first `count` of LANES numbers, the others zero.
template <typename T> Floats load_some(const T* from, int count) {
    if (count == LANES) return load(from);
    T values[LANES] = {};
    std::memcpy(values, from, count * sizeof(T));
    return load(values);
}

template <typename T> void store_some(T* to, Floats sums, int count) {
    if (count == LANES) return store(to, sums);
    T values[LANES];
    store(values, sums);
    std::memcpy(to, values, count * sizeof(T));
}

// sums[i] = rows[i] @ weights, for LANES columns (or `count` of them) of a matrix with `stride` columns.
template <bool whole, typename T>
void multiply(const float* rows, int64_t width, const T* weights, int64_t stride, int depth, int count, Floats* sums) {
    for (int i = 0; i < ROWS; ++i) sums[i] = Floats{};
    for (int k = 0; k < depth; ++k) {
        const T* at = weights + k * stride;
        __builtin_prefetch(at + AHEAD);
        const Floats weight = whole ? load(at) : load_some(at, count);
        for (int i = 0; i < ROWS; ++i) sums[i] += weight * rows[i * width + k];
    }
}

template <typename T>
void multiply(const float* rows, int64_t width, const T* weights, int64_t stride, int depth, int count, Floats* sums) {
    if (count == LANES)
        multiply<true>(rows, width, weights, stride, depth, count, sums);
    else
        multiply<false>(rows, width, weights, stride, depth, count, sums);
}

struct Block {
    int32_t slot, first, count;
};

// The rows of a step: `rows` has those of a block side by side.
struct Step {
    const int32_t* rows;
    const Block* blocks;
    int32_t count;
};

// `down`: [slots, width, slices * rank], whose rows are `down_stride` numbers apart; `up`: [slots, rank, ends[slices]], a
// slice's columns from ends[s] to ends[s + 1].
struct Layer {
    const void* down;
    const void* up;
    const int32_t* ends;
    int32_t slices, rank, width, down_stride;
};

template <typename T>
void add_block(T* y, int64_t y_stride, const T* x, int64_t x_stride, const Layer& layer, const Block& block,
               const int32_t* rows, float scale, float* input, float* hidden) {
    const int64_t ranks = int64_t(layer.slices) * layer.rank, width = layer.width, outs = layer.ends[layer.slices];
    const T* down = static_cast<const T*>(layer.down) + block.slot * width * layer.down_stride;
    const T* up = static_cast<const T*>(layer.up) + block.slot * layer.rank * outs;
    Floats sums[ROWS];
    for (int i = 0; i < block.count; ++i) {
        const T* row = x + rows[i] * x_stride;
        for (int64_t k = 0; k < width; ++k) input[i * width + k] = widen(row[k]);
    }
    for (int64_t c = 0; c < ranks; c += LANES) {
        const int some = ranks - c < LANES ? int(ranks - c) : LANES;
        multiply(input, width, down + c, layer.down_stride, layer.width, some, sums);
        for (int i = 0; i < ROWS; ++i) store_some(hidden + i * ranks + c, sums[i] * scale, some);
    }
    for (int s = 0; s < layer.slices; ++s) {
        for (int c = layer.ends[s]; c < layer.ends[s + 1]; c += LANES) {
            const int some = layer.ends[s + 1] - c < LANES ? layer.ends[s + 1] - c : LANES;
            multiply(hidden + s * layer.rank, ranks, up + c, outs, layer.rank, some, sums);
            for (int i = 0; i < block.count; ++i) {
                T* to = y + rows[i] * y_stride + c;
                store_some(to, load_some(to, some) + sums[i], some);
            }
        }
    }
}

template <typename T>
void add(T* y, int64_t y_stride, const T* x, int64_t x_stride, const Layer& layer, const Step& step, float scale,
         int threads) {
#pragma omp parallel num_threads(threads)
    {
        // Rows that a block lacks hold those of a block before, or zeros; what comes of them is never stored.
        std::vector<float> input(size_t(layer.width) * ROWS), hidden(size_t(layer.slices) * layer.rank * ROWS);
#pragma omp for schedule(dynamic)
        for (int b = 0; b < step.count; ++b) {
            const Block& block = step.blocks[b];
            add_block(y, y_stride, x, x_stride, layer, block, step.rows + block.first, scale, input.data(), hidden.data());
        }
    }
}

}  // namespace

extern "C" {

void add_lora_float32(void* y, int64_t y_stride, const void* x, int64_t x_stride, const Layer* layer, const Step* step,
                      float scale, int threads) {
    add(static_cast<float*>(y), y_stride, static_cast<const float*>(x), x_stride, *layer, *step, scale, threads);
}

void add_lora_bfloat16(void* y, int64_t y_stride, const void* x, int64_t x_stride, const Layer* layer, const Step* step,
                       float scale, int threads) {
    add(static_cast<BFloat16*>(y), y_stride, static_cast<const BFloat16*>(x), x_stride, *layer, *step, scale, threads);
}

}
