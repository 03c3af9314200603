// Where removing rows from a batch pays.
#pragma once

#include <utility>
#include <vector>

#include "stable.h"

namespace consistentee::device {

class RemovalCosts {
 public:
  // Microseconds by numbers of tokens, which ascend from 0 on: of a layer, and of removing rows from a
  // batch of as many. The three are of one length, at least 2.
  RemovalCosts(std::vector<double> tokens, std::vector<double> layer, std::vector<double> removal)
      : tokens_(std::move(tokens)), layer_(std::move(layer)), removal_(std::move(removal)) {
    bool ascend = tokens_.size() >= 2 && tokens_[0] == 0.0;
    for (size_t i = 1; i < tokens_.size(); ++i) ascend = ascend && tokens_[i - 1] < tokens_[i];
    if (!ascend) fail("cost_tokens: expected two or more numbers that ascend from 0");
    if (layer_.size() != tokens_.size() || removal_.size() != tokens_.size()) {
      fail("layer_costs, removal_costs: expected one for each of cost_tokens");
    }
  }

  // Whether `layers` layers on `to` tokens instead of `from` save more than the removal costs.
  bool pays(int64_t from, int64_t to, int64_t layers) const {
    const double saved = at(layer_, from) - at(layer_, to);
    return static_cast<double>(layers) * saved > at(removal_, from);
  }

 private:
  // Straight between two numbers, and beyond the last as between the two before.
  double at(const std::vector<double>& costs, int64_t count) const {
    const double tokens = static_cast<double>(count);
    size_t next = 1;
    while (next + 1 < tokens_.size() && tokens_[next] < tokens) ++next;
    const double slope = (costs[next] - costs[next - 1]) / (tokens_[next] - tokens_[next - 1]);
    return costs[next - 1] + slope * (tokens - tokens_[next - 1]);
  }

  std::vector<double> tokens_, layer_, removal_;
};

}  // namespace consistentee::device
