// LoRA of a step's rows, each row with the adapter of its slot: y[row] += scale * (x[row] A) B. One call a layer.
//
// Rows of a slot are taken some at a time, so that each weight that is read serves as many rows; nothing is gathered,
// padded or written back but the sums (Punica: Chen et al. 2023, SGMV). Sums are kept in float32.

#include <cstdint>
#include <cstring>
#include <vector>

#include "numbers.h"

namespace {

// COLUMNS of weights are taken together, and ROWS rows at most: as many as have their sums in registers.
constexpr int COLUMNS = 16, ROWS = LANES == 16 ? 8 : 4;
constexpr int VECTORS = COLUMNS / LANES;
// How far ahead weights are fetched, since hardware does not follow a few columns of each row: AHEAD rows where they are
// short, AHEAD columns where they are pages long.
constexpr int AHEAD = 64, SHORT = 128;

// COLUMNS numbers.
struct Line {
    Floats parts[VECTORS];
};

template <typename T> Line load_line(const T* from) {
    Line line;
    for (int v = 0; v < VECTORS; ++v) line.parts[v] = load(from + v * LANES);
    return line;
}

// The first `count` of COLUMNS numbers, the others zero.
template <typename T> Line load_line(const T* from, int count) {
    if (count == COLUMNS) return load_line(from);
    T values[COLUMNS] = {};
    std::memcpy(values, from, count * sizeof(T));
    return load_line(values);
}

template <typename T> void store_line(T* to, const Line& line, int count) {
    T values[COLUMNS];
    T* at = count < COLUMNS ? values : to;
    for (int v = 0; v < VECTORS; ++v) store(at + v * LANES, line.parts[v]);
    if (count < COLUMNS) std::memcpy(to, values, count * sizeof(T));
}

// sums[i] = inputs[i] @ weights, for COLUMNS columns (or `count` of them) of a matrix with `stride` columns.
template <int rows, bool whole, typename T>
void multiply(const float* inputs, int64_t width, const T* weights, int64_t stride, int depth, int count, Line* result) {
    Line sums[rows] = {};
    const int64_t ahead = stride < SHORT ? AHEAD * stride : AHEAD;
    for (int k = 0; k < depth; ++k) {
        const T* at = weights + k * stride;
        __builtin_prefetch(at + ahead);
        const Line weight = whole ? load_line(at) : load_line(at, count);
        // Loops that are not unrolled have their sums in memory.
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[i].parts[v] += weight.parts[v] * inputs[i * width + k];
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) result[i] = sums[i];
}

template <int rows, typename T>
void multiply(const float* inputs, int64_t width, const T* weights, int64_t stride, int depth, int count, Line* result) {
    if (count == COLUMNS)
        multiply<rows, true>(inputs, width, weights, stride, depth, count, result);
    else
        multiply<rows, false>(inputs, width, weights, stride, depth, count, result);
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

// `down`: [slots, width, slices * rank], whose rows are `down_stride` numbers apart; `up`: [slots, rank, ends[slices]],
// whose rows are `up_stride` apart, a slice's columns from ends[s] to ends[s + 1].
struct Layer {
    const void* down;
    const void* up;
    const int32_t* ends;
    int32_t slices, rank, width, down_stride, up_stride;
};

// For as many rows of one slot.
template <int rows, typename T>
void add_rows(T* y, int64_t y_stride, const T* x, int64_t x_stride, const Layer& layer, int32_t slot, const int32_t* at,
              float scale, float* input, float* hidden) {
    const int64_t ranks = int64_t(layer.slices) * layer.rank, width = layer.width, outs = layer.up_stride;
    const T* down = static_cast<const T*>(layer.down) + slot * width * layer.down_stride;
    const T* up = static_cast<const T*>(layer.up) + slot * layer.rank * outs;
    Line sums[rows];
    for (int i = 0; i < rows; ++i) {
        const T* row = x + at[i] * x_stride;
        for (int64_t k = 0; k < width; ++k) input[i * width + k] = widen(row[k]);
    }
    for (int64_t c = 0; c < ranks; c += COLUMNS) {
        const int some = ranks - c < COLUMNS ? int(ranks - c) : COLUMNS;
        multiply<rows>(input, width, down + c, layer.down_stride, layer.width, some, sums);
        for (int i = 0; i < rows; ++i) {
            for (Floats& part : sums[i].parts) part *= scale;
            store_line(hidden + i * ranks + c, sums[i], some);
        }
    }
    for (int s = 0; s < layer.slices; ++s) {
        for (int c = layer.ends[s]; c < layer.ends[s + 1]; c += COLUMNS) {
            const int some = layer.ends[s + 1] - c < COLUMNS ? layer.ends[s + 1] - c : COLUMNS;
            multiply<rows>(hidden + s * layer.rank, ranks, up + c, outs, layer.rank, some, sums);
            for (int i = 0; i < rows; ++i) {
                T* to = y + at[i] * y_stride + c;
                Line line = load_line(to, some);
                for (int v = 0; v < VECTORS; ++v) line.parts[v] += sums[i].parts[v];
                store_line(to, line, some);
            }
        }
    }
}

// `count` rows of one slot, of which `most` are taken together.
template <int most, typename T>
void add_block(T* y, int64_t y_stride, const T* x, int64_t x_stride, const Layer& layer, int32_t slot,
               const int32_t* rows, int count, float scale, float* input, float* hidden) {
    for (; count >= most; count -= most, rows += most)
        add_rows<most>(y, y_stride, x, x_stride, layer, slot, rows, scale, input, hidden);
    if constexpr (most > 1)
        if (count) add_block<most - 1>(y, y_stride, x, x_stride, layer, slot, rows, count, scale, input, hidden);
}

template <typename T>
void add(T* y, int64_t y_stride, const T* x, int64_t x_stride, const Layer& layer, const Step& step, float scale,
         int threads) {
    int64_t rows = 0;
    for (int b = 0; b < step.count; ++b) rows += step.blocks[b].count;
    const int64_t products = rows * layer.rank * (int64_t(layer.slices) * layer.width + layer.ends[layer.slices]);
#pragma omp parallel num_threads(threads) if (products > MANY)
    {
        std::vector<float> input(size_t(layer.width) * ROWS), hidden(size_t(layer.slices) * layer.rank * ROWS);
#pragma omp for schedule(dynamic)
        for (int b = 0; b < step.count; ++b) {
            const Block& block = step.blocks[b];
            add_block<ROWS>(y, y_stride, x, x_stride, layer, block.slot, step.rows + block.first, block.count, scale,
                            input.data(), hidden.data());
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
