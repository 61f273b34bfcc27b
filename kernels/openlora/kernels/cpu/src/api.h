// The library as Python sees it, through ctypes: these structs are mirrored in ../library.py.
#pragma once
#include <cstdint>

namespace openlora {

#pragma GCC visibility push(default)
extern "C" {

struct Shape {
  std::int32_t vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_size, max_positions;
  std::int32_t pages, threads;
  float rms_norm_eps, attention_scale, embedding_scale;
  float attention_soft_cap, logit_soft_cap;  // 0: none
  bool gelu;                                 // tanh's approximation of it, in place of SiLU
};

// A row-major matrix [out, in]: bfloat16, or codes under scales, see quantised.h; the other fields are 0 or null where
// the format has no use for them. All matrices that share an input have one format.
struct Values {
  std::int32_t format;          // a Format
  std::int32_t group;           // inputs that share a scale
  std::int32_t half;            // scales and minima are float16, else float32
  const void* numbers;          // bfloat16, or int8 codes
  const void *scales, *minima;  // [out, groups]
};

// Norms and biases are float32, a missing one null. A row sees the last `window` positions, its own included; 0: all.
struct LayerWeights {
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
  const float *post_attention_norm, *post_mlp_norm;  // both or none
  Values q, k, v, o, gate, up, down;
  const float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
  std::int32_t window;
};

// `embedding` is read at every step and must outlive the decoder; all else is copied.
struct Weights {
  const std::uint16_t* embedding;  // [vocabulary, hidden]
  const LayerWeights* layers;
  const float* norm;
  Values head;        // [vocabulary, hidden]
  const float* rope;  // [max positions, head size]: cosines, then sines
};

// One linear layer's part of an adapter. `layer` is −1 for the head; `part` is 0–6 for q, k, v, o, gate, up, down.
struct Factor {
  std::int32_t layer, part, rank;
  float scale;
  const std::uint16_t *a, *b;  // [rank, in], [out, rank]
};

// What an adapter does besides: to a matrix as a Factor names it, to a layer's norm (part 7 before attention, 8 before
// the MLP, 9 and 10 of what these add, 11 of queries, 12 of keys), to the last norm (layer −1, part 7), to a matrix's
// bias (the matrix's part + 13), which need not have one, or to the embedding (layer −2).
struct Alteration {
  std::int32_t kind;  // 0: stretches rows; 1: adds a difference; 2: adds the embedding's scale · B · A
  std::int32_t layer, part, rank;
  float scale;
  const void* values;          // float32 [out], also of norms and biases; else bfloat16, of the weight's shape
  const std::uint16_t *a, *b;  // [vocabulary, rank], [rank, hidden]
};

// Sequences and the rows computed for them now, as types.AttentionBatch has them; all rows of sequence s use the
// adapters entry_starts[s]:entry_starts[s + 1].
struct Step {
  std::int32_t rows, sequences, outputs;
  const std::int32_t* tokens;        // [rows]
  const std::int32_t* row_starts;    // [sequences + 1]
  const std::int32_t* context_lens;  // [sequences], this step's rows included
  const std::int32_t* page_starts;   // [sequences + 1]
  const std::int32_t* pages;         // of sequence s by position: pages[page_starts[s]:page_starts[s + 1]]
  const std::int32_t* output_rows;   // [outputs], ascending
  const std::int32_t* entry_starts;  // [sequences + 1]
  const std::int32_t* entry_slots;
  const float* entry_weights;
  const double *temperature, *top_p;            // [outputs], as reference.sample has them; null: 0 everywhere
  const std::int64_t *top_k, *seed, *position;  // [outputs]
  float* logits;                                // [outputs, vocabulary], or null where they are not wanted
  std::int32_t* chosen;                         // [outputs]: the next token; −1 where a logit is infinite or NaN
};

struct Decoder;

// Null, with a sentence in `error` [256], where there is no memory or no such instruction set; "" picks the best.
Decoder* openlora_decoder_create(const Shape*, const Weights*, const char* instructions, char* error);
void openlora_decoder_destroy(Decoder*);
const char* openlora_decoder_instructions(const Decoder*);
// False where there is no memory; then the slot holds nothing.
bool openlora_decoder_load_adapter(Decoder*, std::int32_t slot, const Factor*, std::int32_t count);
// For a slot that is loaded; false where there is no memory.
bool openlora_decoder_alter(Decoder*, std::int32_t slot, const Alteration*, std::int32_t count);
void openlora_decoder_unload_adapter(Decoder*, std::int32_t slot);
bool openlora_decoder_step(Decoder*, const Step*);

// Packs `count` bfloat16 numbers, a multiple of 1,536, as a decoder's weights are, and restores them. Returns the bytes
// that they take packed, 0 where weights like them stay as they are: many of their upper bytes are rare, or these
// instructions take none packed.
std::int64_t openlora_repack(const char* instructions, const std::uint16_t* numbers, std::int32_t count,
                             std::uint16_t* restored);
}
#pragma GCC visibility pop

}  // namespace openlora
