// How many rows and tokens each exit step left: written by the device, read by the host later.
#pragma once

#include <vector>

#include "stable.h"

namespace consistentee::device {

struct Count {
  int64_t rows, tokens;
};

// Of one pass.
class Counts {
 public:
  // Totals [E, 2] int32, zeros, on the host: pinned where the device is a GPU. `on` is any tensor of
  // the device.
  Counts(Tensor totals, Tensor on);
  ~Counts();
  Counts(const Counts&) = delete;
  Counts& operator=(const Counts&) = delete;

  // Where the next exit step writes, [2].
  Tensor next() const;

  // That exit step is launched.
  void mark();

  int64_t made() const { return static_cast<int64_t>(events_.size()); }

  // What exit step number `made` left, once it has run.
  Count read(int64_t made) const;

 private:
  Tensor totals_, on_;
  std::vector<int64_t> events_;  // one an exit step
};

}  // namespace consistentee::device
