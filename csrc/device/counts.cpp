#include "device/counts.h"

#include <utility>

#include "device/call.h"

namespace consistentee::device {

Counts::Counts(Tensor totals, Tensor on) : totals_(std::move(totals)), on_(std::move(on)) {}

Counts::~Counts() {
  for (const int64_t event : events_) {
    try {
      run("consistentee::event_release", on_, event);
    } catch (const std::exception&) {
      // the error that ends the pass is the one to tell
    }
  }
}

Tensor Counts::next() const { return strided(totals_, 2 * made(), {2}, {1}); }

void Counts::mark() { events_.push_back(call<int64_t>("consistentee::event_record", on_)); }

Count Counts::read(int64_t made) const {
  run("consistentee::event_wait", on_, events_[made - 1]);
  const int32_t* totals = data<int32_t>(totals_) + 2 * (made - 1);
  return {totals[0], totals[1]};
}

}  // namespace consistentee::device
