// Root mean square norms (Zhang and Sennrich 2019): y = x / sqrt(mean(x^2) + epsilon) * weight, row by row. Sums are kept in
// float32; what is multiplied by the weight has been rounded to the model's type first, as in transformers.

#include <cmath>
#include <cstdint>

#include "numbers.h"

namespace {

template <typename T>
void normalize(const T* x, const T* weight, T* y, int64_t rows, int64_t width, float epsilon, int threads) {
#pragma omp parallel for num_threads(threads) if (4 * rows * width > MANY)
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = x + row * width;
        T* to = y + row * width;
        Floats squares = {};
        for (int64_t k = 0; k < width; k += LANES) {
            const Floats values = load_some(from + k, width - k);
            squares += values * values;
        }
        const float factor = 1.0f / std::sqrt(sum(squares) / float(width) + epsilon);
        for (int64_t k = 0; k < width; k += LANES) {
            T rounded[LANES];
            store(rounded, load_some(from + k, width - k) * factor);
            store_some(to + k, load(rounded) * load_some(weight + k, width - k), width - k);
        }
    }
}

}  // namespace

extern "C" {

void normalize_float32(const void* x, const void* weight, void* y, int64_t rows, int64_t width, float epsilon, int threads) {
    normalize(static_cast<const float*>(x), static_cast<const float*>(weight), static_cast<float*>(y), rows, width, epsilon,
              threads);
}

void normalize_bfloat16(const void* x, const void* weight, void* y, int64_t rows, int64_t width, float epsilon,
                        int threads) {
    normalize(static_cast<const BFloat16*>(x), static_cast<const BFloat16*>(weight), static_cast<BFloat16*>(y), rows, width,
              epsilon, threads);
}

}
