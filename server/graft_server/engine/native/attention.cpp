// Attention of rows by themselves over a paged KV cache: keys and values are read where they lie, and no more of them than a
// row sees (PagedAttention: Kwon et al. 2023). The query heads that share keys are taken together, places TILE at a time,
// with the softmax that needs no second pass (Milakov and Gimelshein 2018). Sums are kept in float32.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "numbers.h"

namespace {

// Places taken together; and query heads at most, which have their sums in registers.
constexpr int TILE = 16, HEADS = 4;

// exp of numbers that are not positive, to about a unit in the last place (Cephes: Moshier 1992); of those below -87 it is
// zero, and of NaN it is NaN.
Floats exponential(Floats x) {
    const Integers vanish = x < -87.0f;
    // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
    const Floats magic = Floats{} + 12582912.0f;
    const Floats shifted = x * 1.44269504088896341f + magic;
    const Floats n = shifted - magic;
    const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Words power = ((Words)shifted - (Words)magic) << 23;
    const Floats result = (Floats)((Words)p + power);
    return vanish ? Floats{} : x == x ? result : x;
}

// `query`: [rows, kv_heads * fold, head_dim], whose rows and heads are `query_row` and `query_head` numbers apart; `keys`,
// `values`: [blocks, block_size, kv_heads, head_dim or value_dim]; `table`: [rows, table_width], the blocks of each row;
// `lengths`: how many places of them a row sees, or of these the last `window`; `output`: [rows, kv_heads * fold, value_dim].
struct Attention {
    const void* query;
    const void* keys;
    const void* values;
    const int32_t* table;
    const int32_t* lengths;
    void* output;
    int64_t query_row, query_head;
    int32_t rows, kv_heads, fold, head_dim, value_dim, block_size, table_width, window;
    float scale;
};

// Of a row's query heads: what they ask, padded to whole vectors and scaled, and their sums so far.
struct Scratch {
    int head, value;
    std::vector<float> query, result, largest, total;

    explicit Scratch(const Attention& a)
        : head((a.head_dim + LANES - 1) / LANES * LANES),
          value((a.value_dim + LANES - 1) / LANES * LANES),
          query(size_t(a.kv_heads) * a.fold * head),
          result(size_t(a.kv_heads) * a.fold * value),
          largest(size_t(a.kv_heads) * a.fold),
          total(size_t(a.kv_heads) * a.fold) {}
};

// Up to TILE places that a row sees: where the first KV head's keys and values of each are.
template <typename T> struct Tile {
    int count;
    const T *keys[TILE], *values[TILE];

    Tile(const Attention& a, const int32_t* table, int start, int end) : count(std::min(TILE, end - start)) {
        for (int i = 0; i < count; ++i) {
            const int place = start + i;
            const int64_t at = (int64_t(table[place / a.block_size]) * a.block_size + place % a.block_size) * a.kv_heads;
            keys[i] = static_cast<const T*>(a.keys) + at * a.head_dim;
            values[i] = static_cast<const T*>(a.values) + at * a.value_dim;
        }
    }
};

// scores[h][i] = query[h] . keys[i], for as many places from the one with the number `first` on.
template <int heads, int places, typename T>
void score(const float* query, int padded, const T* const* keys, int64_t offset, int dim, float (*scores)[TILE], int first) {
    Floats sums[heads][places] = {};
    for (int d = 0; d < dim; d += LANES)
        for (int i = 0; i < places; ++i) {
            const Floats key = load_some(keys[first + i] + offset + d, dim - d);
#pragma GCC unroll 4
            for (int h = 0; h < heads; ++h) sums[h][i] += key * load(query + h * padded + d);
        }
    for (int h = 0; h < heads; ++h)
        for (int i = 0; i < places; ++i) scores[h][first + i] = sum(sums[h][i]);
}

// `heads` query heads of one KV head look at a tile; the first of them has the number `first`.
template <int heads, typename T>
void look(const Attention& a, const Tile<T>& tile, int kv_head, int first, Scratch& scratch) {
    const int count = tile.count;
    const float* query = &scratch.query[first * scratch.head];
    const int64_t key = int64_t(kv_head) * a.head_dim, value = int64_t(kv_head) * a.value_dim;
    float *result = &scratch.result[first * scratch.value], before[heads], scores[heads][TILE];
    int i = 0;
    for (; i + 2 <= count; i += 2) score<heads, 2>(query, scratch.head, tile.keys, key, a.head_dim, scores, i);
    if (i < count) score<heads, 1>(query, scratch.head, tile.keys, key, a.head_dim, scores, i);
    for (int h = 0; h < heads; ++h) {
        float& largest = scratch.largest[first + h];
        std::fill(scores[h] + count, scores[h] + TILE, -INFINITY);
        Floats highest = Floats{} + largest, sums = {};
        for (int j = 0; j < TILE; j += LANES) {
            const Floats some = load(scores[h] + j);
            highest = some <= highest ? highest : some;
        }
        const float higher = largest_of(highest);
        for (int j = 0; j < TILE; j += LANES) {
            const Floats shares = exponential(load(scores[h] + j) - higher);
            store(scores[h] + j, shares);
            sums += shares;
        }
        before[h] = std::exp(largest - higher);
        scratch.total[first + h] = scratch.total[first + h] * before[h] + sum(sums);
        largest = higher;
    }
    for (int v = 0; v < a.value_dim; v += LANES) {
        Floats sums[heads];
        for (int h = 0; h < heads; ++h) sums[h] = load(result + h * scratch.value + v) * before[h];
        for (int j = 0; j < count; ++j) {
            const Floats values = load_some(tile.values[j] + value + v, a.value_dim - v);
#pragma GCC unroll 4
            for (int h = 0; h < heads; ++h) sums[h] += values * scores[h][j];
        }
        for (int h = 0; h < heads; ++h) store(result + h * scratch.value + v, sums[h]);
    }
}

// `count` query heads, of which `most` are taken together.
template <int most, typename T>
void look_all(const Attention& a, const Tile<T>& tile, int kv_head, int first, int count, Scratch& scratch) {
    for (; count >= most; count -= most, first += most) look<most>(a, tile, kv_head, first, scratch);
    if constexpr (most > 1)
        if (count) look_all<most - 1>(a, tile, kv_head, first, count, scratch);
}

// The query heads of the KV heads from `kv_head` to `kv_end` of a row.
template <typename T> void attend(const Attention& a, int row, int kv_head, int kv_end, Scratch& scratch) {
    const T* query = static_cast<const T*>(a.query) + row * a.query_row;
    const int first = kv_head * a.fold, end = kv_end * a.fold;
    for (int h = first; h < end; ++h) {
        for (int d = 0; d < a.head_dim; ++d)
            scratch.query[h * scratch.head + d] = widen(query[h * a.query_head + d]) * a.scale;
        scratch.largest[h] = -INFINITY, scratch.total[h] = 0;
    }
    std::fill(&scratch.result[first * scratch.value], &scratch.result[(end - 1) * scratch.value] + scratch.value, 0.0f);
    const int length = a.lengths[row];
    for (int start = std::max(0, length - a.window); start < length; start += TILE) {
        const Tile<T> tile(a, a.table + int64_t(row) * a.table_width, start, length);
        for (int own = kv_head; own < kv_end; ++own) look_all<HEADS>(a, tile, own, own * a.fold, a.fold, scratch);
    }
    T* output = static_cast<T*>(a.output) + int64_t(row) * a.kv_heads * a.fold * a.value_dim;
    for (int h = first; h < end; ++h)
        for (int v = 0; v < a.value_dim; v += LANES)
            store_some(output + h * a.value_dim + v, load(&scratch.result[h * scratch.value + v]) / scratch.total[h],
                       a.value_dim - v);
}

// A place's keys of all heads lie side by side, so one thread takes them all, unless there are too few rows for that.
template <typename T> void attend(const Attention& a, int threads) {
    const int together = a.rows < 2 * threads ? 1 : a.kv_heads, parts = a.kv_heads / together;
    int64_t places = 0;
    for (int row = 0; row < a.rows; ++row) places += std::min(a.lengths[row], a.window);
    const int64_t products = places * a.kv_heads * a.fold * (a.head_dim + a.value_dim);
#pragma omp parallel num_threads(threads) if (products > MANY)
    {
        Scratch scratch(a);
#pragma omp for schedule(dynamic)
        for (int task = 0; task < a.rows * parts; ++task) {
            const int kv_head = task % parts * together;
            attend<T>(a, task / parts, kv_head, kv_head + together, scratch);
        }
    }
}

}  // namespace

extern "C" {

void attend_float32(const Attention* attention, int threads) { attend<float>(*attention, threads); }

void attend_bfloat16(const Attention* attention, int threads) { attend<BFloat16>(*attention, threads); }

}
