// A linear layer's product with some rows, with what adapters make of it.
#pragma once
#include <functional>

#include "adapted.h"
#include "altered.h"
#include "decoder.h"

namespace openlora {

// Rows and units of columns are divided among the threads; whoever is done first takes units from the others.
struct Product {
  const Linear& linear;
  int rows;
  Inputs x;
  Planes planes;  // of x, where the layer multiplies integers
  const AdaptedRows& adapted;
  const AlteredRows& altered;
  int layer, part;                       // as adapters name the first of the linear layer's matrices
  Finish::Kind kind = Finish::kNothing;  // what becomes of the products,
  Inputs to = {};                        // and where that of the first unit is put,
  std::ptrdiff_t each = 0;               // so many bytes before that of the next one
};

// Called with what is done: products [unit][32][48] of a unit and some rows.
using Done = std::function<void(int unit, int first, int rows, const float* products)>;

// The member's part of it; the whole is there when every member has returned.
void multiply(Decoder&, int member, const Product&, const Done& done = {});

// The member's part of some rows. Of many it is whole blocks, which a product is divided into, too: then all that is
// computed of a row between two attentions stays in one core's cache.
Team::Range rows_of(const Team&, int rows, int member);

}  // namespace openlora
