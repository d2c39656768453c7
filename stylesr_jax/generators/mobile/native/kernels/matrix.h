// Matrix products of a few pixels' features and weights.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arguments.h"
#include "threads.h"
#include "vectors.h"

namespace {

// A matrix (inner, outer) as panels of up to kPanel vectors of columns, each contiguous.
class Matrix {
 public:
  Matrix(int inner, int outer) : inner(inner), outer(outer), panels_(size_t(inner) * outer) {
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
      float* to = panels_.data() + size_t(first) * inner + f - first;
      for (int k = 0; k < inner; ++k) store(to + size_t(k) * width, load(columns + k * step));
    }
  }
  const float* panel(int first) const { return panels_.data() + size_t(first) * inner; }

  const int inner, outer;
  std::vector<int> firsts;  // columns of the panels

 private:
  Array panels_;
};

// Each example's matrix; consecutive examples share one where the data is the same.
class Matrices {
 public:
  // Of data (..., inner, outer), or (..., outer, inner) if it is to be transposed.
  Matrices(ffi::ThreadPool& pool, const Floats& buffer, const Sizes& sizes, int inner, int outer,
           bool transpose) {
    const auto examples = sizes.examples(buffer, 2);
    std::vector<const float*> data;
    for (int64_t n = 0; n < sizes.batch; ++n) {
      if (n == 0 || examples[n] != examples[n - 1]) {
        matrices_.emplace_back(inner, outer);
        data.push_back(examples[n]);
      }
      which_.push_back(matrices_.size() - 1);
    }
    const int64_t panels = matrices_.empty() ? 0 : matrices_[0].firsts.size();
    run(pool, matrices_.size() * panels, [&](int64_t index, const auto& next) {
      for (; index >= 0; index = next()) {
        Matrix& matrix = matrices_[index / panels];
        matrix.fill(matrix.firsts[index % panels], data[index / panels], transpose);
      }
    });
  }
  const Matrix& operator[](int64_t n) const { return matrices_[which_[n]]; }

 private:
  std::vector<Matrix> matrices_;
  std::vector<size_t> which_;
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

// How many pixels are multiplied by so many vectors at once.
constexpr int pixels_at_once(int vectors) {
  return vectors == 4 ? kAccumulators / 8 * 2 : kAccumulators / 2;
}

constexpr int kPixels = 64;  // that go through a matrix product at a time, at most

// Calls tile(first pixel, pixels) for one part of a row after the other.
template <int size = kPixels, typename Tile>
inline void for_tiles(int width, const Tile& tile) {
  for (int p = 0; p < width; p += size) tile(p, std::min(size, width - p));
}

struct Row {
  const float* x;
  float* out;  // or null: this row is not wanted
};

// out (pixels, outer) = x (pixels, inner) times the matrix, of two rows at a time, so that the
// matrix passes half as often. Calls after(row, first, width) when columns first to
// first + width - 1 of one are done.
template <typename After>
void multiply(const Row (&rows)[2], int pixels, const Matrix& matrix, const After& after) {
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
inline void multiply(const Row (&rows)[2], int pixels, const Matrix& matrix) {
  multiply(rows, pixels, matrix, [](int, int, int) {});
}

}  // namespace
