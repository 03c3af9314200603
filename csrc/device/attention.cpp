#include "device/attention.h"

#include "device/call.h"

namespace consistentee::device {
namespace {

constexpr int64_t kArguments = 10, kMostArguments = 32, kResults = 5;

}  // namespace

void check_flash_arguments(int64_t arguments) {
  if (arguments < kArguments || arguments > kMostArguments) {
    fail("flash_arguments: expected as many as the schema of the op has");
  }
}

Tensor flash_attention(
    const Heads& query,
    const Heads& key,
    const Heads& value,
    const RowBounds& queries,
    const RowBounds& keys,
    int64_t num_heads,
    int64_t head_size) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, kMostArguments> stack{};
  size_t count = 0;
  const auto push = [&](StableIValue argument) { stack[count++] = argument; };
  for (const Heads* heads : {&query, &key, &value}) {
    const Tensor& product = heads->product;
    push(from(strided(
        product,
        heads->first,
        {product.size(0), num_heads, head_size},
        {product.stride(0), head_size, 1})));
  }
  for (const RowBounds* rows : {&queries, &keys}) push(from(std::make_optional(rows->offsets)));
  for (const RowBounds* rows : {&queries, &keys}) push(from(rows->longest));
  // No dropout, not causal, no mask to return, None for the rest: zeros all of them.
  call_dispatcher("aten::_flash_attention_forward", stack.data());
  const Tensor context = to<Tensor>(stack[0]);
  for (int64_t result = 1; result < kResults; ++result) to<Tensor>(stack[result]);  // frees it
  const int64_t size = num_heads * head_size;
  return strided(context, 0, {query.product.size(0), size}, {size, 1});
}

}  // namespace consistentee::device
