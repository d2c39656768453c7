// Haar wavelets (see haar_synthesis in separable.py): features' up-sampling, and the image.

#pragma once

#include <cstring>

#include "layers.h"
#include "vectors.h"

namespace {

// Two rows of 2 * width pixels from a row of bands (width, 4, channels) times `style`, first
// activated if they come raw.
[[gnu::noinline]] void synthesise(const float* bands, bool raw, const float* style, int width,
                                  int channels, float* upper, float* lower) {
  const Vector slope = all(raw ? kSlope : 1.0f);
  for (int p = 0; p < width; ++p)
    for (int c = 0; c < channels; c += kLanes) {
      Vector band[4];
      for (int b = 0; b < 4; ++b) {
        const Vector x = load(bands + size_t(4 * p + b) * channels + c);
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
// added to `style_sum`.
[[gnu::noinline]] void analyse(const float* grad, const float* bands, bool raw, const float* style,
                               int width, int channels, float* grad_bands, float* style_sum) {
  const Vector slope = all(raw ? kSlope : 1.0f);
  for (int c = 0; c < channels; c += kLanes) {
    Vector product[4] = {}, factor[4];
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
        const Vector x = load(bands + at), g = band[b] * factor[b];
        product[b] += band[b] * (x > 0.0f ? x : x * slope);
        store(grad_bands + at, x >= 0.0f ? g : g * slope);
      }
    }
    for (int b = 0; b < 4; ++b) add(style_sum + b * channels + c, product[b] * 0.5f);
  }
}

// --- images -----------------------------------------------------------------------------------

// The last product gives two rows of two pixels (kMade numbers), each row with two zeros.
constexpr int kMade = 16, kHalf = kMade / 2, kPair = 6;

// Two rows of pairs of pixels (2, 2 * pixels, 3), from made (pixels, kMade) plus bias.
[[gnu::noinline]] void put_pixels(const float* made, const float* bias, int pixels, float* upper,
                                  float* lower) {
  for (int p = 0; p < pixels; ++p, made += kMade, upper += kPair, lower += kPair) {
    float pair[kMade];
    for (int j = 0; j < kMade; j += kLanes) store(pair + j, load(made + j) + load(bias + j));
    std::memcpy(upper, pair, kPair * sizeof(float));
    std::memcpy(lower, pair + kHalf, kPair * sizeof(float));
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
