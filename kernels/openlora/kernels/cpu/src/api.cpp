// The library's functions: nothing is thrown across them.
#include "api.h"

#include <cstdio>
#include <new>

#include "decoder.h"

namespace openlora {
extern "C" {

Decoder* openlora_decoder_create(const Shape* shape, const Weights* weights, const char* instructions, char* error) {
  const Kernels* kernels = choose_kernels(instructions);
  if (!kernels) {
    std::snprintf(error, 256, "this processor has no %s", instructions);
    return nullptr;
  }
  try {
    return new Decoder(*shape, *weights, *kernels);
  } catch (const std::exception& problem) {
    std::snprintf(error, 256, "%s", problem.what());
    return nullptr;
  }
}

void openlora_decoder_destroy(Decoder* decoder) { delete decoder; }

const char* openlora_decoder_instructions(const Decoder* decoder) { return decoder->kernels.name; }

bool openlora_decoder_load_adapter(Decoder* decoder, std::int32_t slot, const Factor* factors, std::int32_t count) {
  try {
    decoder->load_adapter(slot, factors, count);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

bool openlora_decoder_alter(Decoder* decoder, std::int32_t slot, const Alteration* list, std::int32_t count) {
  try {
    decoder->alter(slot, list, count);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

void openlora_decoder_unload_adapter(Decoder* decoder, std::int32_t slot) { decoder->unload_adapter(slot); }

bool openlora_decoder_step(Decoder* decoder, const Step* step) {
  try {
    decoder->step(*step);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

std::int64_t openlora_repack(const char* instructions, const std::uint16_t* numbers, std::int32_t count,
                             std::uint16_t* restored) {
  const Kernels* kernels = choose_kernels(instructions);
  if (!kernels || !kernels->restore) return 0;
  const Memory memory(sizeof(bf16) * count);
  Packed* packed = memory.as<Packed>();
  const std::size_t bytes = pack(numbers, count, packed);
  Restoring restoring(packed, count, restored);
  if (bytes) kernels->restore(restoring, count / kPackedNumbers);
  return static_cast<std::int64_t>(bytes);
}
}

}  // namespace openlora
