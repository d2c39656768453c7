// A block of MobileStyleGAN on CPUs (see network.py): modulated Haar up-sampling and two
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
#include <cstdint>
#include <vector>

#include "arguments.h"
#include "haar.h"
#include "layers.h"
#include "matrix.h"
#include "threads.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

// What both calls begin with.
static auto bind() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<bool>("raw_in")
      .Attr<bool>("raw_out")
      .Arg<Floats>()   // x (..., H / 2, W / 2, 4 C)
      .Arg<Floats>()   // style (..., 4 C)
      .Arg<Floats>()   // depthwise1 (..., 3, 3, C), for the gradient turned round
      .Arg<Floats>();  // pointwise1 (..., C, F)
}

// --- forward ----------------------------------------------------------------------------------

// `style` is the product of the up-sampling's and the first layer's, `depthwise2` holds the second
// layer's and `head`, which may be empty, the image's. `out` is the block's output or the image,
// `residual1` and `residual2` what each layer put out, where these are asked for. Raw features
// still lack their activation, which the next block makes up for.
static ffi::Error Forward(ffi::ThreadPool pool, bool raw_in, bool raw_out, Floats x, Floats style,
                          Floats depthwise1, Floats pointwise1, Floats bias1, Floats noise1,
                          Floats depthwise2, Floats pointwise2, Floats bias2, Floats noise2,
                          Floats head, Floats head_bias, ffi::Result<Floats> out,
                          ffi::Result<Residuals> residual1, ffi::Result<Residuals> residual2) {
  const Sizes s(noise1.dimensions(), out->dimensions(), pointwise1);
  const int channels = s.channels, features = s.features, width = s.width;
  const int64_t area = s.height * width;
  const bool headed = head.element_count() > 0;
  const auto xs = s.examples(x, 3);
  const auto styles = s.examples(style, 1);
  const auto kernel1 = s.examples(depthwise1, 3), kernel2 = s.examples(depthwise2, 3);
  const auto noises1 = s.examples(noise1, 2), noises2 = s.examples(noise2, 2);
  const auto biases1 = s.examples(bias1, 1), biases2 = s.examples(bias2, 1);
  const auto head_biases = s.examples(head_bias, 1);
  const Matrices matrix1(pool, pointwise1, s, channels, features, false);
  const Matrices matrix2(pool, pointwise2, s, features, features, false);
  const Matrices to_pixels(pool, head, s, headed ? features : 0, headed ? kMade : 0, false);
  want_huge_pages(out), want_huge_pages(residual1), want_huge_pages(residual2);

  run(pool, s.batch * s.parts, [&](int64_t index, const auto& next_index) {
    int64_t n = 0;            // the image
    bool first_time = false;  // that rows are computed: neighbouring parts share some
    Rows input(s, channels), middle(s, features);
    Array tile(size_t(2) * kPixels * std::max(channels, features));
    Array last(size_t(2) * kPixels * features), made(size_t(2) * kPixels * kMade);
    int64_t next = 0;  // row of the input

    // Where the features of a pixel are kept for the gradient, if they are asked for.
    const auto kept = [&](ffi::Result<Residuals>& residual, int64_t pixel) {
      auto* data = reinterpret_cast<BFloat16*>(residual->typed_data());
      const bool wanted = residual->element_count() > 0 && first_time;
      return wanted ? data + (n * area + pixel) * features : nullptr;
    };
    const auto first_layer = [&](int64_t top) {  // its rows `top` and `top` + 1
      for (; next <= std::min(top + 2, s.height - 1); next += 2)
        synthesise(xs[n] + next * width * channels, raw_in, styles[n], width / 2, channels,
                   input[next], input[next + 1]);
      const auto near = input.around(top);
      for_tiles(width, [&](int p, int count) {
        depthwise(near, kernel1[n], channels, p, count, tile.data());
        const auto to = [&](int64_t row) {
          return s.has(row) ? middle[row] + size_t(p) * features : nullptr;
        };
        const Row rows[2] = {{tile.data(), to(top)}, {tile.data() + count * channels, to(top + 1)}};
        multiply(rows, count, matrix1[n], [&](int i, int first, int columns) {
          const int64_t pixel = (top + i) * width + p;
          activate(rows[i].out, noises1[n] + pixel, biases1[n], count, features, first, columns,
                   false, kept(residual1, pixel));
        });
      });
    };
    const auto second_layer = [&](int64_t top) {
      const auto near = middle.around(top);
      for_tiles(width, [&](int p, int count) {
        depthwise(near, kernel2[n], features, p, count, tile.data());
        const int64_t pixel = top * width + p;
        float* to = headed ? last.data() : out->typed_data() + (n * area + pixel) * features;
        const int64_t apart = (headed ? kPixels : width) * features;  // from row to row
        const Row rows[2] = {{tile.data(), to}, {tile.data() + count * features, to + apart}};
        multiply(rows, count, matrix2[n], [&](int i, int first, int columns) {
          const int64_t here = pixel + i * width;
          activate(rows[i].out, noises2[n] + here, biases2[n], count, features, first, columns,
                   raw_out, kept(residual2, here));
        });
        if (!headed) return;
        const Row image[2] = {{rows[0].out, made.data()},
                              {rows[1].out, made.data() + kPixels * kMade}};
        multiply(image, count, to_pixels[n]);
        for (int i = 0; i < 2; ++i) {
          float* upper = out->typed_data() + (2 * (n * area + (top + i) * width) + p) * kPair;
          put_pixels(image[i].out, head_biases[n], count, upper, upper + width * kPair);
        }
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(forward, Forward,
                              bind()
                                  .Arg<Floats>()       // bias1 (..., F)
                                  .Arg<Floats>()       // noise1 (..., H, W)
                                  .Arg<Floats>()       // depthwise2 (..., 3, 3, F)
                                  .Arg<Floats>()       // pointwise2 (..., F, F)
                                  .Arg<Floats>()       // bias2 (..., F)
                                  .Arg<Floats>()       // noise2 (..., H, W)
                                  .Arg<Floats>()       // head (..., F, 16) or (..., 0, 16)
                                  .Arg<Floats>()       // head_bias (..., 16)
                                  .Ret<Floats>()       // out (..., H, W, F) or (..., 2 H, 2 W, 3)
                                  .Ret<Residuals>()    // residual1 (..., H, W, F) or (..., H, W, 0)
                                  .Ret<Residuals>());  // residual2, without a head (..., H, W, 0)

// --- backward ---------------------------------------------------------------------------------

constexpr int kFew = 16;  // pixels whose up-sampling's gradients the first-level cache holds

// The gradient from that of `out`, which without a head tells the last activation's slope.
static ffi::Error Backward(ffi::ThreadPool pool, bool raw_in, bool raw_out, Floats x, Floats style,
                           Floats depthwise1, Floats pointwise1, Floats style2, Floats depthwise2,
                           Floats pointwise2, Floats head_style, Floats head, Floats out,
                           Residuals residual1, Residuals residual2, Floats grad,
                           ffi::Result<Floats> grad_x, ffi::Result<Floats> grad_styles,
                           ffi::Result<Floats> grad_noise1, ffi::Result<Floats> grad_noise2) {
  const auto layer = residual1.dimensions();
  const Sizes s(layer.first(layer.size() - 1), grad_x->dimensions(), pointwise1);
  const int channels = s.channels, features = s.features, width = s.width;
  const int64_t area = s.height * width;
  const bool headed = head.element_count() > 0;
  const auto xs = s.examples(x, 3), grads = s.examples(grad, 3), outs = s.examples(out, 3);
  const auto styles = s.examples(style, 1);
  const auto kernel1 = s.examples(depthwise1, 3), kernel2 = s.examples(depthwise2, 3);
  const auto styles2 = s.examples(style2, 1), head_styles = s.examples(head_style, 1);
  const auto residuals1 = s.examples(residual1, 3), residuals2 = s.examples(residual2, 3);
  const Matrices matrix1(pool, pointwise1, s, features, channels, true);
  const Matrices matrix2(pool, pointwise2, s, features, features, true);
  const Matrices from_pixels(pool, head, s, headed ? kMade : 0, headed ? features : 0, true);
  want_huge_pages(grad_x);
  // Each part sums the styles' gradients on its own: the result knows no order of parts.
  const int sums = 4 * channels + (headed ? 2 : 1) * features;
  std::vector<float> part_sums(size_t(s.batch * s.parts) * sums, 0.0f);

  run(pool, s.batch * s.parts, [&](int64_t index, const auto& next_index) {
    int64_t n = 0;            // the image
    bool first_time = false;  // that rows are computed: neighbouring parts share some
    float *sum, *sum2, *head_sum;
    Rows wide2(s, features), wide1(s, channels);
    Array tile(size_t(2) * kPixels * std::max(channels, features));
    Array made(size_t(2) * kPixels * kMade);
    std::fill(made.data(), made.data() + size_t(2) * kPixels * kMade, 0.0f);
    const auto noise_at = [&](ffi::Result<Floats>& noise, int64_t pixel) {
      const bool wanted = noise->element_count() > 0 && first_time;
      return wanted ? noise->typed_data() + n * area + pixel : nullptr;
    };
    const auto second_product = [&](int64_t top) {  // transposed, rows `top` and `top` + 1
      if (!s.has(top)) return;
      for_tiles(width, [&](int p, int count) {
        Row rows[2], image[2];
        for (int i = 0; i < 2; ++i) {
          rows[i] = {tile.data() + i * count * features, wide2[top + i] + int64_t(p) * features};
          if (!headed) continue;
          image[i] = {made.data() + i * kPixels * kMade, tile.data() + i * count * features};
          const float* upper = grads[n] + (2 * (top + i) * width + p) * kPair;
          take_pixels(upper, upper + width * kPair, count, made.data() + i * kPixels * kMade);
        }
        if (headed) multiply(image, count, from_pixels[n]);
        for (int i = 0; i < 2; ++i) {
          const int64_t pixel = (top + i) * width + p, at = pixel * features;
          float* noise = noise_at(grad_noise2, pixel);
          float* g = tile.data() + i * count * features;
          if (headed) {
            deactivate(g, residuals2[n] + at, head_styles[n], count, features, g,
                       first_time ? head_sum : nullptr, noise);
          } else if (!raw_out) {
            deactivate(grads[n] + at, outs[n] + at, nullptr, count, features, g, nullptr, noise);
          } else {
            rows[i].x = grads[n] + at;
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
        Row rows[2] = {};
        for (int i = 0; i < 2; ++i) {
          const int64_t row = top + i, pixel = row * width + p;
          if (!s.has(row)) continue;
          float* g = tile.data() + i * count * features;
          deactivate(g, residuals1[n] + pixel * features, styles2[n], count, features, g,
                     first_time ? sum2 : nullptr, noise_at(grad_noise1, pixel));
          rows[i] = {g, wide1[row] + int64_t(p) * channels};
        }
        multiply(rows, count, matrix1[n]);
      });
    };
    const auto upsampling = [&](int64_t top) {
      const auto near = wide1.around(top);
      for_tiles<kFew>(width, [&](int p, int count) {
        depthwise(near, kernel1[n], channels, p, count, tile.data());
        const int64_t at = (top * width + 2 * p) * channels;
        analyse(tile.data(), xs[n] + at, raw_in, styles[n], count / 2, channels,
                grad_x->typed_data() + n * area * channels + at, sum);
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
        .Arg<Floats>()     // style2 (..., F)
        .Arg<Floats>()     // depthwise2 (..., 3, 3, F), turned round
        .Arg<Floats>()     // pointwise2 (..., F, F)
        .Arg<Floats>()     // head_style (..., F) or (..., 0)
        .Arg<Floats>()     // head (..., F, 16) or (..., 0, 16)
        .Arg<Floats>()     // out (..., H, W, F) or (..., H, W, 0)
        .Arg<Residuals>()  // residual1 (..., H, W, F)
        .Arg<Residuals>()  // residual2, the same or (..., H, W, 0)
        .Arg<Floats>()     // grad, as `out` of the forward pass
        .Ret<Floats>()     // grad_x
        .Ret<Floats>()     // of style, style2 and head_style (..., 4 C + F or 4 C + 2 F)
        .Ret<Floats>()     // grad_noise1 (..., H, W), or empty: not wanted
        .Ret<Floats>());   // grad_noise2, the same
