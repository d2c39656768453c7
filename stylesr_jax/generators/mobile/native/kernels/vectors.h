// Vectors of floats in registers, and memory for arrays of them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kPanel = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kPanel = 2;
#else
constexpr int kLanes = 4, kPanel = 4;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAccumulators = 24, kColumns = 4;  // of 32 registers
#else
constexpr int kAccumulators = 12, kColumns = 2;  // of 16
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
inline void add(float* p, Vector v) { store(p, load(p) + v); }
inline Vector all(float x) { return x - Vector{}; }

inline float total(Vector v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// bfloat16: a float's upper half, with any exponent, and within 0.4 %.
struct BFloat16 {
  uint16_t bits;
};
inline void store(BFloat16* p, Vector v) {
  const Bits rounded = (reinterpret_cast<Bits>(v) + 0x8000u) >> 16;
  *reinterpret_cast<Shorts*>(&p->bits) = __builtin_convertvector(rounded, Shorts);
}
inline Vector load(const BFloat16* p) {
#if defined(__AVX512F__)
  const auto shorts = *reinterpret_cast<const __m256i_u*>(p);
  return reinterpret_cast<Vector>(reinterpret_cast<Bits>(_mm512_cvtepu16_epi32(shorts)) << 16);
#else
  const auto shorts = *reinterpret_cast<const Shorts*>(p);
  return reinterpret_cast<Vector>(__builtin_convertvector(shorts, Bits) << 16);
#endif
}

// Floats that begin where a vector may: one across two cache lines takes twice as long to load. A
// thread keeps the memory for its next arrays: new pages from the system take long.
class Array {
 public:
  explicit Array(size_t size) : memory_(take(size)) {}
  Array(Array&&) = default;
  ~Array() {
    if (memory_.floats) free_memory().push_back(std::move(memory_));
  }
  float* data() { return memory_.floats.get(); }
  const float* data() const { return memory_.floats.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(float* p) const { ::operator delete[](p, kLine); }
  };
  struct Memory {
    size_t size;
    std::unique_ptr<float[], Delete> floats;
  };
  static std::vector<Memory>& free_memory() {
    thread_local std::vector<Memory> memory;
    return memory;
  }
  // The smallest free memory that is large enough, or new memory in place of the smallest of all.
  static Memory take(size_t size) {
    if (size == 0) return {};
    auto& free = free_memory();
    auto best = free.end();
    for (auto it = free.begin(); it != free.end(); ++it)
      if (it->size >= size && (best == free.end() || it->size < best->size)) best = it;
    if (best == free.end()) {
      const auto smallest = std::min_element(free.begin(), free.end(),
                                             [](auto& a, auto& b) { return a.size < b.size; });
      if (smallest != free.end()) free.erase(smallest);
      return {size, std::unique_ptr<float[], Delete>(new (kLine) float[size])};
    }
    Memory memory = std::move(*best);
    free.erase(best);
    return memory;
  }

  Memory memory_;
};

}  // namespace
