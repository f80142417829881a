// Vectors of floats, read from and written to the types that models are kept in.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

// A vector has LANES numbers, which is what a register holds: of wider ones the compiler keeps sums in memory.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

// Products from which on more than one thread is worth waking: some ten microseconds of work.
constexpr int64_t MANY = 1 << 17;

struct BFloat16 {
    uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline Floats load(const float* from) {
    Floats result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

inline Floats load(const BFloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// Rounds to the nearest, ties to even, as torch does; the weights of a model that gives NaN are lost anyway.
inline void store(BFloat16* to, Floats values) {
    Words bits = (Words)values;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Halves halves = __builtin_convertvector(bits, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// The first `count` of LANES numbers, or all of them if there are more; the others are zero.
template <typename T> Floats load_some(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    T values[LANES] = {};
    std::memcpy(values, from, count * sizeof(T));
    return load(values);
}

template <typename T> void store_some(T* to, Floats values, int64_t count) {
    if (count >= LANES) return store(to, values);
    T kept[LANES];
    store(kept, values);
    std::memcpy(to, kept, count * sizeof(T));
}

template <int lanes> struct Vector {
    typedef float type __attribute__((vector_size(lanes * sizeof(float))));
};

// All numbers of a vector put together by `combine`, half of them with the other half at a time.
template <int lanes = LANES, typename Combine> float reduce(typename Vector<lanes>::type values, Combine combine) {
    typename Vector<lanes / 2>::type halves[2];
    std::memcpy(halves, &values, sizeof values);
    const auto combined = combine(halves[0], halves[1]);
    if constexpr (lanes == 4)
        return combine(combined[0], combined[1]);
    else
        return reduce<lanes / 2>(combined, combine);
}

inline float sum(Floats values) {
    return reduce(values, [](auto one, auto other) { return one + other; });
}

inline float largest_of(Floats values) {
    return reduce(values, [](auto one, auto other) { return one > other ? one : other; });
}

}  // namespace
