// Objects known by numbers: the stable ABI of torch 2.10 has no tensor with a deleter, in which a
// pointer could travel.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "stable.h"

namespace consistentee {

template <typename T>
class Registry {
 public:
  // Never destroyed: at the end of the process torch may be gone before its tensors are.
  static Registry& instance() {
    static Registry* const only = new Registry;
    return *only;
  }

  int64_t add(std::shared_ptr<T> object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    objects_[++last_] = std::move(object);
    return last_;
  }

  // A pass under way keeps its object alive. `source` is the op that gives the numbers.
  std::shared_ptr<T> find(int64_t number, const char* source) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(number);
    if (found == objects_.end()) {
      fail(std::string("engine: expected a number that ") + source + " gave");
    }
    return found->second;
  }

  void remove(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    objects_.erase(number);
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<T>> objects_;
  int64_t last_ = 0;
};

}  // namespace consistentee
