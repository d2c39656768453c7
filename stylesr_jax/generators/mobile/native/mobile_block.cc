// A block of MobileStyleGAN on CPUs (see mobile.py): modulated Haar up-sampling and two
// depthwise-separable layers, then perhaps the image, by a modulated pointwise convolution and Haar
// synthesis in one product; and its gradient with respect to the features, the styles and the
// noise.
//
// Rows are streamed. A thread computes rows of one image from top to bottom and holds the last rows
// of every intermediate result in buffers that fit a core's second-level cache, so that only the
// block's input and output pass through memory.
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

// Gradient steps may round what goes into a product to integers, of which some processors multiply
// two of 16 bits or four of 8 in the time of a float, and what is kept in memory too.
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
using Features = ffi::AnyBuffer;  // F32, or between two blocks that round U16
using Left = ffi::AnyBuffer;      // U16, or of a block that rounds U8: see Kept

template <typename Element, typename Buffer>
inline Element* elements(Buffer& buffer) {
  return static_cast<Element*>(buffer.untyped_data());
}
template <typename Element, typename Buffer>
inline Element* elements(ffi::Result<Buffer>& result) {
  return static_cast<Element*>(result->untyped_data());
}

inline bool packed(const Features& buffer) { return buffer.element_type() == ffi::U16; }
inline bool bytes(const Left& buffer) { return buffer.element_type() == ffi::U8; }

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
  int64_t batch = 1, height, part_rows, parts;
  int width, channels, features;

  Sizes(ffi::Span<const int64_t> area, ffi::Span<const int64_t> result, const Floats& pointwise) {
    // What is the same for a whole batch lacks some of its dimensions; a result has them all.
    leading = result.first(result.size() - 3);
    for (int64_t size : leading) batch *= size;
    const auto weights = pointwise.dimensions();
    height = area[area.size() - 2];
    width = int(area.back());
    channels = int(weights[weights.size() - 2]);
    features = int(weights.back());
    part_rows = std::clamp<int64_t>(height / 16 * 2, 4, 16);
    parts = (height + part_rows - 1) / part_rows;
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
  struct Part {
    int64_t n, first, end;
  };
  bool has(int64_t row) const { return row >= 0 && row < height; }
  Part part(int64_t index) const {
    const int64_t first = index % parts * part_rows;
    return {index / parts, first, std::min(first + part_rows, height)};
  }
};

// --- matrix products --------------------------------------------------------------------------

// How the numbers of a product are kept: as floats, or rounded to integers in steps of the largest
// magnitude of a column, of a few pixels (shorts) or of one (bytes). Shorts are for outputs: pixels
// have 13 bits and a sign, a column so many that kDepth magnitudes add up to 18 bits, so that the
// sum of kDepth products always fits 32. Bytes are for gradients: both have 7 bits and a sign.
enum class Form { kFloats, kShorts, kBytes };
constexpr int kDepth = 128;
constexpr float kSum = 262144.0f - kDepth / 2;
constexpr int per_lane(Form form) {
  return form == Form::kBytes ? 4 : form == Form::kShorts ? 2 : 1;
}
constexpr float levels(Form form) { return form == Form::kBytes ? 127.0f : 8191.0f; }
constexpr float column_levels(Form form) { return form == Form::kBytes ? 127.0f : 32767.0f; }

// Of so many numbers the first vector is in every lane's lowest part, the second in the next and so
// on, which needs no shuffling.
constexpr int group(Form form) { return per_lane(form) * kLanes; }
constexpr int kGroup = group(Form::kBytes);

typedef int32_t Integers __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

// sum + a * b of every part; where parts are bytes a's have no sign.
template <Form form>
inline Integers multiply_parts(Integers sum, Integers a, Integers b) {
#if defined(__AVX512VNNI__)
  const auto s = reinterpret_cast<__m512i>(sum), x = reinterpret_cast<__m512i>(a),
             y = reinterpret_cast<__m512i>(b);
  return reinterpret_cast<Integers>(form == Form::kShorts ? _mm512_dpwssd_epi32(s, x, y)
                                                          : _mm512_dpbusd_epi32(s, x, y));
#else  // kRounds is false
  constexpr int bits = 32 / per_lane(form);
  for (int shift = 32 - bits; shift >= 0; shift -= bits) {
    const Integers left = a << shift >> (32 - bits);
    sum += (form == Form::kBytes ? left & 0xff : left) * (b << shift >> (32 - bits));
  }
  return sum;
#endif
}

// The integer nearest to each of x, none of them above 2^21, in the lower bits, plus `offset`.
inline Bits nearest(Vector x, float offset = 0.0f) {
  return reinterpret_cast<Bits>(x + (12582912.0f + offset));
}

// The one below x * scale.
inline Bits below(Vector x, Vector scale) {
#if defined(__AVX512F__)
  return reinterpret_cast<Bits>(_mm512_fmadd_round_ps(
      reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(scale), _mm512_set1_ps(12582912.0f),
      _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
#else
  return nearest(x * scale - 0.5f);
#endif
}

// Integers of as many vectors as there are parts, in one.
template <int N>
inline Bits together(const Bits (&x)[N]) {
  constexpr int bits = 32 / N;
  Bits all = x[N - 1] << (32 - bits);
#pragma GCC unroll 4
  for (int i = 0; i < N - 1; ++i) all |= (x[i] & ((1u << bits) - 1)) << (i * bits);
  return all;
}

// The largest magnitude, as bits: those of NaN and infinity are above all others.
inline Bits larger(Bits most, Vector x) {
  const Bits bits = reinterpret_cast<Bits>(x) & 0x7fffffffu;
  return bits > most ? bits : most;
}
inline float largest(Bits most) {
#if defined(__AVX512F__)
  const uint32_t bits = _mm512_reduce_max_epu32(reinterpret_cast<__m512i>(most));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits = std::max(bits, uint32_t(most[i]));
#endif
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// What numbers up to `most` are multiplied by before they are rounded, and what an integer is worth
// then: NaN if any of them is not finite, zero if they are too small to tell.
struct Scale {
  float factor, step;
};
template <Form form>
inline Scale scale_of(Bits most) {
  const float size = largest(most);
  constexpr float smallest = levels(Form::kShorts) * std::numeric_limits<float>::min();
  if (size < smallest) return {0.0f, 0.0f};
  if (!std::isfinite(size)) return {0.0f, std::numeric_limits<float>::quiet_NaN()};
  return {levels(form) / size, size * (1.0f / levels(form))};
}

// A matrix (inner, outer) as panels of up to kPanel vectors of columns, each contiguous. One that
// is rounded has whole groups of rows, and if it is to shorts panels of one size.
class Matrix {
 public:
  Matrix(int inner, int outer, Form form)
      : inner(inner),
        outer(outer),
        form(form),
        panels_(size_t(inner) * outer / per_lane(form)),
        steps_(form == Form::kFloats ? 0 : outer),
        starts_(form == Form::kFloats ? 0 : outer) {
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
      const size_t step = transpose ? kLanes : outer;
      float* to = panels_.data() + size_t(first) * inner / per_lane(form) + f - first;
      if (kRounds && form == Form::kBytes)
        round_columns<Form::kBytes>(columns, step, f, to, width);
      else if (kRounds && form == Form::kShorts)
        round_columns<Form::kShorts>(columns, step, f, to, width);
      else
        for (int k = 0; k < inner; ++k) store(to + size_t(k) * width, load(columns + k * step));
    }
  }
  const float* panel(int first) const {
    return panels_.data() + size_t(first) * inner / per_lane(form);
  }
  const float* steps(int first) const { return steps_.data() + first; }
  // Where sums begin: signed bytes are made unsigned by adding 128, which is taken away here.
  Integers starts(int first) const {
    return *reinterpret_cast<const Integers*>(starts_.data() + first);
  }

  const int inner, outer;
  const Form form;
  std::vector<int> firsts;  // columns of the panels

 private:
  // A vector of columns, from `column` on, whose rows are `step` apart, to rows of parts that are
  // `width` apart.
  template <Form to_form>
  void round_columns(const float* columns, size_t step, int column, float* to, int width) {
    Vector sum = {}, heaviest = all(0x1p-100f), largest = heaviest, check = {};
    for (int k = 0; k < inner; ++k) {
      const Vector v = load(columns + k * step), size = v < 0.0f ? -v : v;
      sum = k % kDepth ? sum + size : size;
      heaviest = sum > heaviest ? sum : heaviest;
      largest = size > largest ? size : largest;
      check += v * 0.0f;  // NaN for ever after one number that is not finite
    }
    const Vector by_sum = kSum / heaviest, by_size = column_levels(to_form) / largest;
    const Vector scale = to_form == Form::kBytes || by_size < by_sum ? by_size : by_sum;
    store(steps_.data() + column, 1.0f / scale + check);
    constexpr int n = per_lane(to_form);
    Integers start = {};
    for (int k = 0; k < inner; k += n, to += width) {
      Bits rounded[n];
      for (int i = 0; i < n; ++i) {
        rounded[i] = nearest(load(columns + (k / group(to_form) * group(to_form) +
                                             k % group(to_form) / n + i * kLanes) *
                                                step) *
                             scale);
        if (to_form == Form::kBytes)
          start -= 128 * (reinterpret_cast<Integers>(rounded[i]) << 24 >> 24);
      }
      *reinterpret_cast<Bits*>(to) = together(rounded);
    }
    *reinterpret_cast<Integers*>(starts_.data() + column) = start;
  }

  Array panels_, steps_, starts_;
};

// P pixels times a panel of N vectors: P x N accumulators stay in registers.
template <int P, int N>
inline void multiply(const float* x, const Matrix& matrix, int first, float* out) {
  const int inner = matrix.inner, stride = matrix.outer;
  const float* panel = matrix.panel(first);
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

// The same of rounded pixels, which are integers times their steps. finish(p, first, result) takes
// what comes out; finish.out (pixels, outer) holds parts of it.
template <Form form, int P, int N, typename Finish>
inline void multiply(const uint8_t* x, const float* steps, const Matrix& matrix, int first,
                     int pixel, const Finish& finish) {
  constexpr int n = per_lane(form);
  const int inner = matrix.inner, stride = matrix.outer;
  const int depth = form == Form::kShorts ? kDepth : inner;
  const float* panel = matrix.panel(first);
  for (int from = 0; from < inner; from += depth) {
    Integers sum[P][N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const Integers start = form == Form::kBytes ? matrix.starts(first + j * kLanes) : Integers{};
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) sum[p][j] = start;
    }
    const int end = std::min(from + depth, inner) / n;
    for (int k = from / n; k < end; ++k) {
      Integers weight[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j)
        weight[j] = *reinterpret_cast<const Integers*>(panel + (k * N + j) * kLanes);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        int32_t some;
        std::memcpy(&some, x + 4 * (p * inner / n + k), sizeof some);
        const Integers value = some - Integers{};
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) sum[p][j] = multiply_parts<form>(sum[p][j], value, weight[j]);
      }
    }
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
      float* to = finish.out + size_t(pixel + p) * stride + first;
      Vector result[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        const Vector unit = load(matrix.steps(first) + j * kLanes);
        // Not the steps' product first: it may be smaller than floats are.
        const Vector part = __builtin_convertvector(sum[p][j], Vector) * unit * steps[p];
        result[j] = from ? load(to + j * kLanes) + part : part;
      }
      if (from + depth < inner)
        for (int j = 0; j < N; ++j) store(to + j * kLanes, result[j]);
      else
        finish(pixel + p, first, result);
    }
  }
}

// P pixels at a time, then fewer, until none of an even number are left.
template <int P, int N>
[[gnu::noinline]] void multiply_panel(const float* x, int pixels, const Matrix& matrix, int first,
                                      float* out) {
  static_assert(P % 2 == 0, "rows have an even number of pixels");
  for (; pixels >= P; pixels -= P, x += P * matrix.inner, out += P * matrix.outer)
    multiply<P, N>(x, matrix, first, out);
  constexpr int fewer = P > 8 ? 8 : P > 4 ? 4 : P > 2 ? 2 : 0;
  if constexpr (fewer > 0) multiply_panel<fewer, N>(x, pixels, matrix, first, out);
}
template <Form form, int P, int N, typename Finish>
[[gnu::noinline]] void multiply_panel(const uint8_t* x, const float* steps, int pixel, int pixels,
                                      const Matrix& matrix, int first, const Finish& finish) {
  for (; pixel + P <= pixels; pixel += P)
    multiply<form, P, N>(x + size_t(pixel) * matrix.inner * 4 / per_lane(form), steps + pixel,
                         matrix, first, pixel, finish);
  constexpr int fewer = P > 2 ? 2 : 0;  // code that finishes results takes long to compile
  if constexpr (fewer > 0)
    multiply_panel<form, fewer, N>(x, steps, pixel, pixels, matrix, first, finish);
}

// How many pixels are multiplied by so many vectors at once.
constexpr int pixels_at_once(int vectors) {
  return vectors == 4 ? kAccumulators / 8 * 2 : kAccumulators / 2;
}

constexpr int kPixels = 64;  // that go through a matrix product at a time, at most
constexpr int kFew = 16;     // that are rounded at a time: the first-level cache holds them

// Calls tile(first pixel, pixels) for one part of a row after the other.
template <int size = kPixels, typename Tile>
inline void for_tiles(int width, const Tile& tile) {
  for (int p = 0; p < width; p += size) tile(p, std::min(size, width - p));
}

// Computes out (pixels, outer) = x (pixels, inner) times a matrix of at most so many rows.
class Multiplier {
 public:
  explicit Multiplier(int inner)
      : row_(size_t(kPixels) * inner * sizeof(uint16_t)), rounded_(2 * row_ / sizeof(float)) {}

  // Where a row's pixels go once they are rounded, and their steps.
  template <Form form>
  uint8_t* pixel(int row, int p, int inner) {
    return reinterpret_cast<uint8_t*>(rounded_.data()) + row * row_ +
           size_t(p) * inner * 4 / per_lane(form);
  }
  float* steps(int row, int p) { return steps_[row] + p; }

  // Rounds pixels of a row, from `first` on, for the next product: shorts in one scale.
  template <Form form, typename Element>
  [[gnu::noinline]] void round(int row, int first, const Element* x, int pixels, int inner) {
    uint8_t* to = pixel<form>(row, first, inner);
    const int alike = form == Form::kBytes ? 1 : pixels, size = alike * inner;  // in one scale
    for (int p = 0; p < pixels; p += alike, x += size) {
      Bits most = {};
      for (int i = 0; i < size; i += kLanes) most = larger(most, unpack(x + i));
      const Scale scale = scale_of<form>(most);
      for (int i = 0; i < alike; ++i) steps_[row][first + p + i] = scale.step;
      for (int i = 0; i < size; i += group(form), to += 4 * kLanes)
        round_group<form>([&](int j) { return unpack(x + i + j * kLanes); }, scale.factor, to);
    }
  }
  // As many of number(0), number(1)... as make a group.
  template <Form form, typename Number>
  static void round_group(const Number& number, float factor, uint8_t* to) {
    Bits integers[per_lane(form)];
    for (int j = 0; j < per_lane(form); ++j)  // bytes without a sign: see Matrix
      integers[j] = nearest(number(j) * factor, form == Form::kBytes ? 128.0f : 0.0f);
    *reinterpret_cast<Bits*>(to) = together(integers);
  }

  struct Row {
    const float* x;
    float* out;  // or null: this row is not wanted
  };
  // Two rows at a time, so that the matrix passes half as often. Calls after(row, first, width)
  // when columns first to first + width - 1 of one are done.
  template <typename After>
  void operator()(const Row (&rows)[2], int pixels, const Matrix& matrix, const After& after) {
    for (int first : matrix.firsts)
      for (int i = 0; i < 2; ++i) {
        if (!rows[i].out) continue;
        float* out = rows[i].out + first;
        const int width = matrix.panel_width(first);
        if (width == 4 * kLanes)
          multiply_panel<pixels_at_once(4), 4>(rows[i].x, pixels, matrix, first, out);
        else if (width == 2 * kLanes)
          multiply_panel<pixels_at_once(2), 2>(rows[i].x, pixels, matrix, first, out);
        else
          multiply_panel<pixels_at_once(1), 1>(rows[i].x, pixels, matrix, first, out);
        after(i, first, width);
      }
  }
  void operator()(const Row (&rows)[2], int pixels, const Matrix& matrix) {
    (*this)(rows, pixels, matrix, [](int, int, int) {});
  }
  // Of pixels that were rounded. Panels have N vectors; the last of bytes may have two.
  template <Form form, int N, typename Finish>
  void run(const Finish (&rows)[2], int pixels, const Matrix& matrix) {
    for (int first : matrix.firsts)
      for (int i = 0; i < 2; ++i) {
        if (!rows[i].out) continue;
        const uint8_t* x = pixel<form>(i, 0, matrix.inner);
        if (matrix.panel_width(first) == N * kLanes)
          multiply_panel<form, pixels_at_once(N), N>(x, steps_[i], 0, pixels, matrix, first,
                                                     rows[i]);
        else if constexpr (form == Form::kBytes)  // the last columns
          multiply_panel<form, pixels_at_once(2), 2>(x, steps_[i], 0, pixels, matrix, first,
                                                     rows[i]);
      }
  }

 private:
  const size_t row_;  // bytes
  Array rounded_;
  float steps_[2][kPixels];
};

// Rounded products that are only stored, at out (pixels, outer).
struct Result {
  float* out;
  int outer;
  template <int N>
  void operator()(int p, int first, const Vector (&result)[N]) const {
    for (int j = 0; j < N; ++j) store(out + size_t(p) * outer + first + j * kLanes, result[j]);
  }
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

// What layers put out, kept for their gradients: the vector j from feature f on of pixel p. In
// bfloat16 or as it is:
template <typename Element>
struct Kept {
  Element* data;
  int features;
  Kept from(int64_t pixel) const { return {data + pixel * features, features}; }
  Vector operator()(int p, int f, int j) const {
    return unpack(data + size_t(p) * features + f + j * kLanes);
  }
};
// In bytes, if it is rounded: the integers below, so that signs stay, in 127ths of a group's
// largest magnitude. After an image's bytes (H, W, F) come its steps (H, W, F / kGroup).
template <>
struct Kept<uint8_t> {
  uint8_t* data;
  float* steps;
  int features;
  Kept(uint8_t* image, int64_t area, int features)
      : Kept(image, reinterpret_cast<float*>(image + area * features), features) {}
  Kept(uint8_t* data, float* steps, int features) : data(data), steps(steps), features(features) {}
  Kept from(int64_t pixel) const {
    return {data + pixel * features, steps + pixel * (features / kGroup), features};
  }
  Vector operator()(int p, int f, int j) const {
    const auto four = *reinterpret_cast<const Integers*>(data + size_t(p) * features + f);
    const Integers one = four << (24 - 8 * j) >> 24;
    const float step = steps[p * (features / kGroup) + f / kGroup];
    return __builtin_convertvector(one, Vector) * step + 0.5f * step;
  }
};

// In place: noise and bias added to `width` of the features from `first` on and, unless the next
// block does it, leaky ReLU; a copy goes where it is asked for.
template <typename Copy>
[[gnu::noinline]] void activate(float* x, const float* noise, const float* bias, int pixels,
                                int features, int first, int width, bool raw, Copy* copy) {
  const Vector slope = all(raw ? 1.0f : kSlope);
  for (int p = 0; p < pixels; ++p)
    for (int f = first; f < first + width; f += kLanes) {
      const size_t at = size_t(p) * features + f;
      const Vector y = load(x + at) + all(noise[p]) + load(bias + f), v = y > 0.0f ? y : y * slope;
      store(x + at, v);
      if (copy) pack(copy + at, v);
    }
}
// The same of a rounded product, while its results are in registers. What is not null is written:
// halves, bytes for the gradient and, only where there are bytes, shorts for the next product.
struct Output {
  float* out;  // never null where the row is wanted: parts of sums go there
  bool keep;   // and the result
  const float *noise, *bias;
  float slope;
  Kept<uint8_t> kept;
  Half* halves = nullptr;
  Multiplier* next = nullptr;  // where a group is all of a pixel
  int row = 0;                 // of the next product

  void operator()(int p, int first, const Vector (&result)[4]) const {
    Vector v[4];
    for (int j = 0; j < 4; ++j) {
      const Vector y = result[j] + all(noise[p]) + load(bias + first + j * kLanes);
      v[j] = y > 0.0f ? y : y * slope;
    }
    const int features = kept.features;
    const size_t at = size_t(p) * features + first;
    if (keep)
      for (int j = 0; j < 4; ++j) store(out + at + j * kLanes, v[j]);
    if (halves)
      for (int j = 0; j < 4; ++j) pack(halves + at + j * kLanes, v[j]);
    if (!kept.data) return;
    Bits most = {}, integers[4];
    for (int j = 0; j < 4; ++j) most = larger(most, v[j]);
    const Scale scale = scale_of<Form::kBytes>(most);
    kept.steps[p * (features / kGroup) + first / kGroup] = scale.step;
    for (int j = 0; j < 4; ++j) integers[j] = below(v[j], all(scale.factor));
    *reinterpret_cast<Bits*>(kept.data + at) = together(integers);
    if (!next) return;
    constexpr float finer = levels(Form::kShorts) / levels(Form::kBytes);
    uint8_t* to = next->pixel<Form::kShorts>(row, p, features) + 2 * first;
    *next->steps(row, p) = scale.step * (1.0f / finer);
    for (int j = 0; j < 4; j += 2, to += 4 * kLanes)
      Multiplier::round_group<Form::kShorts>([&](int i) { return v[j + i]; }, scale.factor * finer,
                                             to);
  }
};

// N vectors of the features of `deactivate`, from f on.
template <int N, typename Known>
inline void deactivate_some(const float* grad, const Known& known, const float* style, int pixels,
                            int f, float* to, float* style_sum, Vector* noise_sum) {
  Vector factor[N], found[N] = {};
  for (int j = 0; j < N; ++j) factor[j] = style ? load(style + f + j * kLanes) : all(1.0f);
  for (int p = 0; p < pixels; ++p) {
    Vector sum = {};
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const size_t at = size_t(p) * known.features + f + j * kLanes;
      const Vector out = known(p, f, j);
      Vector g = load(grad + at);
      found[j] += out * g;
      g *= factor[j];
      g = out >= 0.0f ? g : g * kSlope;
      store(to + at, g);
      sum += g;
    }
    if (noise_sum) noise_sum[p] += sum;
  }
  for (int j = 0; style_sum && j < N; ++j) add(style_sum + f + j * kLanes, found[j]);
}

// The gradient `grad` of what is made of a layer's output `known`, where it is multiplied by
// `style` or, without one, by 1: `to` becomes that before the layer's activation. The gradients of
// the style and of the noise, the sums over pixels and over features, go where they are asked for.
template <typename Known>
[[gnu::noinline]] void deactivate(const float* grad, const Known& known, const float* style,
                                  int pixels, float* to, float* style_sum, float* noise_grad) {
  Vector noise_sum[kPixels];
  if (noise_grad) std::fill(noise_sum, noise_sum + pixels, Vector{});
  const auto some = [&](auto vectors, int f) {
    deactivate_some<vectors>(grad, known, style, pixels, f, to, style_sum,
                             noise_grad ? noise_sum : nullptr);
  };
  int f = 0;
  for (; f + 4 * kLanes <= known.features; f += 4 * kLanes)
    some(std::integral_constant<int, 4>(), f);
  for (; f < known.features; f += kLanes) some(std::integral_constant<int, 1>(), f);
  for (int p = 0; noise_grad && p < pixels; ++p) noise_grad[p] = total(noise_sum[p]);
}

// The same of N vectors, all of a pixel's, which are rounded for a product while in registers.
template <int N>
[[gnu::noinline]] void deactivate_and_round(const float* grad, const Kept<uint8_t>& known,
                                            const float* style, int pixels, uint8_t* to,
                                            float* steps, float* style_sum, float* noise_grad) {
  Vector found[N] = {};
  for (int p = 0; p < pixels; ++p, grad += N * kLanes) {
    Vector g[N], sum = {};
    Bits most = {};
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      const Vector out = known(p, j / 4 * kGroup, j % 4), before = load(grad + j * kLanes);
      found[j] += out * before;
      g[j] = before * load(style + j * kLanes);
      g[j] = out >= 0.0f ? g[j] : g[j] * kSlope;
      sum += g[j];
      most = larger(most, g[j]);
    }
    if (noise_grad) noise_grad[p] = total(sum);
    const Scale scale = scale_of<Form::kBytes>(most);
    steps[p] = scale.step;
#pragma GCC unroll 2
    for (int j = 0; j < N; j += 4, to += kGroup)
      Multiplier::round_group<Form::kBytes>([&](int i) { return g[j + i]; }, scale.factor, to);
  }
  for (int j = 0; style_sum && j < N; ++j) add(style_sum + j * kLanes, found[j]);
}

// The noise's gradient alone, where the activation is the next block's.
template <typename Element>
[[gnu::noinline]] void sum_features(const Element* grad, int pixels, int features,
                                    float* noise_grad) {
  for (int p = 0; p < pixels; ++p, grad += features) {
    Vector sum = {};
    for (int f = 0; f < features; f += kLanes) sum += unpack(grad + f);
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

// --- threads ----------------------------------------------------------------------------------

// Numbers from 0 to count - 1, of which every thread has a range. It takes them in order; once
// there are none left it takes over the later half of the longest range, so that all end together.
class Ranges {
 public:
  Ranges(int64_t count, int64_t threads) : ranges_(threads) {
    for (int64_t t = 0; t < threads; ++t)
      ranges_[t].bounds = bounds_of(count * t / threads, count * (t + 1) / threads);
  }
  // The next number for a thread, or -1.
  int64_t next(int64_t thread) {
    for (;;) {
      auto& own = ranges_[thread].bounds;
      for (uint64_t held = own; first(held) < end(held);)
        if (own.compare_exchange_weak(held, bounds_of(first(held) + 1, end(held))))
          return first(held);
      Range* longest = nullptr;
      uint64_t held = 0;
      for (Range& range : ranges_) {
        const uint64_t bounds = range.bounds;
        if (left(bounds) > left(held)) longest = &range, held = bounds;
      }
      if (!longest) return -1;
      const int64_t middle = end(held) - (left(held) + 1) / 2;
      if (longest->bounds.compare_exchange_strong(held, bounds_of(first(held), middle)))
        own = bounds_of(middle, end(held));
    }
  }

 private:
  struct alignas(64) Range {
    std::atomic<uint64_t> bounds;
  };
  static uint64_t bounds_of(int64_t first, int64_t end) {
    return uint64_t(first) << 32 | uint64_t(end);
  }
  static int64_t first(uint64_t bounds) { return bounds >> 32; }
  static int64_t end(uint64_t bounds) { return bounds & 0xffffffffu; }
  static int64_t left(uint64_t bounds) { return end(bounds) - first(bounds); }

  std::vector<Range> ranges_;
};

// Calls work(first number, next) on the pool and the calling thread, which do what the number says
// until next() is negative. Numbers from 0 to count - 1 come up once each. What the pool starts
// late finds nothing left to do, so that the caller never waits for a thread to come free.
template <typename Work>
void run(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct State {
    const Work& work;
    Ranges ranges;
    std::atomic<int64_t> left;
    std::mutex mutex;
    std::condition_variable ended;

    State(const Work& work, int64_t count, int64_t threads)
        : work(work), ranges(count, threads), left(count) {}

    void start(int64_t thread) {
      const int64_t first = ranges.next(thread);
      if (first < 0) return;  // `work` may be gone
      work(first, [&] {
        const int64_t next = ranges.next(thread);
        if (left.fetch_sub(1) == 1) {
          std::lock_guard<std::mutex> lock(mutex);
          ended.notify_all();
        }
        return next;
      });
    }
  };
  const int64_t threads = std::clamp<int64_t>(count, 1, std::max<int64_t>(pool.num_threads(), 1));
  auto state = std::make_shared<State>(work, count, threads);
  for (int64_t i = 1; i < threads; ++i) pool.Schedule([state, i] { state->start(i); });
  state->start(0);
  std::unique_lock<std::mutex> lock(state->mutex);
  state->ended.wait(lock, [&] { return state->left == 0; });
}

// Each example's matrix; consecutive examples share one where the data is the same.
class Matrices {
 public:
  // Of data (..., inner, outer), or (..., outer, inner) if it is to be transposed.
  template <typename Buffer>
  Matrices(ffi::ThreadPool& pool, Buffer& buffer, const Sizes& sizes, int inner, int outer,
           bool transpose, Form form) {
    const auto examples = sizes.examples(buffer, 2);
    std::vector<const float*> data;
    for (int64_t n = 0; n < sizes.batch; ++n) {
      if (n == 0 || examples[n] != examples[n - 1]) {
        made_.emplace_back(inner, outer, form);
        data.push_back(examples[n]);
      }
      which_.push_back(made_.size() - 1);
    }
    const int64_t panels = made_.empty() ? 0 : made_[0].firsts.size();
    run(pool, made_.size() * panels, [&](int64_t index, const auto& next) {
      for (; index >= 0; index = next()) {
        Matrix& matrix = made_[index / panels];
        matrix.fill(matrix.firsts[index % panels], data[index / panels], transpose);
      }
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

// Two rows of pairs of pixels (2, 2 * pixels, 3), from made (pixels, kMade) plus bias.
struct Pixels {
  float* out;  // made
  float *upper, *lower;
  const float* bias;
  void operator()(int p, int, const Vector (&made)[kMade / kLanes]) const {
    float pair[kMade];
    for (int j = 0; j < kMade / kLanes; ++j)
      store(pair + j * kLanes, made[j] + load(bias + j * kLanes));
    std::memcpy(upper + p * kPair, pair, kPair * sizeof(float));
    std::memcpy(lower + p * kPair, pair + kHalf, kPair * sizeof(float));
  }
};
[[gnu::noinline]] void put_pixels(int pixels, const Pixels& to) {
  for (int p = 0; p < pixels; ++p) {
    Vector pair[kMade / kLanes];
    for (int j = 0; j < kMade / kLanes; ++j) pair[j] = load(to.out + p * kMade + j * kLanes);
    to(p, 0, pair);
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

// Whether what is rounded cannot be computed here.
static bool misfits(const Sizes& s, const Left& left) {
  return bytes(left) && !(kRounds && s.features % kGroup == 0 && s.channels % (2 * kLanes) == 0);
}
static ffi::Error misfit() {
  return ffi::Error::InvalidArgument("this processor, or blocks of this size, cannot be rounded");
}

// What both calls begin with.
static auto bind() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
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
static ffi::Error Forward(ffi::ThreadPool pool, bool raw_in, bool raw_out, Features x, Floats style,
                          Floats depthwise1, Floats pointwise1, Floats bias1, Floats noise1,
                          Floats depthwise2, Floats pointwise2, Floats bias2, Floats noise2,
                          Floats head, Floats head_bias, ffi::Result<Features> out,
                          ffi::Result<Left> left1, ffi::Result<Left> left2) {
  const bool rounded = kRounds && bytes(*left1);
  const Sizes s(noise1.dimensions(), out->dimensions(), pointwise1);
  if (misfits(s, *left1)) return misfit();
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
  const Form form = rounded ? Form::kShorts : Form::kFloats;
  const Matrices matrix1(pool, pointwise1, s, channels, features, false, form);
  const Matrices matrix2(pool, pointwise2, s, features, features, false, form);
  const Matrices to_pixels(pool, head, s, headed ? features : 0, headed ? kMade : 0, false, form);
  want_huge_pages(out), want_huge_pages(left1), want_huge_pages(left2);

  run(pool, s.batch * s.parts, [&](int64_t index, const auto& next_index) {
    int64_t n = 0;  // the image
    bool first_time =
        false;  // that rows are computed: another part computes those around its own again
    const int most = std::max(channels, features);
    Rows input(s, channels), middle(s, features);
    Array tile(size_t(2) * kPixels * most), last(size_t(2) * kPixels * features);
    Array made(size_t(2) * kPixels * kMade);
    Multiplier multiply(most), multiply_head(headed ? features : 0);
    int64_t next = 0;  // row of the input

    const auto kept_brains = [&](ffi::Result<Left>& left, int64_t pixel) {
      return elements<Brain>(left) + (n * area + pixel) * features;
    };
    const auto kept_bytes = [&](ffi::Result<Left>& left, int64_t pixel) {
      uint8_t* image = elements<uint8_t>(left) + n * (left->size_bytes() / s.batch);
      return Kept<uint8_t>(image, area, features).from(pixel);
    };
    const Kept<uint8_t> no_bytes(nullptr, nullptr, features);
    const auto from_bands = [&](int64_t row) {
      const int64_t at = features_at[n] + row * width * channels;
      const auto make = [&](const auto* bands) {
        synthesise(bands + at, raw_in, styles[n], width / 2, channels, input[row], input[row + 1]);
      };
      packed(x) ? make(elements<Half>(x)) : make(elements<float>(x));
    };
    // Pixels of two rows for a product, at `tile` unless they are rounded.
    const auto convolve = [&](const Rows::Four& near, const float* weight, int inner, int p,
                              int count) {
      if (!rounded) return depthwise(near, weight, inner, p, count, tile.data());
      for_tiles<kFew>(count, [&](int q, int few) {
        depthwise(near, weight, inner, p + q, few, tile.data());
        for (int i = 0; i < 2; ++i)
          multiply.round<Form::kShorts>(i, q, tile.data() + i * few * inner, few, inner);
      });
    };
    const auto first_layer = [&](int64_t top) {  // its rows `top` and `top` + 1
      for (; next <= std::min(top + 2, s.height - 1); next += 2) from_bands(next);
      const auto near = input.around(top);
      for_tiles(width, [&](int p, int count) {
        convolve(near, kernel1[n], channels, p, count);
        const auto to = [&](int64_t row) {
          return s.has(row) ? middle[row] + size_t(p) * features : nullptr;
        };
        if (rounded) {
          const auto row = [&](int i) {
            const int64_t pixel = (top + i) * width + p;
            return Output{to(top + i), true,   noises1[n] + pixel,
                          biases1[n],  kSlope, first_time ? kept_bytes(left1, pixel) : no_bytes};
          };
          return multiply.run<Form::kShorts, 4>({row(0), row(1)}, count, matrix1[n]);
        }
        const Multiplier::Row rows[2] = {{tile.data(), to(top)},
                                         {tile.data() + count * channels, to(top + 1)}};
        multiply(rows, count, matrix1[n], [&](int i, int first, int some) {
          const int64_t pixel = (top + i) * width + p;
          activate(rows[i].out, noises1[n] + pixel, biases1[n], count, features, first, some, false,
                   leaves1 && first_time ? kept_brains(left1, pixel) : nullptr);
        });
      });
    };
    const auto second_layer = [&](int64_t top) {
      const auto near = middle.around(top);
      for_tiles(width, [&](int p, int count) {
        convolve(near, kernel2[n], features, p, count);
        const int64_t pixel = top * width + p, at = (n * area + pixel) * features;
        const bool in_place = !headed && !short_out;
        float* to = in_place ? elements<float>(out) + at : last.data();
        const int64_t apart = (in_place ? width : kPixels) * features;  // from row to row
        const auto pixels = [&](int i) {
          float* upper = elements<float>(out) + (2 * (n * area + (top + i) * width) + p) * kPair;
          float* here = made.data() + i * kPixels * kMade;
          return Pixels{here, upper, upper + width * kPair, head_biases[n]};
        };
        if (rounded) {
          const bool whole = features == kGroup;  // a pixel is rounded as soon as it is there
          const auto row = [&](int i) {
            const int64_t here = pixel + i * width;
            Output result{to + i * apart,          in_place || (headed && !whole),
                          noises2[n] + here,       biases2[n],
                          raw_out ? 1.0f : kSlope, headed ? kept_bytes(left2, here) : no_bytes};
            if (short_out) result.halves = elements<Half>(out) + at + i * width * features;
            if (headed && whole) result.next = &multiply_head, result.row = i;
            return result;
          };
          multiply.run<Form::kShorts, 4>({row(0), row(1)}, count, matrix2[n]);
          if (!headed) return;
          for (int i = 0; i < 2 && !whole; ++i)
            multiply_head.round<Form::kShorts>(i, 0, to + i * apart, count, features);
          return multiply_head.run<Form::kShorts, kMade / kLanes>({pixels(0), pixels(1)}, count,
                                                                  to_pixels[n]);
        }
        const Multiplier::Row rows[2] = {{tile.data(), to},
                                         {tile.data() + count * features, to + apart}};
        multiply(rows, count, matrix2[n], [&](int i, int first, int some) {
          const int64_t here = pixel + i * width;
          activate(rows[i].out, noises2[n] + here, biases2[n], count, features, first, some,
                   raw_out, leaves2 ? kept_brains(left2, here) : nullptr);
        });
        if (!headed) return;
        multiply({{rows[0].out, made.data()}, {rows[1].out, made.data() + kPixels * kMade}}, count,
                 to_pixels[n]);
        for (int i = 0; i < 2; ++i) put_pixels(count, pixels(i));
      });
    };
    for (int64_t before = -1; index >= 0; before = index, index = next_index()) {
      const auto part = s.part(index);
      n = part.n;
      if (index != before + 1 || part.first == 0) {
        first_time = part.first == 0;
        next = std::max<int64_t>(part.first - 2, 0);
        first_layer(part.first - 1);
      }
      first_time = true;
      for (int64_t row = part.first; row < part.end; row += 2) {
        first_layer(row + 1);
        second_layer(row);
      }
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
        .Ret<Left>()      // left1 (..., H, W, F) or (..., H, W, 0), bytes (..., H, W, F + F / 16)
        .Ret<Left>());    // left2, with a head the same, else (..., H, W, 0)

// --- backward ---------------------------------------------------------------------------------

// The gradient from that of `out`, which without a head tells the last activation's slope.
static ffi::Error Backward(ffi::ThreadPool pool, bool raw_in, bool raw_out, Features x,
                           Floats style, Floats depthwise1, Floats pointwise1, Floats style2,
                           Floats depthwise2, Floats pointwise2, Floats head_style, Floats head,
                           Floats out, Left left1, Left left2, Features grad,
                           ffi::Result<Features> grad_x, ffi::Result<Floats> grad_styles,
                           ffi::Result<Floats> grad_noise1, ffi::Result<Floats> grad_noise2) {
  const bool rounded = kRounds && bytes(left1);
  const auto layer = left1.dimensions();
  const Sizes s(layer.first(layer.size() - 1), grad_x->dimensions(), pointwise1);
  if (misfits(s, left1)) return misfit();
  const int channels = s.channels, features = s.features, width = s.width;
  const int64_t area = s.height * width;
  const bool headed = head.element_count() > 0;
  const auto x_at = s.offsets(x, 3), grad_at = s.offsets(grad, 3);
  const auto styles = s.examples(style, 1);
  const auto kernel1 = s.examples(depthwise1, 3), kernel2 = s.examples(depthwise2, 3);
  const auto styles2 = s.examples(style2, 1), head_styles = s.examples(head_style, 1);
  const auto outs = s.examples(out, 3);
  const auto left1_at = s.offsets(left1, 3), left2_at = s.offsets(left2, 3);
  const Form form = rounded ? Form::kBytes : Form::kFloats;
  const Matrices matrix1(pool, pointwise1, s, features, channels, true, form);
  const Matrices matrix2(pool, pointwise2, s, features, features, true, form);
  const Matrices from_pixels(pool, head, s, headed ? kMade : 0, headed ? features : 0, true,
                             Form::kFloats);
  want_huge_pages(grad_x);
  // Each part sums the styles' gradients on its own: the result knows no order of parts.
  const int sums = 4 * channels + (headed ? 2 : 1) * features;
  std::vector<float> part_sums(size_t(s.batch * s.parts) * sums, 0.0f);

  run(pool, s.batch * s.parts, [&](int64_t index, const auto& next_index) {
    int64_t n = 0;  // the image
    bool first_time =
        false;  // that rows are computed: another part computes those around its own again
    float *sum, *sum2, *head_sum;
    const int most = std::max(channels, features);
    Rows wide2(s, features), wide1(s, channels);
    Array tile(size_t(2) * kPixels * most), made(size_t(2) * kPixels * kMade);
    Multiplier multiply(features);
    std::fill(made.data(), made.data() + size_t(2) * kPixels * kMade, 0.0f);
    const auto noise_at = [&](ffi::Result<Floats>& noise, int64_t pixel) {
      const bool wanted = noise->element_count() > 0 && first_time;
      return wanted ? noise->typed_data() + n * area + pixel : nullptr;
    };

    const auto product = [&](const Multiplier::Row(&rows)[2], int count, const Matrix& matrix) {
      if (!rounded) return multiply(rows, count, matrix);
      const Result results[2] = {{rows[0].out, matrix.outer}, {rows[1].out, matrix.outer}};
      multiply.run<Form::kBytes, 4>(results, count, matrix);
    };
    // Deactivates pixels from the layer's output, which is in `left` from `pixel` on: in place or,
    // if rounded, as those of a product's row from `first` on.
    const auto deactivate_left = [&](float* g, Left& left, int64_t at, int64_t pixel,
                                     const float* style, int row, int first, int count,
                                     float* style_sum, float* noise) {
      if (!rounded) {
        const Kept<Brain> known{elements<Brain>(left) + at, features};
        return deactivate(g, known.from(pixel), style, count, g, style_sum, noise);
      }
      const auto known = Kept<uint8_t>(elements<uint8_t>(left) + at, area, features).from(pixel);
      uint8_t* to = multiply.pixel<Form::kBytes>(row, first, features);
      float* steps = multiply.steps(row, first);
      if (features == kGroup)
        return deactivate_and_round<4>(g, known, style, count, to, steps, style_sum, noise);
      if (features == 2 * kGroup)
        return deactivate_and_round<8>(g, known, style, count, to, steps, style_sum, noise);
      deactivate(g, known, style, count, g, style_sum, noise);
      multiply.round<Form::kBytes>(row, first, g, count, features);
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
          const int64_t pixel = (top + i) * width + p;
          float* noise = noise_at(grad_noise2, pixel);
          float* g = tile.data() + i * count * features;
          const int64_t at = grad_at[n] + pixel * features;
          if (headed) {
            deactivate_left(g, left2, left2_at[n], pixel, head_styles[n], i, 0, count,
                            first_time ? head_sum : nullptr, noise);
          } else if (!raw_out) {
            const Kept<const float> known{outs[n], features};
            deactivate(elements<float>(grad) + at, known.from(pixel), nullptr, count, g, nullptr,
                       noise);
            if (rounded) multiply.round<Form::kBytes>(i, 0, g, count, features);
          } else {
            const auto take = [&](const auto* raw) {
              if (noise) sum_features(raw, count, features, noise);
              if (rounded) multiply.round<Form::kBytes>(i, 0, raw, count, features);
            };
            packed(grad) ? take(elements<Brain>(grad) + at) : take(elements<float>(grad) + at);
            if (!packed(grad)) rows[i].x = elements<float>(grad) + at;
          }
        }
        product(rows, count, matrix2[n]);
      });
    };
    const auto first_product = [&](int64_t top) {
      const auto near = wide2.around(top);
      for_tiles(width, [&](int p, int count) {
        Multiplier::Row rows[2] = {};
        const auto some = [&](int q, int few) {
          // The transpose of a correlation is one with the kernel turned round.
          depthwise(near, kernel2[n], features, p + q, few, tile.data());
          for (int i = 0; i < 2; ++i) {
            const int64_t row = top + i, pixel = row * width + p + q;
            if (!s.has(row)) continue;
            float* g = tile.data() + i * few * features;
            deactivate_left(g, left1, left1_at[n], pixel, styles2[n], i, q, few,
                            first_time ? sum2 : nullptr, noise_at(grad_noise1, pixel));
            rows[i] = {g, wide1[row] + int64_t(p) * channels};
          }
        };
        rounded ? for_tiles<kFew>(count, some) : some(0, count);
        product(rows, count, matrix1[n]);
      });
    };
    const auto upsampling = [&](int64_t top) {
      const auto near = wide1.around(top);
      for_tiles<kFew>(width, [&](int p, int count) {
        depthwise(near, kernel1[n], channels, p, count, tile.data());
        const int64_t at = (top * width + 2 * p) * channels;
        const auto make = [&](const auto* bands, auto* grad_bands) {
          analyse(tile.data(), bands + x_at[n] + at, raw_in, styles[n], count / 2, channels,
                  grad_bands + n * area * channels + at, sum);
        };
        packed(x) ? make(elements<Half>(x), elements<Brain>(grad_x))
                  : make(elements<float>(x), elements<float>(grad_x));
      });
    };
    for (int64_t before = -1; index >= 0; before = index, index = next_index()) {
      const auto part = s.part(index);
      n = part.n;
      sum = &part_sums[size_t(index) * sums], sum2 = sum + 4 * channels, head_sum = sum2 + features;
      if (index != before + 1 || part.first == 0) {
        first_time = part.first == 0;
        second_product(part.first - 2);
        second_product(part.first);
        first_product(part.first - 1);
      }
      first_time = true;
      for (int64_t row = part.first; row < part.end; row += 2) {
        second_product(row + 2);
        first_product(row + 1);
        upsampling(row);
      }
    }
  });
  for (int64_t n = 0; n < s.batch; ++n)
    for (int i = 0; i < sums; ++i) {
      float sum = 0.0f;
      for (int64_t t = 0; t < s.parts; ++t) sum += part_sums[size_t(n * s.parts + t) * sums + i];
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
        .Arg<Left>()      // left1 (..., H, W, F), bytes (..., H, W, F + F / 16)
        .Arg<Left>()      // left2, the same or (..., H, W, 0)
        .Arg<Features>()  // grad, as `out` of the forward pass
        .Ret<Features>()  // grad_x
        .Ret<Floats>()    // of style, style2 and head_style (..., 4 C + F or 4 C + 2 F)
        .Ret<Floats>()    // grad_noise1 (..., H, W), or empty: not wanted
        .Ret<Floats>());  // grad_noise2, the same

extern "C" const bool rounds = kRounds;
