// A block of MobileStyleGAN on CPUs (see mobile.py): modulated Haar up-sampling and two
// depthwise-separable layers, then perhaps the modulated pointwise convolution to the Haar bands
// of the image; and its gradient with respect to the features, the styles and the noise.
//
// Rows are streamed. A task computes a few dozen rows of one image from top to bottom and holds
// the last rows of every intermediate result in buffers that fit a core's second-level
// cache, so that only the block's input and output pass through memory.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

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
constexpr int kAccumulators = 24;  // of 32 registers
#else
constexpr int kAccumulators = 12;  // of 16
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

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

// Zeros that begin where a vector may: one across two cache lines takes twice as long to load.
class Array {
 public:
  explicit Array(size_t size) : lines_((size + kLine - 1) / kLine) {}
  float* data() { return lines_.data()->floats; }
  const float* data() const { return lines_.data()->floats; }

 private:
  static constexpr size_t kLine = 16;
  struct alignas(4 * kLine) Line {
    float floats[kLine] = {};
  };
  std::vector<Line> lines_;
};

constexpr float kSlope = 0.2f;
inline Vector leaky_relu(Vector x) { return x > 0.0f ? x : x * kSlope; }
inline Vector slope_at(Vector out) { return out >= 0.0f ? all(1.0f) : all(kSlope); }

// float32 rounded to bfloat16: the sign is exact, the value within 0.4 %.
inline void pack(uint16_t* p, Vector v) {
  const Bits rounded = (reinterpret_cast<Bits>(v) + 0x8000u) >> 16;
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector(rounded, Halves);
}
inline Vector unpack(const float* p) { return load(p); }
inline Vector unpack(const uint16_t* p) {
  const Bits wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Bits);
  return reinterpret_cast<Vector>(wide << 16);
}

// --- arguments --------------------------------------------------------------------------------

using Floats = ffi::Buffer<ffi::F32>;
using Packed = ffi::Buffer<ffi::U16>;

// An array of examples under leading dimensions that broadcast against those of the batch.
template <typename Buffer>
class Examples {
 public:
  using Element = std::remove_pointer_t<decltype(std::declval<Buffer&>().typed_data())>;

  Examples(Buffer& buffer, size_t rank, ffi::Span<const int64_t> batch, int64_t count)
      : data_(buffer.typed_data()), offsets_(count, 0) {
    const auto dims = buffer.dimensions();
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
  Element* operator[](int64_t n) const { return data_ + offsets_[n]; }

 private:
  Element* data_;
  std::vector<int64_t> offsets_;
};

// The sizes of a block, from what its first layer puts out (..., H, W, F), the dimensions of any
// result with three of its own, and the first layer's pointwise weights (..., C, F).
struct Sizes {
  ffi::Span<const int64_t> leading;
  int64_t batch = 1, height, task_rows, tasks;
  int width, channels, features;

  Sizes(const Packed& left1, ffi::Span<const int64_t> result, const Floats& pointwise,
        const ffi::ThreadPool& pool) {
    // What is the same for a whole batch lacks some of its dimensions; a result has them all.
    leading = result.first(result.size() - 3);
    for (int64_t size : leading) batch *= size;
    const auto image = left1.dimensions(), weights = pointwise.dimensions();
    height = image[image.size() - 3];
    width = int(image[image.size() - 2]);
    channels = int(weights[weights.size() - 2]);
    features = int(weights.back());
    // Short tasks keep every core busy, long ones compute fewer rows twice. An even number.
    const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
    task_rows = std::clamp<int64_t>(height / threads, 16, 128) / 2 * 2;
    tasks = (height + task_rows - 1) / task_rows;
  }
  template <typename Buffer>
  Examples<Buffer> examples(Buffer& buffer, size_t rank) const {
    return {buffer, rank, leading, batch};
  }

  // The rows [first, end) of image n.
  struct Task {
    int64_t n, first, end;
    bool holds(int64_t row) const { return row >= first && row < end; }
  };
  Task task(int64_t index) const {
    const int64_t first = index % tasks * task_rows;
    return {index / tasks, first, std::min(first + task_rows, height)};
  }
};

// --- matrix products --------------------------------------------------------------------------

// A matrix (inner, outer) as panels of up to kPanel vectors of columns, each contiguous.
class Matrix {
 public:
  // From data (inner, outer), or (outer, inner) if it is to be transposed.
  Matrix(const float* data, int inner, int outer, bool transpose)
      : inner(inner), outer(outer), panels_(size_t(inner) * outer) {
    float* to = panels_.data();
    for (int first = 0; first < outer; first += panel_width(first))
      for (int k = 0; k < inner; ++k)
        for (int f = first; f < first + panel_width(first); ++f)
          *to++ = transpose ? data[size_t(f) * inner + k] : data[size_t(k) * outer + f];
  }
  int panel_width(int first) const {
    int vectors = kPanel;
    while (vectors > 1 && first + vectors * kLanes > outer) vectors /= 2;
    return vectors * kLanes;
  }
  const float* panel(int first) const { return panels_.data() + size_t(first) * inner; }

  const int inner, outer;

 private:
  Array panels_;
};

// Each example's matrix; consecutive examples share one where the data is the same.
class Matrices {
 public:
  template <typename Buffer>
  Matrices(Buffer& buffer, const Sizes& sizes, int inner, int outer, bool transpose) {
    const auto examples = sizes.examples(buffer, 2);
    for (int64_t n = 0; n < sizes.batch; ++n) {
      if (n == 0 || examples[n] != examples[n - 1])
        made_.emplace_back(examples[n], inner, outer, transpose);
      which_.push_back(made_.size() - 1);
    }
  }
  const Matrix& operator[](int64_t n) const { return made_[which_[n]]; }

 private:
  std::vector<Matrix> made_;
  std::vector<size_t> which_;
};

// P pixels times a panel of N vectors: P x N accumulators stay in registers.
template <int P, int N>
inline void multiply(const float* x, int inner, const float* panel, float* out, int stride) {
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

// P pixels at a time, then half as many, until none are left.
template <int P, int N>
void multiply_panel(const float* x, int pixels, int inner, const float* panel, float* out,
                    int stride) {
  for (; pixels >= P; pixels -= P, x += P * inner, out += P * stride)
    multiply<P, N>(x, inner, panel, out, stride);
  if constexpr (P > 1) multiply_panel<P / 2, N>(x, pixels, inner, panel, out, stride);
}

// out (pixels, outer) = x (pixels, inner) times the matrix.
void multiply(const float* x, int pixels, const Matrix& matrix, float* out) {
  const int inner = matrix.inner, stride = matrix.outer;
  for (int first = 0; first < stride; first += matrix.panel_width(first)) {
    const float* panel = matrix.panel(first);
    constexpr int many = kAccumulators / 2;
    switch (matrix.panel_width(first) / kLanes) {
      case 4: multiply_panel<many / 2, 4>(x, pixels, inner, panel, out + first, stride); break;
      case 2: multiply_panel<many, 2>(x, pixels, inner, panel, out + first, stride); break;
      default: multiply_panel<many, 1>(x, pixels, inner, panel, out + first, stride);
    }
  }
}

constexpr int kPixels = 48;  // that go through a matrix product at a time

// Calls tile(first pixel, pixels) for one part of a row after the other.
template <typename Tile>
inline void for_tiles(int width, const Tile& tile) {
  for (int p = 0; p < width; p += kPixels) tile(p, std::min(kPixels, width - p));
}

// --- rows -------------------------------------------------------------------------------------

// The last rows of an intermediate result, with a zero pixel at either end.
class Rows {
 public:
  Rows(int64_t count, int64_t height, int width, int channels)
      : count_(count), height_(height), channels_(channels), length_((width + 2) * channels),
        data_(size_t(count + 1) * length_) {}

  float* operator[](int64_t r) { return padded(r) + channels_; }

  // The rows r - 1, r and r + 1, padded; those outside the image are zero.
  struct Three {
    const float* row[3];
  };
  Three around(int64_t r) {
    const float* zero = data_.data() + count_ * length_;
    return {{r > 0 ? padded(r - 1) : zero, padded(r), r + 1 < height_ ? padded(r + 1) : zero}};
  }

 private:
  float* padded(int64_t r) { return data_.data() + r % count_ * length_; }

  int64_t count_, height_;
  int channels_;
  int64_t length_;
  Array data_;
};

// out (count, channels): pixels of a row from `first` on, correlated with weight (3, 3, channels).
void depthwise(const Rows::Three& near, const float* weight, int channels, int first, int count,
               float* out) {
  for (int c = 0; c < channels; c += kLanes) {
    Vector w[9];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) w[t] = load(weight + t * channels + c);
    const float* at[3];
    for (int i = 0; i < 3; ++i) at[i] = near.row[i] + size_t(first) * channels + c;
    int p = 0;
    for (; p + 4 <= count; p += 4) {
      Vector sum[4] = {};
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        Vector x[6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) x[j] = load(at[i] + size_t(p + j) * channels);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q)
#pragma GCC unroll 3
          for (int j = 0; j < 3; ++j) sum[q] += x[q + j] * w[3 * i + j];
      }
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) store(out + size_t(p + q) * channels + c, sum[q]);
    }
    for (; p < count; ++p) {
      Vector sum = {};
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) sum += load(at[i] + size_t(p + j) * channels) * w[3 * i + j];
      store(out + size_t(p) * channels + c, sum);
    }
  }
}

// In place: noise and bias added, leaky ReLU; a packed copy is left where it is asked for.
void activate(float* x, const float* noise, const float* bias, int pixels, int features,
              uint16_t* left) {
  for (int p = 0; p < pixels; ++p) {
    const Vector shift = all(noise[p]);
    for (int f = 0; f < features; f += kLanes) {
      const size_t at = size_t(p) * features + f;
      const Vector v = leaky_relu(load(x + at) + shift + load(bias + f));
      store(x + at, v);
      if (left) pack(left + at, v);
    }
  }
}

// The gradient `grad` of what is made of a layer's output `known`, where it is multiplied by
// `style` or, without one, by 1: `to` becomes that before the layer's activation. The gradients of
// the style and of the noise, the sums over pixels and over features, go where they are asked for.
template <typename Known>
void deactivate(const float* grad, const Known* known, const float* style, int pixels, int features,
                float* to, float* style_sum, float* noise_grad) {
  for (int p = 0; p < pixels; ++p) {
    Vector sum = {};
    for (int f = 0; f < features; f += kLanes) {
      const size_t at = size_t(p) * features + f;
      const Vector out = unpack(known + at);
      Vector g = load(grad + at);
      if (style_sum) add(style_sum + f, out * g);
      if (style) g *= load(style + f);
      g *= slope_at(out);
      store(to + at, g);
      sum += g;
    }
    if (noise_grad) noise_grad[p] = total(sum);
  }
}

// --- Haar wavelets (see separable.py) ---------------------------------------------------------

// Two rows of 2 * width pixels from a row of bands (width, 4, channels) times `style`.
void synthesise(const float* bands, const float* style, int width, int channels, float* upper,
                float* lower) {
  for (int p = 0; p < width; ++p)
    for (int c = 0; c < channels; c += kLanes) {
      Vector band[4];
      for (int b = 0; b < 4; ++b)
        band[b] = load(bands + size_t(4 * p + b) * channels + c) * load(style + b * channels + c) *
                  0.5f;
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
void analyse(const float* grad, const float* bands, const float* style, int width, int channels,
             float* grad_bands, float* sum) {
  for (int c = 0; c < channels; c += kLanes) {
    Vector found[4] = {};
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
        found[b] += band[b] * load(bands + at);
        store(grad_bands + at, band[b] * load(style + b * channels + c) * 0.5f);
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

constexpr int kPaddedBands = 16;  // 12 bands of an RGB image, and zeros to whole vectors

}  // namespace

// --- forward ----------------------------------------------------------------------------------

// `style` is the product of the up-sampling's and the first layer's, `depthwise2` holds the second
// layer's and `head`, which may be empty, the image's. `out` is the block's output or the image's
// bands, `left1` and `left2` what each layer put out.
static ffi::Error Forward(ffi::ThreadPool pool, Floats x, Floats style, Floats depthwise1,
                          Floats pointwise1, Floats bias1, Floats noise1, Floats depthwise2,
                          Floats pointwise2, Floats bias2, Floats noise2, Floats head,
                          ffi::Result<Floats> out, ffi::Result<Packed> left1,
                          ffi::Result<Packed> left2) {
  const Sizes s(*left1, left1->dimensions(), pointwise1, pool);
  const int channels = s.channels, features = s.features, width = s.width;
  const bool headed = head.element_count() > 0;
  const auto bands = s.examples(x, 3), styles = s.examples(style, 1);
  const auto kernel1 = s.examples(depthwise1, 3), kernel2 = s.examples(depthwise2, 3);
  const auto noises1 = s.examples(noise1, 2), noises2 = s.examples(noise2, 2);
  const auto biases1 = s.examples(bias1, 1), biases2 = s.examples(bias2, 1);
  const Matrices matrix1(pointwise1, s, channels, features, false);
  const Matrices matrix2(pointwise2, s, features, features, false);
  const Matrices to_bands(head, s, headed ? features : 0, headed ? kPaddedBands : 0, false);

  run_tasks(pool, s.batch * s.tasks, [&](int64_t index) {
    const auto task = s.task(index);
    const int64_t n = task.n;
    Rows input(4, s.height, width, channels), middle(3, s.height, width, features);
    Array tile(size_t(kPixels) * std::max(channels, features)), last(size_t(kPixels) * features);
    int64_t next_pair = std::max<int64_t>(task.first / 2 - 1, 0);  // of rows of the input

    for (int64_t row = std::max<int64_t>(task.first - 1, 0); row <= task.end; ++row) {
      if (row < s.height) {  // the first layer's row
        for (; next_pair <= std::min(row + 1, s.height - 1) / 2; ++next_pair)
          synthesise(bands[n] + next_pair * 2 * width * channels, styles[n], width / 2, channels,
                     input[2 * next_pair], input[2 * next_pair + 1]);
        const auto near = input.around(row);
        const int64_t pixel = (n * s.height + row) * width;
        for_tiles(width, [&](int p, int count) {
          float* made = middle[row] + size_t(p) * features;
          depthwise(near, kernel1[n], channels, p, count, tile.data());
          multiply(tile.data(), count, matrix1[n], made);
          activate(made, noises1[n] + row * width + p, biases1[n], count, features,
                   task.holds(row) ? left1->typed_data() + (pixel + p) * features : nullptr);
        });
      }
      const int64_t above = row - 1;  // the second layer's row
      if (above < task.first) continue;
      const auto near = middle.around(above);
      const int64_t pixel = (n * s.height + above) * width;
      for_tiles(width, [&](int p, int count) {
        float* made = headed ? last.data() : out->typed_data() + (pixel + p) * features;
        depthwise(near, kernel2[n], features, p, count, tile.data());
        multiply(tile.data(), count, matrix2[n], made);
        activate(made, noises2[n] + above * width + p, biases2[n], count, features,
                 headed ? left2->typed_data() + (pixel + p) * features : nullptr);
        if (headed)
          multiply(made, count, to_bands[n], out->typed_data() + (pixel + p) * kPaddedBands);
      });
    }
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(forward, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()   // x (..., H / 2, W / 2, 4 C)
                                  .Arg<Floats>()   // style (..., 4 C)
                                  .Arg<Floats>()   // depthwise1 (..., 3, 3, C)
                                  .Arg<Floats>()   // pointwise1 (..., C, F)
                                  .Arg<Floats>()   // bias1 (..., F)
                                  .Arg<Floats>()   // noise1 (..., H, W)
                                  .Arg<Floats>()   // depthwise2 (..., 3, 3, F)
                                  .Arg<Floats>()   // pointwise2 (..., F, F)
                                  .Arg<Floats>()   // bias2 (..., F)
                                  .Arg<Floats>()   // noise2 (..., H, W)
                                  .Arg<Floats>()   // head (..., F, 16) or (..., 0, 16)
                                  .Ret<Floats>()   // out (..., H, W, F or 16)
                                  .Ret<Packed>()   // left1 (..., H, W, F)
                                  .Ret<Packed>());  // left2 (..., H, W, F), or 0 without a head

// --- backward ---------------------------------------------------------------------------------

// The gradient from that of `out`. Without a head `out` itself tells the last activation's slope.
static ffi::Error Backward(ffi::ThreadPool pool, Floats x, Floats style, Floats depthwise1,
                           Floats pointwise1, Floats style2, Floats depthwise2, Floats pointwise2,
                           Floats head_style, Floats head, Floats out, Packed left1, Packed left2,
                           Floats grad, ffi::Result<Floats> grad_x,
                           ffi::Result<Floats> grad_styles, ffi::Result<Floats> grad_noise1,
                           ffi::Result<Floats> grad_noise2) {
  const Sizes s(left1, grad_x->dimensions(), pointwise1, pool);
  const int channels = s.channels, features = s.features, width = s.width;
  const int64_t area = s.height * width;
  const bool headed = head.element_count() > 0;
  const auto bands = s.examples(x, 3), styles = s.examples(style, 1);
  const auto kernel1 = s.examples(depthwise1, 3), kernel2 = s.examples(depthwise2, 3);
  const auto styles2 = s.examples(style2, 1), head_styles = s.examples(head_style, 1);
  const auto outs = s.examples(out, 3), grads = s.examples(grad, 3);
  const auto lefts1 = s.examples(left1, 3), lefts2 = s.examples(left2, 3);
  const Matrices matrix1(pointwise1, s, features, channels, true);
  const Matrices matrix2(pointwise2, s, features, features, true);
  const Matrices from_bands(head, s, headed ? kPaddedBands : 0, headed ? features : 0, true);
  // Each task sums the styles' gradients on its own: the result knows no order of tasks.
  const int sums = 4 * channels + (headed ? 2 : 1) * features;
  std::vector<float> parts(size_t(s.batch * s.tasks) * sums, 0.0f);

  run_tasks(pool, s.batch * s.tasks, [&](int64_t index) {
    const auto task = s.task(index);
    const int64_t n = task.n;
    float* sum = &parts[size_t(index) * sums];
    float *sum2 = sum + 4 * channels, *head_sum = sum2 + features;
    Rows wide2(3, s.height, width, features), wide1(3, s.height, width, channels);
    Array tile(size_t(kPixels) * features);
    Array inner(size_t(2) * width * channels);

    for (int64_t row = std::max<int64_t>(task.first - 2, 0); row < task.end + 2; ++row) {
      if (row < s.height) {  // the second layer's product, transposed
        for_tiles(width, [&](int p, int count) {
          const int64_t pixel = row * width + p;
          float* noise = task.holds(row) ? grad_noise2->typed_data() + n * area + pixel : nullptr;
          if (headed) {
            multiply(grads[n] + pixel * kPaddedBands, count, from_bands[n], tile.data());
            deactivate(tile.data(), lefts2[n] + pixel * features, head_styles[n], count, features,
                       tile.data(), task.holds(row) ? head_sum : nullptr, noise);
          } else {
            deactivate(grads[n] + pixel * features, outs[n] + pixel * features, nullptr, count,
                       features, tile.data(), nullptr, noise);
          }
          multiply(tile.data(), count, matrix2[n], wide2[row] + int64_t(p) * features);
        });
      }
      const int64_t above = row - 1;  // the first layer's product, transposed
      if (above >= std::max<int64_t>(task.first - 1, 0) && above < s.height) {
        const auto near = wide2.around(above);
        for_tiles(width, [&](int p, int count) {
          const int64_t pixel = above * width + p;
          // The transpose of a correlation is one with the kernel turned round.
          depthwise(near, kernel2[n], features, p, count, tile.data());
          deactivate(tile.data(), lefts1[n] + pixel * features, styles2[n], count, features,
                     tile.data(), task.holds(above) ? sum2 : nullptr,
                     task.holds(above) ? grad_noise1->typed_data() + n * area + pixel : nullptr);
          multiply(tile.data(), count, matrix1[n], wide1[above] + int64_t(p) * channels);
        });
      }
      const int64_t top = row - 2;  // the up-sampling's transpose, for two rows at a time
      if (!task.holds(top)) continue;
      depthwise(wide1.around(top), kernel1[n], channels, 0, width,
                inner.data() + top % 2 * width * channels);
      if (top % 2 == 0) continue;
      const int64_t at = top / 2 * 2 * width * channels;
      analyse(inner.data(), bands[n] + at, styles[n], width / 2, channels,
              grad_x->typed_data() + n * area * channels + at, sum);
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(backward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()   // x (..., H / 2, W / 2, 4 C)
                                  .Arg<Floats>()   // style (..., 4 C)
                                  .Arg<Floats>()   // depthwise1 (..., 3, 3, C), turned round
                                  .Arg<Floats>()   // pointwise1 (..., C, F)
                                  .Arg<Floats>()   // style2 (..., F)
                                  .Arg<Floats>()   // depthwise2 (..., 3, 3, F), turned round
                                  .Arg<Floats>()   // pointwise2 (..., F, F)
                                  .Arg<Floats>()   // head_style (..., F) or (..., 0)
                                  .Arg<Floats>()   // head (..., F, 16) or (..., 0, 16)
                                  .Arg<Floats>()   // out (..., H, W, F) or (..., H, W, 0)
                                  .Arg<Packed>()   // left1 (..., H, W, F)
                                  .Arg<Packed>()   // left2 (..., H, W, F) or (..., H, W, 0)
                                  .Arg<Floats>()   // grad (..., H, W, F or 16)
                                  .Ret<Floats>()   // grad_x
                                  .Ret<Floats>()   // of style, style2 and head_style (..., 4 C + F or 4 C + 2 F)
                                  .Ret<Floats>()   // grad_noise1 (..., H, W)
                                  .Ret<Floats>());  // grad_noise2 (..., H, W)
