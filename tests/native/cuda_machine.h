// Runs the threads of CUDA blocks without a GPU, one fiber a thread.
//
// A few blocks are under way at once, and a seed decides who runs next whenever a thread waits for
// others, and now and then where it does not: what only works in one order fails in another. Memory
// is that of one processor, so a missing __threadfence goes unnoticed. One translation unit only.
#pragma once

#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_shim {
namespace {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;
constexpr int kResident = 3;  // blocks under way at once
constexpr size_t kStack = 32 << 10;
constexpr size_t kGuard = 64;  // floats behind a block's dynamic shared memory

enum class Wait { kNone, kBarrier, kShuffle, kEnded };

struct Block;

struct Fiber {
  jmp_buf context;
  std::unique_ptr<char[]> stack;
  bool started = false;
  Block* block = nullptr;
  int thread = 0;
  Wait wait = Wait::kNone;
  int line = 0;  // of the barrier or shuffle it waits at
  unsigned mask = 0;
  int step = 0;
  uint32_t value = 0;  // sent, then received
};

struct Block {
  std::unique_ptr<Fiber[]> fibers{new Fiber[kMaxThreads]};
  bool active = false;
  dim3 index;
  int64_t rank = 0;
  int threads = 0;
  int at_barrier = 0;
  int ended = 0;
  std::vector<int> ready;
  unsigned arrived[kMaxThreads / kLanes] = {};  // lanes of a warp that wait at a shuffle
  std::vector<float> dynamic_shared;
  std::vector<char> static_shared;
};

struct Machine {
  Block blocks[kResident];
  Fiber* current = nullptr;
  jmp_buf scheduler;
  std::function<void()> kernel;
  std::string error;
  uint64_t random = 0;
  int64_t lowest = 0;      // rank of a block
  uint64_t patience = 1;   // steps of a block, on average, until it becomes the last
  char* shared = nullptr;  // the segment of the variables declared __shared__
  size_t shared_size = 0;

  uint64_t draw(uint64_t below) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return (random >> 11) % below;
  }
};

static Machine machine;

// Hands over to the scheduler. Returns when it is the thread's turn again.
__attribute__((noinline)) void pause() {
  if (_setjmp(machine.current->context) == 0) _longjmp(machine.scheduler, 1);
}

[[noreturn]] void fail(const std::string& message) {
  machine.error = message;
  _longjmp(machine.scheduler, 1);
}

void wake(Fiber& fiber) {
  fiber.wait = Wait::kNone;
  fiber.block->ready.push_back(fiber.thread);
}

// Threads that have ended count as arrived, as they do on a device.
void try_barrier(Block& block) {
  if (block.at_barrier == 0 || block.at_barrier + block.ended < block.threads) return;
  int line = 0;
  for (int t = 0; t < block.threads; ++t) {
    Fiber& fiber = block.fibers[t];
    if (fiber.wait != Wait::kBarrier) continue;
    if (line != 0 && fiber.line != line) {
      machine.error = "__syncthreads: threads of a block wait at lines " + std::to_string(line) +
                      " and " + std::to_string(fiber.line);
    }
    line = fiber.line;
    wake(fiber);
  }
  block.at_barrier = 0;
}

void try_shuffle(Block& block, const Fiber& last) {
  const int first = last.thread / kLanes * kLanes;
  unsigned& arrived = block.arrived[last.thread / kLanes];
  arrived |= 1u << (last.thread - first);
  if ((arrived & last.mask) != last.mask) return;
  uint32_t received[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(last.mask >> lane & 1)) continue;
    const Fiber& fiber = block.fibers[first + lane];
    if (fiber.mask != last.mask || fiber.step != last.step || fiber.line != last.line) {
      fail("__shfl_xor_sync: the lanes of a warp do not make the same call");
    }
    const int from = lane ^ last.step;
    if (from >= kLanes || !(last.mask >> from & 1)) {
      fail("__shfl_xor_sync: lane " + std::to_string(lane) + " reads a lane outside the mask");
    }
    received[lane] = block.fibers[first + from].value;
  }
  arrived &= ~last.mask;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(last.mask >> lane & 1)) continue;
    block.fibers[first + lane].value = received[lane];
    wake(block.fibers[first + lane]);
  }
}

void fiber_main() {
  for (;;) {
    machine.kernel();
    Fiber& fiber = *machine.current;
    fiber.wait = Wait::kEnded;
    ++fiber.block->ended;
    try_barrier(*fiber.block);
    pause();
  }
}

void resume(Fiber& fiber) {
  machine.current = &fiber;
  threadIdx = dim3(static_cast<unsigned>(fiber.thread), 0, 0);
  blockIdx = fiber.block->index;
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.context, 1);
  fiber.started = true;
  if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  // A ucontext begins the fiber; jumps, which need no system call, switch ever after.
  ucontext_t begin;
  getcontext(&begin);
  begin.uc_stack.ss_sp = fiber.stack.get();
  begin.uc_stack.ss_size = kStack;
  begin.uc_link = nullptr;
  makecontext(&begin, fiber_main, 0);
  setcontext(&begin);
}

// Found in one piece with the variables of the kernels; its first use makes the system allocate them.
static thread_local volatile char anchor;

void find_shared() {
  anchor = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        const auto here = reinterpret_cast<uintptr_t>(&machine);
        bool own = false;
        const ElfW(Phdr)* variables = nullptr;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr) & segment = info->dlpi_phdr[i];
          const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
          own |= segment.p_type == PT_LOAD && here >= begin && here < begin + segment.p_memsz;
          if (segment.p_type == PT_TLS) variables = &segment;
        }
        if (!own) return 0;
        if (variables != nullptr) {
          machine.shared = static_cast<char*>(info->dlpi_tls_data);
          machine.shared_size = variables->p_memsz;
        }
        return 1;
      },
      nullptr);
}

void begin_block(Block& block, dim3 index, int threads, int64_t memory) {
  block.active = true;
  block.index = index;
  block.rank = static_cast<int64_t>(machine.draw(1 << 20));
  block.threads = threads;
  block.at_barrier = block.ended = 0;
  std::memset(block.arrived, 0, sizeof(block.arrived));
  block.ready.resize(threads);
  std::iota(block.ready.begin(), block.ready.end(), 0);
  for (int t = 0; t < threads; ++t) {
    block.fibers[t].block = &block;
    block.fibers[t].thread = t;
    block.fibers[t].wait = Wait::kNone;
  }
  // A read of memory that was never written gives a NaN, or a flag of either value.
  block.dynamic_shared.resize(memory / sizeof(float) + kGuard);
  std::memset(block.dynamic_shared.data(), 0xff, block.dynamic_shared.size() * sizeof(float));
  block.static_shared.assign(machine.shared_size, machine.draw(2) ? '\xff' : '\0');
}

[[noreturn]] void stop(const std::string& message) {
  for (Block& block : machine.blocks) {
    block.active = false;
    for (int t = 0; t < kMaxThreads; ++t) block.fibers[t].started = false;  // their stacks are left
  }
  throw std::runtime_error(message);
}

[[noreturn]] void stop_deadlock() {
  std::string message = "deadlock:";
  for (const Block& block : machine.blocks) {
    if (!block.active) continue;
    int shuffles = 0, line = 0;
    for (int t = 0; t < block.threads; ++t) {
      if (block.fibers[t].wait == Wait::kShuffle) ++shuffles, line = block.fibers[t].line;
    }
    message += " block (" + std::to_string(block.index.x) + ", " + std::to_string(block.index.y) +
               "): " + std::to_string(block.at_barrier) + " threads at __syncthreads, " +
               std::to_string(shuffles) + " at __shfl_xor_sync (line " + std::to_string(line) +
               "), " + std::to_string(block.ended) + " ended;";
  }
  stop(message);
}

void end_block(Block& block) {
  block.active = false;
  uint32_t words[kGuard];
  const float* guard = block.dynamic_shared.data() + block.dynamic_shared.size() - kGuard;
  std::memcpy(words, guard, sizeof(words));
  for (const uint32_t word : words) {
    if (word != 0xffffffffu) stop("a block wrote behind its shared memory");
  }
}

// The block of the highest rank runs. Now and then it becomes the last, and rests in whatever state
// it is in while the others go far ahead.
Block* next_block() {
  Block* next = nullptr;
  for (Block& block : machine.blocks) {
    if (!block.active || block.ready.empty()) continue;
    if (next == nullptr || block.rank > next->rank) next = &block;
  }
  return next;
}

void maybe_lower(Block& block, uint64_t odds) {
  if (machine.draw(odds) == 0) block.rank = --machine.lowest;
}

float* dynamic_shared() { return machine.current->block->dynamic_shared.data(); }

// Now and then another thread goes on: what comes next may matter to it.
void maybe_yield() {
  if (machine.draw(2)) return;
  wake(*machine.current);
  pause();
}

// Runs kernel(args...) as kernel<<<grid, threads, memory>>>(args...) does. Throws where it cannot end.
template <typename... Params, typename... Args>
void launch(
    uint64_t seed,
    void (*kernel)(Params...),
    dim3 grid,
    int threads,
    int64_t memory,
    Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z != 1 || threads < 1 || threads > kMaxThreads) {
    throw std::runtime_error("invalid configuration argument");
  }
  machine.random = (seed + 1) * 0x9e3779b97f4a7c15u;
  machine.kernel = [=] { kernel(args...); };
  machine.error.clear();
  machine.lowest = 0;
  machine.patience = uint64_t{16} << machine.draw(12);
  find_shared();
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  std::vector<uint64_t> order(static_cast<uint64_t>(grid.x) * grid.y);
  std::iota(order.begin(), order.end(), uint64_t{0});
  for (uint64_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[machine.draw(i)]);

  uint64_t begun = 0, ended = 0;
  Block* present = nullptr;  // whose shared variables are in the segment
  while (ended < order.size()) {
    for (Block& block : machine.blocks) {
      if (block.active || begun == order.size()) continue;
      const auto index = static_cast<unsigned>(order[begun++]);
      begin_block(block, dim3(index % grid.x, index / grid.x, 0), threads, memory);
    }
    Block* block = next_block();
    if (block == nullptr) stop_deadlock();
    if (block != present && machine.shared_size) {
      if (present) std::memcpy(present->static_shared.data(), machine.shared, machine.shared_size);
      std::memcpy(machine.shared, block->static_shared.data(), machine.shared_size);
    }
    present = block;
    std::swap(block->ready[machine.draw(block->ready.size())], block->ready.back());
    const int thread = block->ready.back();
    block->ready.pop_back();
    maybe_lower(*block, machine.patience);
    resume(block->fibers[thread]);
    if (!machine.error.empty()) stop(machine.error);
    if (block->ended == block->threads) {
      end_block(*block);
      present = nullptr;
      ++ended;
    }
  }
}

}  // namespace
}  // namespace cuda_shim
