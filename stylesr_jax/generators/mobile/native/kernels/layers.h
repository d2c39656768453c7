// The parts of a separable layer beside its matrix product, on tiles of two rows' pixels.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "arguments.h"
#include "matrix.h"
#include "vectors.h"

namespace {

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

// --- depthwise convolution --------------------------------------------------------------------

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
  const auto columns = [&](auto pixels, int p) {
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
  for (; p + kColumns <= count; p += kColumns) columns(std::integral_constant<int, kColumns>(), p);
  for (; p < count; ++p) columns(std::integral_constant<int, 1>(), p);
}

// --- activation -------------------------------------------------------------------------------

constexpr float kSlope = 0.2f;  // leaky ReLU's

// In place: noise and bias added to `width` of the features from `first` on and, unless the next
// block does it, leaky ReLU; a copy goes to `residual` unless that is null.
[[gnu::noinline]] void activate(float* x, const float* noise, const float* bias, int pixels,
                                int features, int first, int width, bool raw, BFloat16* residual) {
  const Vector slope = all(raw ? 1.0f : kSlope);
  for (int p = 0; p < pixels; ++p)
    for (int f = first; f < first + width; f += kLanes) {
      const size_t at = size_t(p) * features + f;
      const Vector y = load(x + at) + all(noise[p]) + load(bias + f), v = y > 0.0f ? y : y * slope;
      store(x + at, v);
      if (residual) store(residual + at, v);
    }
}

// N vectors of the features of `deactivate`, from f on.
template <int N, typename Element>
inline void deactivate_vectors(const float* grad, const Element* out, const float* style,
                               int pixels, int features, int f, float* to, float* style_sum,
                               Vector* noise_sum) {
  Vector factor[N], product[N] = {};
  for (int j = 0; j < N; ++j) factor[j] = style ? load(style + f + j * kLanes) : all(1.0f);
  for (int p = 0; p < pixels; ++p) {
    Vector sum = {};
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const size_t at = size_t(p) * features + f + j * kLanes;
      const Vector value = load(out + at);
      Vector g = load(grad + at);
      product[j] += value * g;
      g *= factor[j];
      g = value >= 0.0f ? g : g * kSlope;
      store(to + at, g);
      sum += g;
    }
    if (noise_sum) noise_sum[p] += sum;
  }
  for (int j = 0; style_sum && j < N; ++j) add(style_sum + f + j * kLanes, product[j]);
}

// The gradient `grad` of what is made of a layer's output `out`, where it is multiplied by
// `style` or, without one, by 1: `to` becomes that before the layer's activation. The gradients of
// the style and of the noise, the sums over pixels and over features, go where they are asked for.
template <typename Element>
[[gnu::noinline]] void deactivate(const float* grad, const Element* out, const float* style,
                                  int pixels, int features, float* to, float* style_sum,
                                  float* noise_grad) {
  Vector noise_sum[kPixels];
  if (noise_grad) std::fill(noise_sum, noise_sum + pixels, Vector{});
  const auto vectors_from = [&](auto vectors, int f) {
    deactivate_vectors<vectors>(grad, out, style, pixels, features, f, to, style_sum,
                                noise_grad ? noise_sum : nullptr);
  };
  int f = 0;
  for (; f + 4 * kLanes <= features; f += 4 * kLanes)
    vectors_from(std::integral_constant<int, 4>(), f);
  for (; f < features; f += kLanes) vectors_from(std::integral_constant<int, 1>(), f);
  for (int p = 0; noise_grad && p < pixels; ++p) noise_grad[p] = total(noise_sum[p]);
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

}  // namespace
