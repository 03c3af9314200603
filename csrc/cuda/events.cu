// event_record, event_wait, event_release: what the host waits for.

#include <map>
#include <mutex>
#include <vector>

#include "cuda/launch.h"

namespace consistentee {
namespace {

// Events that no pass has, by device: making one takes longer than a launch.
class IdleEvents {
 public:
  cudaEvent_t take(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<cudaEvent_t>& idle = idle_[device];
    if (idle.empty()) {
      cudaEvent_t made = nullptr;
      STD_CUDA_CHECK(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
      return made;
    }
    const cudaEvent_t event = idle.back();
    idle.pop_back();
    return event;
  }

  // An event that has not come yet may be given: recorded again, it stands for the later place.
  void give(int device, cudaEvent_t event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_[device].push_back(event);
  }

 private:
  std::mutex mutex_;
  std::map<int, std::vector<cudaEvent_t>> idle_;
};

IdleEvents& idle_events() {
  // Never destroyed: at the end of the process the driver may be gone before.
  static IdleEvents* const instance = new IdleEvents;
  return *instance;
}

cudaEvent_t event_of(int64_t number) {
  return reinterpret_cast<cudaEvent_t>(static_cast<intptr_t>(number));
}

int64_t event_record(const Tensor& on) {
  const DeviceGuard guard(on.get_device_index());
  const cudaEvent_t event = idle_events().take(on.get_device_index());
  STD_CUDA_CHECK(cudaEventRecord(event, current_stream(on)));
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(event));
}

void event_wait(const Tensor&, int64_t event) {
  STD_CUDA_CHECK(cudaEventSynchronize(event_of(event)));
}

void event_release(const Tensor& on, int64_t event) {
  idle_events().give(on.get_device_index(), event_of(event));
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CUDA, m) {
  m.impl("event_record", TORCH_BOX(&consistentee::event_record));
  m.impl("event_wait", TORCH_BOX(&consistentee::event_wait));
  m.impl("event_release", TORCH_BOX(&consistentee::event_release));
}
