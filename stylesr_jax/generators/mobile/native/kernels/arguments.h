// XLA's buffers: the sizes of a block, and where each example begins.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Residuals = ffi::Buffer<ffi::U16>;  // what is kept for the gradient, in bfloat16

inline const float* elements(const Floats& buffer) { return buffer.typed_data(); }
inline const BFloat16* elements(const Residuals& buffer) {
  return reinterpret_cast<const BFloat16*>(buffer.typed_data());
}

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
  const Element* data;
  Offsets offsets;
  const Element* operator[](int64_t n) const { return data + offsets[n]; }
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
  // The examples of a buffer, which have `rank` dimensions.
  template <typename Buffer>
  auto examples(const Buffer& buffer, size_t rank) const {
    const auto* data = elements(buffer);
    using Element = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    return Examples<Element>{data, {buffer.dimensions(), rank, leading, batch}};
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

}  // namespace
