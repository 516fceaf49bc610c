// Calls of kernels, kept instead of made, to be made again and again in one go. The host needs
// microseconds for a call; where a kernel takes no longer, that is half of the time.
#pragma once

#include <functional>
#include <utility>
#include <vector>

namespace weir {

using Tape = std::vector<std::function<void()>>;

extern thread_local Tape* tape;  // takes the calls of this thread; or null

// Every kernel's entry: `made` holds all arguments by value, so that it can be called later.
template <class Call>
void launch(Call made) {
  if (tape) tape->emplace_back(std::move(made));
  else made();
}

}  // namespace weir
