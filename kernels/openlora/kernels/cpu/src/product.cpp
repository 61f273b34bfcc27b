#include "product.h"

#include <algorithm>

namespace openlora {
namespace {

constexpr int kRowsApart = 96;     // for each member, from which on they divide the rows
constexpr int kRestoredAgain = 4;  // blocks, up to which a packed tile is restored for each: kept, it is slower

bool by_rows(const Team& team, int rows) { return rows >= kRowsApart * team.size(); }

// Multiplies units, tile by tile and block by block. What becomes of a block is done while the next one is multiplied.
class Multiplying {
 public:
  Multiplying(Decoder& decoder, int member, const Product& product, const Done& done)
      : d_(decoder),
        k_(decoder.kernels),
        p_(product),
        linear_(product.linear),
        done_(done),
        member_(member),
        added_(product.adapted.added(product.layer, product.part, linear_.matrices)) {}

  void run() {
    d_.shares.begin(member_);
    for (int i = 0; i < d_.team.size(); ++i) take_from((member_ + i) % d_.team.size());
    k_.finish(finish_, 0, finish_.rows);
  }

 private:
  // Units of a member's share, until none is left.
  void take_from(int owner) {
    const bool apart = by_rows(d_.team, p_.rows);
    const Team::Range units = apart ? Team::Range{0, linear_.units()} : d_.team.share(linear_.units(), owner);
    rows_ = apart ? rows_of(d_.team, p_.rows, owner) : Team::Range{0, p_.rows};
    blocks_ = (rows_.end - rows_.begin + kBlock - 1) / kBlock;
    if (!blocks_) return;
    kept_ = blocks_ > kRestoredAgain;
    const auto take = [&] { return d_.shares.take(member_, owner, units); };
    int unit = take();
    if (kept_ && unit >= 0) restore(unit);
    while (unit >= 0) {
      const int next = kept_ ? take() : -1;
      multiply(unit, next);
      room_ = !room_;
      unit = kept_ ? next : take();
    }
  }

  void restore(int unit) {
    for (int i = 0; i < linear_.unit; ++i) {
      Restoring all = restoring(unit, i, room_);
      if (all.left) k_.restore(all, all.left);
    }
  }

  // Packed tiles of the next unit are restored meanwhile.
  void multiply(int unit, int next) {
    Restoring coming[2];
    for (int i = 0; next >= 0 && i < linear_.unit; ++i) coming[i] = restoring(next, i, !room_);
    for (int block = 0; block < blocks_; ++block) {
      const int first = rows_.begin + block * kBlock, count = std::min(kBlock, rows_.end - first);
      float (*products)[kBlock * kTile] = out_[turn_++ % 2];
      Inputs to = p_.to.from(first);
      to.at += unit * p_.each;
      if (kept_ && p_.kind == Finish::kPut) fetch_for(to, count);
      for (int i = 0; i < linear_.unit; ++i) {
        const int t = unit * linear_.unit + i;
        const Linear::Tile& tile = linear_.tiles[t];
        Meanwhile meanwhile;
        meanwhile.finish = finish_;
        if (coming[i].left) meanwhile.restoring = &coming[i];
        if (!block) meanwhile.added = p_.adapted.factors(added_, tile.part, tile.index);
        const Ahead later = multiply_tile(tile, i, block, first, count, meanwhile, products[i]);
        finish_ = {};
        if (p_.altered.any())
          p_.altered.alter(p_.layer, p_.part + tile.part, tile.index, linear_.pairs(), first, count, p_.x.from(first),
                           products[i]);
        if (!linear_.bias.empty()) add_bias(&linear_.bias[t * kTile], count, products[i]);
        if (p_.adapted.any()) p_.adapted.expand(added_, tile.part, tile.index, first, count, later, products[i]);
      }
      finish_ = {p_.kind, products[0], count, to};
      if (done_) done_(unit, first, count, products[0]);
    }
  }

  // Where a block's products will be put, into the first-level cache: waiting for it then would hold up the next
  // products.
  static void fetch_for(Inputs to, int rows) {
    for (int row = 0; row < rows; ++row)
      for (std::size_t i = 0; i < kTile * sizeof(float); i += 64)
        __builtin_prefetch(static_cast<char*>(to.row(row)) + i, 1, 3);
  }

  // A unit's i-th tile with a block of rows. Returns what should be fetched while adapters are added: as much as is
  // fetched here for their sake, if products wait for memory.
  Ahead multiply_tile(const Linear::Tile& tile, int i, int block, int first, int count, Meanwhile& meanwhile,
                      float* out) {
    const char* ahead = tile.weights + k_.ahead;
    bf16* room = unpacked(i, room_);
    const Inputs x = p_.x.from(first);
    if (linear_.unpacked()) {
      if (!block) k_.unpack(tile.weights, linear_.coding, linear_.pairs(), room, ahead);
      k_.tile(x, count, room, linear_.pairs(), out, meanwhile);
      return {};
    }
    const std::size_t each = tile.bytes / blocks_;
    if (blocks_ > 1) ahead += tile.bytes;  // the first block of the next reads all of it
    ahead += each * block;
    if (tile.packed && !kept_) {
      const std::size_t later = k_.memory_bound ? std::min(each, meanwhile.added.bytes) / 64 * 64 : 0;
      meanwhile.ahead = {ahead, each - later};
      k_.tile_packed(x, count, *reinterpret_cast<const Packed*>(tile.weights), linear_.pairs(), out, meanwhile);
      return {ahead + (each - later), later};
    }
    if (tile.packed) ahead += linear_.unit * tile.bytes;  // than what is being restored
    meanwhile.ahead = {ahead, each};
    meanwhile.groups = linear_.pairs() * kTileRow / kPackedNumbers / blocks_ + 1;
    if (linear_.grouped)
      k_.tile_groups(p_.planes.from(first), count, tile.weights, linear_.coding, 2 * linear_.pairs(), out, meanwhile);
    else if (linear_.integers())
      k_.tile_int8(p_.planes.from(first), count, *reinterpret_cast<const Int8Tile*>(tile.weights), linear_.quads(), out,
                   meanwhile);
    else
      k_.tile(x, count, tile.packed ? room : reinterpret_cast<const bf16*>(tile.weights), linear_.pairs(), out,
              meanwhile);
    return {};
  }

  // A unit's i-th tile, if it is packed, to where it is unpacked.
  Restoring restoring(int unit, int i, bool room) const {
    const Linear::Tile& tile = linear_.tiles[unit * linear_.unit + i];
    if (!tile.packed) return {};
    return {reinterpret_cast<const Packed*>(tile.weights), linear_.pairs() * kTileRow, unpacked(i, room)};
  }

  // Where the member unpacks a unit's i-th tile: there are two rooms, since a unit is still in use when the next one
  // comes.
  bf16* unpacked(int i, bool room) const {
    return d_.unpacked[member_].as<bf16>() + (room * linear_.unit + i) * (linear_.dense_tile_bytes() / sizeof(bf16));
  }

  static void add_bias(const float* bias, int rows, float* out) {
    for (int row = 0; row < rows; ++row)
      for (int i = 0; i < kTile; ++i) out[row * kTile + i] += bias[i];
  }

  Decoder& d_;
  const Kernels& k_;
  const Product& p_;
  const Linear& linear_;
  const Done& done_;
  const int member_;
  const AdaptedRows::Added added_;
  Team::Range rows_;
  int blocks_, turn_ = 0;
  bool kept_, room_ = false;  // whether packed tiles are restored once for all blocks, and where
  Finish finish_;
  alignas(64) float out_[2][2][kBlock * kTile];
};

}  // namespace

void multiply(Decoder& decoder, int member, const Product& product, const Done& done) {
  Multiplying(decoder, member, product, done).run();
}

Team::Range rows_of(const Team& team, int rows, int member) {
  if (!by_rows(team, rows)) return team.share(rows, member);
  const auto blocks = team.share((rows + kBlock - 1) / kBlock, member);
  return {blocks.begin * kBlock, std::min(blocks.end * kBlock, rows)};
}

}  // namespace openlora
