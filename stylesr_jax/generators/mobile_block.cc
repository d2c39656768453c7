// A block of MobileStyleGAN on CPUs (see mobile.py): modulated Haar up-sampling and two
// depthwise-separable layers, then perhaps the image, by a modulated pointwise convolution and Haar
// synthesis in one product; and its gradient with respect to the features, the styles and the
// noise.
//
// Rows are streamed. A task computes a few dozen rows of one image from top to bottom and holds
// the last rows of every intermediate result in buffers that fit a core's second-level
// cache, so that only the block's input and output pass through memory.
//
// What works on whole tiles is not inlined: that would cost the compiler a quarter of its time,
// which the first run on a machine waits for, and gain nothing.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// --- vectors ----------------------------------------------------------------------------------

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

// Floats that begin where a vector may: one across two cache lines takes twice as long to load. A
// thread keeps the memory for its next arrays: new pages from the system take long.
class Array {
 public:
  explicit Array(size_t size) : memory_(take(size)) {}
  Array(Array&&) = default;
  ~Array() {
    if (memory_.floats) kept().push_back(std::move(memory_));
  }
  float* data() { return memory_.floats.get(); }
  const float* data() const { return memory_.floats.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, kLine); }
  };
  struct Memory {
    size_t size;
    std::unique_ptr<float[], Free> floats;
  };
  static std::vector<Memory>& kept() {
    thread_local std::vector<Memory> memory;
    return memory;
  }
  // The smallest that is kept and large enough, or new memory in place of the smallest of all.
  static Memory take(size_t size) {
    if (size == 0) return {};
    auto& all = kept();
    auto best = all.end();
    for (auto it = all.begin(); it != all.end(); ++it)
      if (it->size >= size && (best == all.end() || it->size < best->size)) best = it;
    if (best == all.end()) {
      const auto smallest = std::min_element(all.begin(), all.end(),
                                             [](auto& a, auto& b) { return a.size < b.size; });
      if (smallest != all.end()) all.erase(smallest);
      return {size, std::unique_ptr<float[], Free>(new (kLine) float[size])};
    }
    Memory found = std::move(*best);
    all.erase(best);
    return found;
  }

  Memory memory_;
};

// The lower halves of 32-bit integers, and 16-bit integers widened.
inline void narrow(uint16_t* p, Bits bits) {
  *reinterpret_cast<Shorts*>(p) = __builtin_convertvector(bits, Shorts);
}
inline Bits widen(const uint16_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Bits>(_mm512_cvtepu16_epi32(*reinterpret_cast<const __m256i_u*>(p)));
#else
  return __builtin_convertvector(*reinterpret_cast<const Shorts*>(p), Bits);
#endif
}

// Gradient steps may round what goes into a product to integers of 16 bits, of which some
// processors multiply twice as many in a cycle, and what goes from block to block to 16 bits.
#if defined(__AVX512VNNI__)
constexpr bool kRounds = true;
#else
constexpr bool kRounds = false;
#endif

// How numbers are kept in memory. Brain: bfloat16, with any exponent, and within 0.4 %. Half:
// IEEE's binary16 between 6e-8 and 65504, within 0.05 % above 6e-5; infinite beyond.
struct Brain {
  uint16_t bits;
};
inline void pack(Brain* p, Vector v) {
  narrow(&p->bits, (reinterpret_cast<Bits>(v) + 0x8000u) >> 16);
}
inline Vector unpack(const Brain* p) { return reinterpret_cast<Vector>(widen(&p->bits) << 16); }
inline void pack(float* p, Vector v) { store(p, v); }
inline Vector unpack(const float* p) { return load(p); }
#if defined(__AVX512F__)
struct Half {
  uint16_t bits;
};
inline void pack(Half* p, Vector v) {
  const __m256i halves = _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p), halves);
}
inline Vector unpack(const Half* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p));
  return reinterpret_cast<Vector>(_mm512_cvtph_ps(halves));
}
#else
using Half = float;  // where nothing is rounded
#endif

// --- arguments --------------------------------------------------------------------------------

using Floats = ffi::Buffer<ffi::F32>;
using Packed = ffi::Buffer<ffi::U16>;
using Features = ffi::AnyBuffer;  // F32, or between two blocks that round U16

template <typename Element, typename Buffer>
inline Element* elements(Buffer& buffer) {
  return static_cast<Element*>(buffer.untyped_data());
}
template <typename Element, typename Buffer>
inline Element* elements(ffi::Result<Buffer>& result) {
  return static_cast<Element*>(result->untyped_data());
}

inline bool packed(const Features& buffer) { return buffer.element_type() == ffi::U16; }

// Asks for the pages of a large result to be huge: the system hands out ordinary ones, which a
// step would otherwise wait for, one by one. It may refuse.
template <typename Buffer>
void want_huge_pages([[maybe_unused]] ffi::Result<Buffer>& result) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(result->untyped_data());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + result->size_bytes()) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Where each example begins in an array with leading dimensions that broadcast against the batch.
class Offsets {
 public:
  Offsets(ffi::Span<const int64_t> dims, size_t rank, ffi::Span<const int64_t> batch, int64_t count)
      : offsets_(count, 0) {
    const size_t leading = dims.size() - rank;
    int64_t size = 1;
    for (size_t i = leading; i < dims.size(); ++i) size *= dims[i];
    for (int64_t n = 0; n < count; ++n)
      for (int64_t i = int64_t(leading) - 1, rest = n, step = size; i >= 0; --i) {
        if (dims[i] > 1) offsets_[n] += rest % batch[i] * step;
        rest /= batch[i];
        step *= dims[i];
      }
  }
  int64_t operator[](int64_t n) const { return offsets_[n]; }

 private:
  std::vector<int64_t> offsets_;
};

template <typename Element>
struct Examples {
  Element* data;
  Offsets offsets;
  Element* operator[](int64_t n) const { return data + offsets[n]; }
};

// The sizes of a block, from those of its layers' outputs (..., H, W), the dimensions of any
// result with three of its own, and the first layer's pointwise weights (..., C, F).
struct Sizes {
  ffi::Span<const int64_t> leading;
  int64_t batch = 1, height, task_rows, tasks;
  int width, channels, features;

  Sizes(ffi::Span<const int64_t> area, ffi::Span<const int64_t> result, const Floats& pointwise,
        const ffi::ThreadPool& pool) {
    // What is the same for a whole batch lacks some of its dimensions; a result has them all.
    leading = result.first(result.size() - 3);
    for (int64_t size : leading) batch *= size;
    const auto weights = pointwise.dimensions();
    height = area[area.size() - 2];
    width = int(area.back());
    channels = int(weights[weights.size() - 2]);
    features = int(weights.back());
    // Short tasks keep every core busy, long ones compute fewer rows twice. An even number.
    const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
    task_rows = std::clamp<int64_t>(height / threads, 16, 128) / 2 * 2;
    tasks = (height + task_rows - 1) / task_rows;
  }
  template <typename Buffer>
  Offsets offsets(Buffer& buffer, size_t rank) const {
    return {buffer.dimensions(), rank, leading, batch};
  }
  template <typename Element = float, typename Buffer>
  Examples<Element> examples(Buffer& buffer, size_t rank) const {
    return {elements<Element>(buffer), offsets(buffer, rank)};
  }

  // The rows [first, end) of image n.
  struct Task {
    int64_t n, first, end;
    bool holds(int64_t row) const { return row >= first && row < end; }
  };
  bool has(int64_t row) const { return row >= 0 && row < height; }
  Task task(int64_t index) const {
    const int64_t first = index % tasks * task_rows;
    return {index / tasks, first, std::min(first + task_rows, height)};
  }
};

// --- matrix products --------------------------------------------------------------------------

// Where a product is rounded, a tile of the left side is to 13 bits and a sign, in steps of its
// largest magnitude; a column of the right side so that kDepth magnitudes add up to 18 bits: the
// sum of kDepth products always fits 32.
constexpr int kDepth = 128;
constexpr float kLeft = 8191.0f, kRight = 262144.0f - kDepth / 2, kLargest = 32767.0f;

typedef int32_t Integers __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

// Of a group the first numbers of either half make a pair of 16 bits, then the second and so on, as
// two vectors do without any shuffling.
constexpr int kGroup = 2 * kLanes;

// sum + a * b of the lower and of the upper halves.
inline Integers multiply_pairs(Integers sum, Integers a, Integers b) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Integers>(_mm512_dpwssd_epi32(
      reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#else
  return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// The integer nearest to each of x, none of them above 2^21, in the lower bits.
inline Bits nearest(Vector x) { return reinterpret_cast<Bits>(x + 12582912.0f); }

// Two vectors times `scale`, rounded, as pairs.
inline Bits pairs(Vector low, Vector high, Vector scale) {
  return (nearest(low * scale) & 0xffffu) | nearest(high * scale) << 16;
}

// A matrix (inner, outer) as panels of up to kPanel vectors of columns, each contiguous.
class Matrix {
 public:
  Matrix(int inner, int outer, bool rounded)
      : inner(inner),
        outer(outer),
        rounded(kRounds && rounded && inner % kGroup == 0 && outer % (2 * kLanes) == 0),
        panels_(size_t(inner) * outer / (this->rounded ? 2 : 1)),
        steps_(this->rounded ? outer : 0) {
    for (int first = 0; first < outer; first += panel_width(first)) firsts.push_back(first);
  }
  int panel_width(int first) const {
    int vectors = kPanel;
    while (vectors > 1 && first + vectors * kLanes > outer) vectors /= 2;
    return vectors * kLanes;
  }
  // One panel's columns from data (inner, outer), or (outer, inner) if it is to be transposed.
  [[gnu::noinline]] void fill(int first, const float* data, bool transpose) {
    const int width = panel_width(first);
    Array turned(transpose ? size_t(inner) * kLanes : 0);
    for (int f = first; f < first + width; f += kLanes) {
      const float* columns = transpose ? turned.data() : data + f;
      for (int i = 0; transpose && i < kLanes; ++i)
        for (int k = 0; k < inner; ++k)
          turned.data()[k * kLanes + i] = data[size_t(f + i) * inner + k];
      const size_t at = size_t(first) * inner, step = transpose ? kLanes : outer;
      if (rounded)
        round_columns(columns, step, f, panels_.data() + at / 2 + f - first, width);
      else
        for (int k = 0; k < inner; ++k)
          store(panels_.data() + at + f - first + size_t(k) * width, load(columns + k * step));
    }
  }
  template <typename Element>
  const Element* panel(int first) const {
    return reinterpret_cast<const Element*>(panels_.data()) + size_t(first) * inner;
  }
  const float* steps(int first) const { return steps_.data() + first; }

  const int inner, outer;
  const bool rounded;
  std::vector<int> firsts;  // columns of the panels

 private:
  // A vector of columns, from `column` on, whose rows are `step` apart, to rows of pairs that are
  // `width` apart.
  void round_columns(const float* columns, size_t step, int column, float* to, int width) {
    Vector sum = {}, heaviest = all(0x1p-100f), largest = heaviest, check = {};
    for (int k = 0; k < inner; ++k) {
      const Vector v = load(columns + k * step), size = v < 0.0f ? -v : v;
      sum = k % kDepth ? sum + size : size;
      heaviest = sum > heaviest ? sum : heaviest;
      largest = size > largest ? size : largest;
      check += v * 0.0f;  // NaN for ever after one number that is not finite
    }
    const Vector by_sum = kRight / heaviest, by_size = kLargest / largest;
    const Vector scale = by_sum < by_size ? by_sum : by_size;
    store(steps_.data() + column, 1.0f / scale + check);
    for (int k = 0; k < inner; k += 2, to += width) {
      const float* low = columns + (k / kGroup * kGroup + k % kGroup / 2) * step;
      *reinterpret_cast<Bits*>(to) = pairs(load(low), load(low + kLanes * step), scale);
    }
  }

  Array panels_, steps_;
};

// P pixels times a panel of N vectors: P x N accumulators stay in registers.
template <int P, int N>
inline void multiply(const float* x, float, const Matrix& matrix, int first, float* out) {
  const int inner = matrix.inner, stride = matrix.outer;
  const float* panel = matrix.panel<float>(first);
  Vector sum[P][N] = {};
  for (int k = 0; k < inner; ++k) {
    Vector weight[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) weight[j] = load(panel + (k * N + j) * kLanes);
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
      const Vector value = all(x[p * inner + k]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sum[p][j] += value * weight[j];
    }
  }
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(out + p * stride + j * kLanes, sum[p][j]);
}

// The same of rounded pixels, which are integers times `step`.
template <int P, int N>
inline void multiply(const uint16_t* x, float step, const Matrix& matrix, int first, float* out) {
  const int inner = matrix.inner, stride = matrix.outer;
  const uint16_t* panel = matrix.panel<uint16_t>(first);
  for (int from = 0; from < inner; from += kDepth) {
    Integers sum[P][N] = {};
    for (int k = from; k < std::min(from + kDepth, inner); k += 2) {
      Integers weight[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j)
        weight[j] = *reinterpret_cast<const Integers*>(panel + (k * N + 2 * j) * kLanes);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        int32_t pair;
        std::memcpy(&pair, x + p * inner + k, sizeof pair);
        const Integers value = pair - Integers{};
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) sum[p][j] = multiply_pairs(sum[p][j], weight[j], value);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const Vector unit = load(matrix.steps(first) + j * kLanes);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        float* to = out + p * stride + j * kLanes;
        const Vector part = __builtin_convertvector(sum[p][j], Vector) * unit * step;
        store(to, from ? load(to) + part : part);
      }
    }
  }
}

// P pixels at a time, then fewer, until none of an even number are left.
template <int P, int N, typename Element>
void multiply_panel(const Element* x, float step, int pixels, const Matrix& matrix, int first,
                    float* out) {
  static_assert(P % 2 == 0, "rows have an even number of pixels");
  for (; pixels >= P; pixels -= P, x += P * matrix.inner, out += P * matrix.outer)
    multiply<P, N>(x, step, matrix, first, out);
  constexpr int fewer = P > 8 ? 8 : P > 4 ? 4 : P > 2 ? 2 : 0;
  if constexpr (fewer > 0) multiply_panel<fewer, N>(x, step, pixels, matrix, first, out);
}

template <typename Element>
void multiply_panel(const Element* x, float step, int pixels, const Matrix& matrix, int first,
                    float* out) {
  constexpr int many = kAccumulators / 2;
  switch (matrix.panel_width(first) / kLanes) {
    case 4:
      return multiply_panel<many / 4 * 2, 4>(x, step, pixels, matrix, first, out);
    case 2:
      return multiply_panel<many, 2>(x, step, pixels, matrix, first, out);
    default:
      if constexpr (std::is_same_v<Element, float>)
        multiply_panel<many, 1>(x, step, pixels, matrix, first, out);
  }
}

constexpr int kPixels = 64;  // that go through a matrix product at a time, at most

// Calls tile(first pixel, pixels) for one part of a row after the other.
template <typename Tile>
inline void for_tiles(int width, const Tile& tile) {
  for (int p = 0; p < width; p += kPixels) tile(p, std::min(kPixels, width - p));
}

// The largest magnitude, as bits: those of NaN and infinity are above all others.
inline uint32_t largest_bits(const float* x, int size) {
  Bits most = {};
  for (int i = 0; i < size; i += kLanes) {
    const Bits bits = reinterpret_cast<Bits>(load(x + i)) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  uint32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result = std::max(result, uint32_t(most[i]));
  return result;
}

// Computes out (pixels, outer) = x (pixels, inner) times a matrix of at most so many rows.
class Multiplier {
 public:
  explicit Multiplier(int inner) : rounded_(size_t(kPixels) * inner) {}

  struct Row {
    const float* x;
    float* out;  // or null: this row is not wanted
  };
  // Two rows at a time, so that the matrix passes half as often. Calls after(row, first, width)
  // when columns first to first + width - 1 of one are done.
  template <typename After>
  void operator()(const Row (&rows)[2], int pixels, const Matrix& matrix, const After& after) {
    const int size = pixels * matrix.inner;
    const float step = matrix.rounded ? round(rows, size) : 1.0f;
    for (int first : matrix.firsts)
      for (int i = 0; i < 2; ++i) {
        if (!rows[i].out) continue;
        if (matrix.rounded)
          multiply_panel(shorts() + i * size, step, pixels, matrix, first, rows[i].out + first);
        else
          multiply_panel(rows[i].x, step, pixels, matrix, first, rows[i].out + first);
        after(i, first, matrix.panel_width(first));
      }
  }
  void operator()(const Row (&rows)[2], int pixels, const Matrix& matrix) {
    (*this)(rows, pixels, matrix, [](int, int, int) {});
  }

 private:
  uint16_t* shorts() { return reinterpret_cast<uint16_t*>(rounded_.data()); }

  // Rounds to integers and returns the step between them: NaN if any number is not finite.
  [[gnu::noinline]] float round(const Row (&rows)[2], int size) {
    uint32_t bits = 0;
    for (const auto& row : rows)
      if (row.out) bits = std::max(bits, largest_bits(row.x, size));
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    if (!std::isfinite(largest)) return std::numeric_limits<float>::quiet_NaN();
    const bool small = largest < kLeft * std::numeric_limits<float>::min();
    const float scale = small ? 0.0f : kLeft / largest;
    for (int row = 0; row < 2; ++row) {
      uint16_t* to = shorts() + row * size;
      const float* x = rows[row].x;
      for (int i = 0; rows[row].out && i < size; i += kGroup)
        *reinterpret_cast<Bits*>(to + i) = pairs(load(x + i), load(x + i + kLanes), all(scale));
    }
    return small ? 0.0f : largest / kLeft;
  }

  Array rounded_;
};

// --- rows -------------------------------------------------------------------------------------

// The last four rows of an intermediate result, with a zero pixel at either end.
class Rows {
 public:
  Rows(const Sizes& sizes, int channels)
      : sizes_(sizes),
        channels_(channels),
        length_(int64_t(sizes.width + 2) * channels),
        data_(size_t(kCount + 1) * length_) {
    for (int64_t r = 0; r <= kCount; ++r) {
      float* row = data_.data() + r * length_;
      if (r == kCount) std::fill(row, row + length_, 0.0f);
      std::fill(row, row + channels, 0.0f);
      std::fill(row + length_ - channels, row + length_, 0.0f);
    }
  }

  float* operator[](int64_t r) { return padded(r) + channels_; }

  // The rows r - 1 to r + 2, padded; those outside the image are zero.
  struct Four {
    const float* row[4];
  };
  Four around(int64_t r) {
    Four near;
    for (int i = 0; i < 4; ++i)
      near.row[i] = sizes_.has(r - 1 + i) ? padded(r - 1 + i) : data_.data() + kCount * length_;
    return near;
  }

 private:
  static constexpr int64_t kCount = 4;
  float* padded(int64_t r) { return data_.data() + r % kCount * length_; }

  const Sizes& sizes_;
  int channels_;
  int64_t length_;
  Array data_;
};

// Q pixels of two rows from `at`, one vector of their channels, correlated with weight.
template <int Q>
inline void depthwise(const float* const at[4], const Vector weight[9], size_t channels,
                      float* upper, float* lower) {
  Vector above[Q] = {}, below[Q] = {};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < Q + 2; ++j) {
      const Vector x = load(at[i] + j * channels);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const int column = j - q;
        if (column < 0 || column > 2) continue;
        if (i < 3) above[q] += x * weight[3 * i + column];
        if (i > 0) below[q] += x * weight[3 * (i - 1) + column];
      }
    }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    store(upper + q * channels, above[q]);
    store(lower + q * channels, below[q]);
  }
}

// out (2, count, channels): pixels of two rows from `first` on, correlated with weight
// (3, 3, channels).
[[gnu::noinline]] void depthwise(const Rows::Four& near, const float* weight, int channels,
                                 int first, int count, float* out) {
  const auto some = [&](auto pixels, int p) {
    for (int c = 0; c < channels; c += kLanes) {
      Vector w[9];
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) w[t] = load(weight + t * channels + c);
      const float* at[4];
      for (int i = 0; i < 4; ++i) at[i] = near.row[i] + size_t(first + p) * channels + c;
      float* upper = out + size_t(p) * channels + c;
      depthwise<pixels>(at, w, channels, upper, upper + size_t(count) * channels);
    }
  };
  int p = 0;
  for (; p + kColumns <= count; p += kColumns) some(std::integral_constant<int, kColumns>(), p);
  for (; p < count; ++p) some(std::integral_constant<int, 1>(), p);
}

constexpr float kSlope = 0.2f;  // leaky ReLU's

// In place: noise and bias added to `width` of the features from `first` on and, unless the next
// block does it, leaky ReLU; a copy goes where it is asked for.
template <typename Short>
[[gnu::noinline]] void activate(float* x, const float* noise, const float* bias, int pixels,
                                int features, int first, int width, bool raw, Short* copy) {
  const Vector slope = all(raw ? 1.0f : kSlope);
  for (int p = 0; p < pixels; ++p) {
    const Vector shift = all(noise[p]);
    for (int f = first; f < first + width; f += kLanes) {
      const size_t at = size_t(p) * features + f;
      const Vector y = load(x + at) + shift + load(bias + f), v = y > 0.0f ? y : y * slope;
      store(x + at, v);
      if (copy) pack(copy + at, v);
    }
  }
}

// N vectors of the features of `deactivate`.
template <int N, typename Known>
inline void deactivate_some(const float* grad, const Known* known, const float* style, int pixels,
                            int features, float* to, float* style_sum, Vector* noise_sum) {
  Vector factor[N], found[N] = {};
  for (int j = 0; j < N; ++j) factor[j] = style ? load(style + j * kLanes) : all(1.0f);
  for (int p = 0; p < pixels; ++p) {
    Vector sum = {};
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const size_t at = size_t(p) * features + j * kLanes;
      const Vector out = unpack(known + at);
      Vector g = load(grad + at);
      found[j] += out * g;
      g *= factor[j];
      g = out >= 0.0f ? g : g * kSlope;
      store(to + at, g);
      sum += g;
    }
    if (noise_sum) noise_sum[p] += sum;
  }
  for (int j = 0; style_sum && j < N; ++j) add(style_sum + j * kLanes, found[j]);
}

// The gradient `grad` of what is made of a layer's output `known`, where it is multiplied by
// `style` or, without one, by 1: `to` becomes that before the layer's activation. The gradients of
// the style and of the noise, the sums over pixels and over features, go where they are asked for.
template <typename Known>
[[gnu::noinline]] void deactivate(const float* grad, const Known* known, const float* style,
                                  int pixels, int features, float* to, float* style_sum,
                                  float* noise_grad) {
  Vector noise_sum[kPixels];
  if (noise_grad) std::fill(noise_sum, noise_sum + pixels, Vector{});
  const auto some = [&](auto vectors, int f) {
    deactivate_some<vectors>(grad + f, known + f, style ? style + f : nullptr, pixels, features,
                             to + f, style_sum ? style_sum + f : nullptr,
                             noise_grad ? noise_sum : nullptr);
  };
  int f = 0;
  for (; f + 4 * kLanes <= features; f += 4 * kLanes) some(std::integral_constant<int, 4>(), f);
  for (; f < features; f += kLanes) some(std::integral_constant<int, 1>(), f);
  for (int p = 0; noise_grad && p < pixels; ++p) noise_grad[p] = total(noise_sum[p]);
}

[[gnu::noinline]] void unpack(const Brain* x, int size, float* to) {
  for (int i = 0; i < size; i += kLanes) store(to + i, unpack(x + i));
}

// The noise's gradient alone, where the activation is the next block's.
[[gnu::noinline]] void sum_features(const float* grad, int pixels, int features,
                                    float* noise_grad) {
  for (int p = 0; p < pixels; ++p, grad += features) {
    Vector sum = {};
    for (int f = 0; f < features; f += kLanes) sum += load(grad + f);
    noise_grad[p] = total(sum);
  }
}

// --- Haar wavelets (see separable.py) ---------------------------------------------------------

// Two rows of 2 * width pixels from a row of bands (width, 4, channels) times `style`, first
// activated if they come raw.
template <typename Element>
[[gnu::noinline]] void synthesise(const Element* bands, bool raw, const float* style, int width,
                                  int channels, float* upper, float* lower) {
  const Vector slope = all(raw ? kSlope : 1.0f);
  for (int p = 0; p < width; ++p)
    for (int c = 0; c < channels; c += kLanes) {
      Vector band[4];
      for (int b = 0; b < 4; ++b) {
        const Vector x = unpack(bands + size_t(4 * p + b) * channels + c);
        band[b] = (x > 0.0f ? x : x * slope) * load(style + b * channels + c) * 0.5f;
      }
      const Vector top = band[0] + band[1], top_diff = band[2] + band[3];
      const Vector bottom = band[0] - band[1], bottom_diff = band[2] - band[3];
      const size_t at = size_t(2 * p) * channels + c;
      store(upper + at, top + top_diff);
      store(upper + at + channels, top - top_diff);
      store(lower + at, bottom + bottom_diff);
      store(lower + at + channels, bottom - bottom_diff);
    }
}

// The transpose, of two rows of gradients (2, 2 * width, channels). The gradient of the style is
// added to `sum`.
template <typename Element, typename Result>
[[gnu::noinline]] void analyse(const float* grad, const Element* bands, bool raw,
                               const float* style, int width, int channels, Result* grad_bands,
                               float* sum) {
  const Vector slope = all(raw ? kSlope : 1.0f);
  for (int c = 0; c < channels; c += kLanes) {
    Vector found[4] = {}, factor[4];
    for (int b = 0; b < 4; ++b) factor[b] = load(style + b * channels + c) * 0.5f;
    for (int p = 0; p < width; ++p) {
      const float* upper = grad + size_t(2 * p) * channels + c;
      const float* lower = upper + size_t(2 * width) * channels;
      const Vector left = load(upper), right = load(upper + channels);
      const Vector low_left = load(lower), low_right = load(lower + channels);
      const Vector top = left + right, top_diff = left - right;
      const Vector bottom = low_left + low_right, bottom_diff = low_left - low_right;
      const Vector band[4] = {top + bottom, top - bottom, top_diff + bottom_diff,
                              top_diff - bottom_diff};
      for (int b = 0; b < 4; ++b) {
        const size_t at = size_t(4 * p + b) * channels + c;
        const Vector x = unpack(bands + at), g = band[b] * factor[b];
        found[b] += band[b] * (x > 0.0f ? x : x * slope);
        pack(grad_bands + at, x >= 0.0f ? g : g * slope);
      }
    }
    for (int b = 0; b < 4; ++b) add(sum + b * channels + c, found[b] * 0.5f);
  }
}

// --- tasks ------------------------------------------------------------------------------------

// Runs task(0) to task(count - 1) on the pool and the calling thread. What the pool starts late
// finds nothing left to do, so that the caller never waits for a thread to come free.
template <typename Task>
void run_tasks(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct State {
    const Task& task;
    const int64_t count;
    std::atomic<int64_t> next{0}, left;
    std::mutex mutex;
    std::condition_variable ended;

    State(const Task& task, int64_t count) : task(task), count(count), left(count) {}

    void work() {
      for (int64_t i; (i = next.fetch_add(1)) < count;) {
        task(i);
        if (left.fetch_sub(1) == 1) {
          std::lock_guard<std::mutex> lock(mutex);
          ended.notify_all();
        }
      }
    }
  };
  auto state = std::make_shared<State>(task, count);
  for (int64_t i = 1; i < std::min<int64_t>(pool.num_threads(), count); ++i)
    pool.Schedule([state] { state->work(); });
  state->work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->ended.wait(lock, [&] { return state->left == 0; });
}

// Each example's matrix; consecutive examples share one where the data is the same.
class Matrices {
 public:
  // Of data (..., inner, outer), or (..., outer, inner) if it is to be transposed.
  template <typename Buffer>
  Matrices(ffi::ThreadPool& pool, Buffer& buffer, const Sizes& sizes, int inner, int outer,
           bool transpose, bool rounded) {
    const auto examples = sizes.examples(buffer, 2);
    std::vector<const float*> data;
    for (int64_t n = 0; n < sizes.batch; ++n) {
      if (n == 0 || examples[n] != examples[n - 1]) {
        made_.emplace_back(inner, outer, rounded);
        data.push_back(examples[n]);
      }
      which_.push_back(made_.size() - 1);
    }
    const int64_t panels = made_.empty() ? 0 : made_[0].firsts.size();
    run_tasks(pool, made_.size() * panels, [&](int64_t index) {
      Matrix& matrix = made_[index / panels];
      matrix.fill(matrix.firsts[index % panels], data[index / panels], transpose);
    });
  }
  const Matrix& operator[](int64_t n) const { return made_[which_[n]]; }

 private:
  std::vector<Matrix> made_;
  std::vector<size_t> which_;
};

// --- images -----------------------------------------------------------------------------------

// The last product makes four pixels of the image, two rows of two, each row with two zeros.
constexpr int kMade = 16, kHalf = kMade / 2, kPair = 6;

// Two rows of `pixels` pairs of pixels (2, 2 * pixels, 3) from made (pixels, kMade) plus bias.
[[gnu::noinline]] void put_pixels(float* made, const float* bias, int pixels, float* upper,
                                  float* lower) {
  for (int p = 0; p < pixels; ++p, made += kMade, upper += kPair, lower += kPair) {
    for (int i = 0; i < kMade; i += kLanes) add(made + i, load(bias + i));
    std::memcpy(upper, made, kPair * sizeof(float));
    std::memcpy(lower, made + kHalf, kPair * sizeof(float));
  }
}

// The transpose: `made`, whose other numbers are zero, from two rows.
[[gnu::noinline]] void take_pixels(const float* upper, const float* lower, int pixels,
                                   float* made) {
  for (int p = 0; p < pixels; ++p, made += kMade, upper += kPair, lower += kPair) {
    std::memcpy(made, upper, kPair * sizeof(float));
    std::memcpy(made + kHalf, lower, kPair * sizeof(float));
  }
}

}  // namespace

static ffi::Error other_processor() {
  return ffi::Error::InvalidArgument("features of 16 bits come from another kind of processor");
}

// What both calls begin with.
static auto bind() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<bool>("rounded")
      .Attr<bool>("raw_in")
      .Attr<bool>("raw_out")
      .Arg<Features>()  // x (..., H / 2, W / 2, 4 C)
      .Arg<Floats>()    // style (..., 4 C)
      .Arg<Floats>()    // depthwise1 (..., 3, 3, C), for the gradient turned round
      .Arg<Floats>();   // pointwise1 (..., C, F)
}

// --- forward ----------------------------------------------------------------------------------

// `style` is the product of the up-sampling's and the first layer's, `depthwise2` holds the second
// layer's and `head`, which may be empty, the image's. `out` is the block's output or the image,
// `left1` and `left2` what each layer put out, where these are asked for. Raw features still lack
// their activation, which the next block makes up for.
static ffi::Error Forward(ffi::ThreadPool pool, bool rounded, bool raw_in, bool raw_out, Features x,
                          Floats style, Floats depthwise1, Floats pointwise1, Floats bias1,
                          Floats noise1, Floats depthwise2, Floats pointwise2, Floats bias2,
                          Floats noise2, Floats head, Floats head_bias, ffi::Result<Features> out,
                          ffi::Result<Packed> left1, ffi::Result<Packed> left2) {
  if (!kRounds && (packed(x) || packed(*out))) return other_processor();
  const Sizes s(noise1.dimensions(), out->dimensions(), pointwise1, pool);
  const int channels = s.channels, features = s.features, width = s.width;
  const int64_t area = s.height * width;
  const bool headed = head.element_count() > 0, short_out = packed(*out);
  const bool leaves1 = left1->element_count() > 0, leaves2 = left2->element_count() > 0;
  const auto features_at = s.offsets(x, 3);
  const auto styles = s.examples(style, 1);
  const auto kernel1 = s.examples(depthwise1, 3), kernel2 = s.examples(depthwise2, 3);
  const auto noises1 = s.examples(noise1, 2), noises2 = s.examples(noise2, 2);
  const auto biases1 = s.examples(bias1, 1), biases2 = s.examples(bias2, 1);
  const auto head_biases = s.examples(head_bias, 1);
  const Matrices matrix1(pool, pointwise1, s, channels, features, false, rounded);
  const Matrices matrix2(pool, pointwise2, s, features, features, false, rounded);
  const Matrices to_pixels(pool, head, s, headed ? features : 0, headed ? kMade : 0, false, false);
  want_huge_pages(out), want_huge_pages(left1), want_huge_pages(left2);

  run_tasks(pool, s.batch * s.tasks, [&](int64_t index) {
    const auto task = s.task(index);
    const int64_t n = task.n;
    const int most = std::max(channels, features);
    Rows input(s, channels), middle(s, features);
    Array tile(size_t(2) * kPixels * most), last(size_t(2) * kPixels * features);
    Array made(size_t(2) * kPixels * kMade);
    Multiplier multiply(most);
    int64_t next = std::max<int64_t>(task.first - 2, 0);  // row of the input

    const auto from_bands = [&](int64_t row) {
      const int64_t at = features_at[n] + row * width * channels;
      const auto make = [&](const auto* bands) {
        synthesise(bands + at, raw_in, styles[n], width / 2, channels, input[row], input[row + 1]);
      };
      packed(x) ? make(elements<Half>(x)) : make(elements<float>(x));
    };
    const auto first_layer = [&](int64_t top) {  // its rows `top` and `top` + 1
      for (; next <= std::min(top + 2, s.height - 1); next += 2) from_bands(next);
      const auto near = input.around(top);
      for_tiles(width, [&](int p, int count) {
        depthwise(near, kernel1[n], channels, p, count, tile.data());
        const auto to = [&](int64_t row) {
          return s.has(row) ? middle[row] + size_t(p) * features : nullptr;
        };
        const Multiplier::Row rows[2] = {{tile.data(), to(top)},
                                         {tile.data() + count * channels, to(top + 1)}};
        multiply(rows, count, matrix1[n], [&](int i, int first, int some) {
          const int64_t pixel = (top + i) * width + p;
          Brain* left = leaves1 && task.holds(top + i)
                            ? elements<Brain>(left1) + (n * area + pixel) * features
                            : nullptr;
          activate(rows[i].out, noises1[n] + pixel, biases1[n], count, features, first, some, false,
                   left);
        });
      });
    };
    const auto second_layer = [&](int64_t top) {
      const auto near = middle.around(top);
      for_tiles(width, [&](int p, int count) {
        depthwise(near, kernel2[n], features, p, count, tile.data());
        const int64_t pixel = top * width + p, at = (n * area + pixel) * features;
        const bool in_place = !headed && !short_out;
        float* to = in_place ? elements<float>(out) + at : last.data();
        const int64_t apart = (in_place ? width : kPixels) * features;  // from row to row
        const Multiplier::Row rows[2] = {{tile.data(), to},
                                         {tile.data() + count * features, to + apart}};
        multiply(rows, count, matrix2[n], [&](int i, int first, int some) {
          const auto finish = [&](auto* copy, bool wanted) {
            activate(rows[i].out, noises2[n] + pixel + i * width, biases2[n], count, features,
                     first, some, raw_out, wanted ? copy + at + i * width * features : nullptr);
          };
          short_out ? finish(elements<Half>(out), true) : finish(elements<Brain>(left2), leaves2);
        });
        if (!headed) return;
        const Multiplier::Row pixels[2] = {{rows[0].out, made.data()},
                                           {rows[1].out, made.data() + kPixels * kMade}};
        multiply(pixels, count, to_pixels[n]);
        for (int i = 0; i < 2; ++i) {
          float* upper = elements<float>(out) + (2 * (n * area + (top + i) * width) + p) * kPair;
          put_pixels(pixels[i].out, head_biases[n], count, upper, upper + width * kPair);
        }
      });
    };
    first_layer(task.first - 1);
    for (int64_t row = task.first; row < task.end; row += 2) {
      first_layer(row + 1);
      second_layer(row);
    }
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    forward, Forward,
    bind()
        .Arg<Floats>()    // bias1 (..., F)
        .Arg<Floats>()    // noise1 (..., H, W)
        .Arg<Floats>()    // depthwise2 (..., 3, 3, F)
        .Arg<Floats>()    // pointwise2 (..., F, F)
        .Arg<Floats>()    // bias2 (..., F)
        .Arg<Floats>()    // noise2 (..., H, W)
        .Arg<Floats>()    // head (..., F, 16) or (..., 0, 16)
        .Arg<Floats>()    // head_bias (..., 16)
        .Ret<Features>()  // out (..., H, W, F) or (..., 2 H, 2 W, 3)
        .Ret<Packed>()    // left1 (..., H, W, F) or (..., H, W, 0)
        .Ret<Packed>());  // left2, with a head the same, else (..., H, W, 0)

// --- backward ---------------------------------------------------------------------------------

// The gradient from that of `out`, which without a head tells the last activation's slope.
static ffi::Error Backward(ffi::ThreadPool pool, bool rounded, bool raw_in, bool raw_out,
                           Features x, Floats style, Floats depthwise1, Floats pointwise1,
                           Floats style2, Floats depthwise2, Floats pointwise2, Floats head_style,
                           Floats head, Floats out, Packed left1, Packed left2, Features grad,
                           ffi::Result<Features> grad_x, ffi::Result<Floats> grad_styles,
                           ffi::Result<Floats> grad_noise1, ffi::Result<Floats> grad_noise2) {
  if (!kRounds && (packed(x) || packed(grad))) return other_processor();
  const auto layer = left1.dimensions();
  const Sizes s(layer.first(layer.size() - 1), grad_x->dimensions(), pointwise1, pool);
  const int channels = s.channels, features = s.features, width = s.width;
  const int64_t area = s.height * width;
  const bool headed = head.element_count() > 0;
  const auto x_at = s.offsets(x, 3), grad_at = s.offsets(grad, 3);
  const auto styles = s.examples(style, 1);
  const auto kernel1 = s.examples(depthwise1, 3), kernel2 = s.examples(depthwise2, 3);
  const auto styles2 = s.examples(style2, 1), head_styles = s.examples(head_style, 1);
  const auto outs = s.examples(out, 3);
  const auto lefts1 = s.examples<Brain>(left1, 3), lefts2 = s.examples<Brain>(left2, 3);
  const Matrices matrix1(pool, pointwise1, s, features, channels, true, rounded);
  const Matrices matrix2(pool, pointwise2, s, features, features, true, rounded);
  const Matrices from_pixels(pool, head, s, headed ? kMade : 0, headed ? features : 0, true, false);
  want_huge_pages(grad_x);
  // Each task sums the styles' gradients on its own: the result knows no order of tasks.
  const int sums = 4 * channels + (headed ? 2 : 1) * features;
  std::vector<float> parts(size_t(s.batch * s.tasks) * sums, 0.0f);

  run_tasks(pool, s.batch * s.tasks, [&](int64_t index) {
    const auto task = s.task(index);
    const int64_t n = task.n;
    float* sum = &parts[size_t(index) * sums];
    float *sum2 = sum + 4 * channels, *head_sum = sum2 + features;
    Rows wide2(s, features), wide1(s, channels);
    Array tile(size_t(2) * kPixels * features), made(size_t(2) * kPixels * kMade);
    Array inner(size_t(2) * width * channels);
    Multiplier multiply(features);
    std::fill(made.data(), made.data() + size_t(2) * kPixels * kMade, 0.0f);
    const auto noise_at = [&](ffi::Result<Floats>& noise, int64_t row, int64_t pixel) {
      const bool wanted = noise->element_count() > 0 && task.holds(row);
      return wanted ? noise->typed_data() + n * area + pixel : nullptr;
    };

    const auto second_product = [&](int64_t top) {  // transposed, rows `top` and `top` + 1
      if (!s.has(top)) return;
      for_tiles(width, [&](int p, int count) {
        Multiplier::Row rows[2];
        for (int i = 0; i < 2; ++i) {
          rows[i] = {tile.data() + i * count * features, wide2[top + i] + int64_t(p) * features};
          if (!headed) continue;
          const float* upper =
              elements<float>(grad) + grad_at[n] + (2 * (top + i) * width + p) * kPair;
          take_pixels(upper, upper + width * kPair, count, made.data() + i * kPixels * kMade);
        }
        if (headed)
          multiply({{made.data(), tile.data()},
                    {made.data() + kPixels * kMade, tile.data() + count * features}},
                   count, from_pixels[n]);
        for (int i = 0; i < 2; ++i) {
          const int64_t row = top + i, pixel = row * width + p;
          float* noise = noise_at(grad_noise2, row, pixel);
          float* g = tile.data() + i * count * features;
          const int64_t at = grad_at[n] + pixel * features;
          if (headed) {
            deactivate(g, lefts2[n] + pixel * features, head_styles[n], count, features, g,
                       task.holds(row) ? head_sum : nullptr, noise);
          } else if (!raw_out) {
            deactivate(elements<float>(grad) + at, outs[n] + pixel * features, nullptr, count,
                       features, g, nullptr, noise);
          } else {
            if (packed(grad))
              unpack(elements<Brain>(grad) + at, count * features, g);
            else
              rows[i].x = elements<float>(grad) + at;
            if (noise) sum_features(rows[i].x, count, features, noise);
          }
        }
        multiply(rows, count, matrix2[n]);
      });
    };
    const auto first_product = [&](int64_t top) {
      const auto near = wide2.around(top);
      for_tiles(width, [&](int p, int count) {
        // The transpose of a correlation is one with the kernel turned round.
        depthwise(near, kernel2[n], features, p, count, tile.data());
        Multiplier::Row rows[2] = {};
        for (int i = 0; i < 2; ++i) {
          const int64_t row = top + i, pixel = row * width + p;
          if (!s.has(row)) continue;
          float* g = tile.data() + i * count * features;
          deactivate(g, lefts1[n] + pixel * features, styles2[n], count, features, g,
                     task.holds(row) ? sum2 : nullptr, noise_at(grad_noise1, row, pixel));
          rows[i] = {g, wide1[row] + int64_t(p) * channels};
        }
        multiply(rows, count, matrix1[n]);
      });
    };
    const auto upsampling = [&](int64_t top) {
      depthwise(wide1.around(top), kernel1[n], channels, 0, width, inner.data());
      const int64_t at = x_at[n] + top * width * channels,
                    to = (n * s.height + top) * width * channels;
      const auto make = [&](const auto* bands, auto* grad_bands) {
        analyse(inner.data(), bands + at, raw_in, styles[n], width / 2, channels, grad_bands + to,
                sum);
      };
      packed(x) ? make(elements<Half>(x), elements<Brain>(grad_x))
                : make(elements<float>(x), elements<float>(grad_x));
    };
    second_product(task.first - 2);
    second_product(task.first);
    first_product(task.first - 1);
    for (int64_t row = task.first; row < task.end; row += 2) {
      second_product(row + 2);
      first_product(row + 1);
      upsampling(row);
    }
  });
  for (int64_t n = 0; n < s.batch; ++n)
    for (int i = 0; i < sums; ++i) {
      float sum = 0.0f;
      for (int64_t t = 0; t < s.tasks; ++t) sum += parts[size_t(n * s.tasks + t) * sums + i];
      grad_styles->typed_data()[n * sums + i] = sum;
    }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    backward, Backward,
    bind()
        .Arg<Floats>()    // style2 (..., F)
        .Arg<Floats>()    // depthwise2 (..., 3, 3, F), turned round
        .Arg<Floats>()    // pointwise2 (..., F, F)
        .Arg<Floats>()    // head_style (..., F) or (..., 0)
        .Arg<Floats>()    // head (..., F, 16) or (..., 0, 16)
        .Arg<Floats>()    // out (..., H, W, F) or (..., H, W, 0)
        .Arg<Packed>()    // left1 (..., H, W, F)
        .Arg<Packed>()    // left2 (..., H, W, F) or (..., H, W, 0)
        .Arg<Features>()  // grad, as `out` of the forward pass
        .Ret<Features>()  // grad_x
        .Ret<Floats>()    // of style, style2 and head_style (..., 4 C + F or 4 C + 2 F)
        .Ret<Floats>()    // grad_noise1 (..., H, W), or empty: not wanted
        .Ret<Floats>());  // grad_noise2, the same

extern "C" const bool rounds = kRounds;
