// Which tokens of a vocabulary an automaton allows: through a trie of their bytes, depth first.
#include <cstdint>
#include <vector>

namespace {

// `Walk` of ops/native/__init__.py. Nodes are in depth-first order; state 0 is dead.
struct Walk {
  const int32_t *skip;     // [nodes]: the next node that is not below this one
  const int32_t *token;    // [nodes]: the one that ends here, or `none`
  const uint16_t *depth;   // [nodes]: from 1 on
  const uint8_t *letter;   // [nodes]: the byte that leads here
  const uint8_t *classes;  // [256]: the automaton's class of each byte
  const uint16_t *table;   // [states, width]: the next state, by class
  int64_t nodes, deepest, none, width;
};

}  // namespace

// Set the flags [none + 1] of the tokens that may follow `state`; the last one says nothing. Without
// flags: return whether one of more than `length` bytes may.
extern "C" int32_t weir_walk(const Walk *walk, int32_t state, int32_t length, uint8_t *flags) {
  const Walk w = *walk;
  std::vector<const uint16_t *> row(w.deepest + 1);
  row[0] = w.table + state * w.width;
  for (int64_t node = 0; node < w.nodes;) {
    const int32_t depth = w.depth[node];
    const uint16_t after = row[depth - 1][w.classes[w.letter[node]]];
    if (!after) {
      node = w.skip[node];
      continue;
    }
    row[depth] = w.table + after * w.width;
    if (flags)
      flags[w.token[node]] = 1;
    else if (depth > length && w.token[node] != w.none)
      return 1;
    ++node;
  }
  return 0;
}
