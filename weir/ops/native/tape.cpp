// The tapes of tape.h, for the host: what is on one must stay where it was when it is played.
#include "tape.h"

namespace weir {

thread_local Tape* tape = nullptr;

}  // namespace weir

extern "C" {

void* weir_tape_begin() { return weir::tape = new weir::Tape; }
void weir_tape_end() { weir::tape = nullptr; }
void weir_tape_play(const void* tape) {
  for (const auto& made : *static_cast<const weir::Tape*>(tape)) made();
}
void weir_tape_free(void* tape) { delete static_cast<weir::Tape*>(tape); }
}
