// One forward pass: the phases of a layer, each divided among the threads, with a barrier between one and the next.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "product.h"
#include "sample.h"

namespace openlora {
namespace {

constexpr std::int64_t kPerItem = 64;  // positions that take as long as what every item takes besides

// A piece of attention: some rows of one sequence under one key-value head.
struct Item {
  int sequence, kv_head, first_row, rows;
};

class Pass {
 public:
  Pass(Decoder& decoder, const Step& step)
      : d_(decoder),
        s_(decoder.shape),
        k_(decoder.kernels),
        step_(step),
        rows_(step.rows),
        sequence_(sequences(step)),
        output_sequence_(chosen(step, sequence_)),
        adapted_(decoder, step, sequence_, false, decoder.shrunk),
        adapted_outputs_(decoder, step, output_sequence_, true, decoder.output_shrunk),
        altered_(decoder, step, sequence_),
        altered_outputs_(decoder, step, output_sequence_) {
    lay_out_rows();
    lay_out_attention();
    allocate();
  }

  void run() {
    d_.team.run([this](int member) {
      k_.enter();
      compute(member);
      k_.leave();
    });
    choose();
    if (step_.temperature) d_.team.run([this](int member) { draw(member); });
  }

 private:
  // ---- before the threads start -------------------------------------------------------------------------------------

  static std::vector<int> sequences(const Step& step) {
    std::vector<int> sequence;
    for (int s = 0; s < step.sequences; ++s) sequence.resize(step.row_starts[s + 1], s);
    return sequence;
  }

  static std::vector<int> chosen(const Step& step, const std::vector<int>& sequence) {
    std::vector<int> sequences;
    for (int i = 0; i < step.outputs; ++i) sequences.push_back(sequence[step.output_rows[i]]);
    return sequences;
  }

  void lay_out_rows() {
    for (int row = 0; row < rows_; ++row) {
      const int s = sequence_[row];
      position_.push_back(step_.context_lens[s] - (step_.row_starts[s + 1] - row));
    }
  }

  // Pieces of several rows, which compute, go to the threads in turn; those of one row, which read from memory, stay in
  // their order, so that each thread has its own sequences.
  void lay_out_attention() {
    const int each = std::max(1, k_.queries / group());
    int widest = 0, turn = 0;
    for (const Layer& layer : d_.layers) widest = std::max(widest, layer.window);
    std::vector<Item> single;
    items_.resize(d_.team.size());
    for (int s = 0; s < step_.sequences; ++s)
      for (int head = 0; head < s_.kv_heads; ++head)
        for (int row = step_.row_starts[s]; row < step_.row_starts[s + 1]; row += each) {
          const Item item{s, head, row, std::min(each, step_.row_starts[s + 1] - row)};
          if (item.rows == 1)
            single.push_back(item);
          else
            items_[turn++ % d_.team.size()].push_back(item);
        }
    std::int64_t total = 0, before = 0;
    const auto cost = [&](const Item& item) { return kPerItem + std::min(position_[item.first_row], widest); };
    for (const Item& item : single) total += cost(item);
    for (const Item& item : single) {
      items_[(2 * before + cost(item)) * d_.team.size() / (2 * total)].push_back(item);
      before += cost(item);
    }
  }

  void allocate() {
    const int rows = round_up(rows_, kBlock), outputs = round_up(step_.outputs, kBlock);
    residual_stride_ = round_up(s_.hidden_size, kTile);
    q_tiles_ = tiles_of(s_.heads * s_.head_size);
    kv_tiles_ = tiles_of(s_.kv_heads * s_.head_size);
    projected_stride_ = (q_tiles_ + 2 * kv_tiles_) * kTile;
    residual_ = grown<float>(d_.residual, std::size_t{1} * rows * residual_stride_);
    if (!d_.layers[0].post_mlp_norm.empty()) added_ = grown<float>(d_.added, std::size_t{1} * rows * residual_stride_);
    normed_ = inputs(d_.normed, rows, s_.hidden_size);
    projected_ = grown<float>(d_.projected, std::size_t{1} * rows * projected_stride_);
    attended_ = inputs(d_.attended, rows, s_.heads * s_.head_size);
    activated_ = inputs(d_.activated, rows, s_.intermediate_size);
    outputs_ = inputs(d_.outputs, outputs, s_.hidden_size);
    if (d_.most_groups) allocate_planes(std::max(rows, outputs));
    const int queries = std::max(group(), k_.queries);
    int longest = 0;
    for (int s = 0; s < step_.sequences; ++s) longest = std::max(longest, step_.context_lens[s]);
    for (Memory& memory : d_.scratch) grown<char>(memory, attention_scratch(queries, longest, s_.head_size));
    logits_ = step_.logits;
    if (!logits_ && step_.temperature) logits_ = grown<float>(d_.logits, std::size_t{1} * outputs * s_.vocab_size);
    best_.assign(std::size_t{1} * d_.team.size() * step_.outputs, {-INFINITY, -1, true});
  }

  void allocate_planes(int rows) {
    const int widest = plane_stride(std::max({s_.hidden_size, s_.heads * s_.head_size, s_.intermediate_size}));
    high_plane_ = grown<std::uint8_t>(d_.planes, std::size_t{2} * rows * widest);
    low_plane_ = high_plane_ + std::ptrdiff_t{1} * rows * widest;
    input_scales_ = grown<float>(d_.input_scales, std::size_t{2} * rows * d_.most_groups);
    input_sums_ = input_scales_ + std::ptrdiff_t{1} * rows * d_.most_groups;
  }

  Inputs inputs(Memory& memory, int rows, int columns) const {
    const std::ptrdiff_t stride = std::ptrdiff_t{row_stride(columns)} * k_.input_bytes;
    return {grown<char>(memory, rows * stride), stride};
  }

  // ---- in every thread ----------------------------------------------------------------------------------------------

  void compute(int member) {
    for (int i = 0; i < s_.layers; ++i) {
      const Layer& layer = d_.layers[i];
      if (i == 0) embed(member);
      norm(member, i, kAttentionNorm, layer.attention_norm, layer.qkv);
      d_.team.barrier();
      shrink(member, i, kForQkv, normed_, s_.hidden_size);
      project(member, layer.qkv, i);
      d_.team.barrier();
      if (rows_ > step_.sequences) {
        rotate(member, i);
        d_.team.barrier();
      }
      attend(member, i);
      d_.team.barrier();
      quantise(member, layer.o, attended_);
      shrink(member, i, kForO, attended_, s_.heads * s_.head_size);
      add_to_residual(member, layer.o, i, kO, attended_);
      d_.team.barrier();
      add_normed(member, i, kPostAttentionNorm, layer.post_attention_norm);
      norm(member, i, kMlpNorm, layer.mlp_norm, layer.gate_up);
      d_.team.barrier();
      shrink(member, i, kForGateUp, normed_, s_.hidden_size);
      activate(member, layer.gate_up, i);
      d_.team.barrier();
      quantise(member, layer.down, activated_);
      shrink(member, i, kForDown, activated_, s_.intermediate_size);
      add_to_residual(member, layer.down, i, kDown, activated_);
      d_.team.barrier();
      add_normed(member, i, kPostMlpNorm, layer.post_mlp_norm);
    }
    if (!step_.outputs) return;
    norm_outputs(member);
    d_.team.barrier();
    predict(member);
  }

  void embed(int member) {
    const auto mine = rows_of(d_.team, rows_, member);
    for (int row = mine.begin; row < mine.end; ++row) {
      const bf16* from = d_.embedding + std::ptrdiff_t{step_.tokens[row]} * s_.hidden_size;
      float* to = residual_ + std::ptrdiff_t{row} * residual_stride_;
      for (int i = 0; i < s_.hidden_size; ++i) to[i] = widen(from[i]) * s_.embedding_scale;
      std::fill(to + s_.hidden_size, to + residual_stride_, 0.0f);
      if (altered_.any()) altered_.embed(row, step_.tokens[row], to);
      if (added_) std::fill_n(added_ + std::ptrdiff_t{row} * residual_stride_, residual_stride_, 0.0f);
    }
  }

  void norm(int member, int layer, Norm which, const std::vector<float>& weight, const Linear& next) {
    std::vector<float> own;
    const auto mine = rows_of(d_.team, rows_, member);
    for (int row = mine.begin; row < mine.end; ++row) {
      k_.rms_norm(residual_ + std::ptrdiff_t{row} * residual_stride_, altered_.norm(row, layer, which, weight, own),
                  s_.hidden_size, s_.rms_norm_eps, normed_.row(row));
      if (next.integers()) quantise_row(next, normed_, row);
    }
  }

  // All rows as the integers that a layer multiplies, if it does; returns when every member has done its part.
  void quantise(int member, const Linear& linear, Inputs x) {
    if (!linear.integers()) return;
    const auto mine = rows_of(d_.team, rows_, member);
    for (int row = mine.begin; row < mine.end; ++row) quantise_row(linear, x, row);
    d_.team.barrier();
  }

  void quantise_row(const Linear& linear, Inputs x, int row) {
    const std::ptrdiff_t at = std::ptrdiff_t{row} * plane_stride(linear.inputs);
    const std::ptrdiff_t group = std::ptrdiff_t{row} * linear.groups();
    if (linear.grouped)
      k_.quantise_groups(x.row(row), 2 * linear.pairs(), linear.coding.group, high_plane_ + at, low_plane_ + at,
                         input_scales_ + group, input_sums_ + group);
    else
      k_.quantise(x.row(row), round_up(linear.inputs, kLanes), high_plane_ + at, low_plane_ + at,
                  input_scales_ + group);
  }

  // The shrunk inputs of all rows, for matrices that share an input; returns when every member has done its part.
  void shrink(int member, int layer, int input, Inputs x, int columns) {
    if (!adapted_.any()) return;
    adapted_.shrink(member, layer, input, x, columns);
    d_.team.barrier();
  }

  void project(int member, const Linear& linear, int layer) {
    multiply(d_, member,
             product(linear, layer, kQ, normed_, Finish::kPut, floats(projected_, projected_stride_), kFloats));
  }

  // To the residual, or to what add_normed adds to it.
  void add_to_residual(int member, const Linear& linear, int layer, int part, Inputs x) {
    const Inputs to = floats(added_ ? added_ : residual_, residual_stride_);
    multiply(d_, member, product(linear, layer, part, x, Finish::kAdd, to, kFloats));
  }

  static constexpr std::ptrdiff_t kFloats = kTile * sizeof(float);

  static Inputs floats(float* at, std::ptrdiff_t stride) {
    return {reinterpret_cast<char*>(at), stride * std::ptrdiff_t{sizeof(float)}};
  }

  Product product(const Linear& linear, int layer, int part, Inputs x, Finish::Kind kind, Inputs to,
                  std::ptrdiff_t each) const {
    return {linear, rows_, x, planes(linear), adapted_, altered_, layer, part, kind, to, each};
  }

  Planes planes(const Linear& linear) const {
    return {high_plane_, low_plane_, plane_stride(linear.inputs), linear.groups(), input_scales_, input_sums_};
  }

  // The residual of the member's rows grows by what a layer's part made, normed; that begins at zero again.
  void add_normed(int member, int layer, Norm which, const std::vector<float>& weight) {
    if (weight.empty()) return;
    std::vector<float> own;
    const auto mine = rows_of(d_.team, rows_, member);
    for (int row = mine.begin; row < mine.end; ++row) {
      float* from = added_ + std::ptrdiff_t{row} * residual_stride_;
      float* to = residual_ + std::ptrdiff_t{row} * residual_stride_;
      k_.rms_norm_(from, altered_.norm(row, layer, which, weight, own), s_.hidden_size, s_.rms_norm_eps);
      for (int i = 0; i < s_.hidden_size; ++i) to[i] += from[i];
      std::fill(from, from + s_.hidden_size, 0.0f);
    }
    d_.team.barrier();
  }

  void activate(int member, const Linear& linear, int layer) {
    const Finish::Kind kind = s_.gelu ? Finish::kGeluMul : Finish::kSiluMul;
    multiply(d_, member, product(linear, layer, kGate, normed_, kind, activated_, kTile * k_.input_bytes));
  }

  // The rows of sequences that have several, whose keys all of them may see. Those of other sequences turn when they
  // are attended to.
  void rotate(int member, int layer) {
    const auto mine = rows_of(d_.team, rows_, member);
    for (int row = mine.begin; row < mine.end; ++row)
      for (int head = 0; !alone(sequence_[row]) && head < s_.kv_heads; ++head) rotate(member, layer, row, head);
  }

  void rotate_alone(int member, int layer, const Item& item) {
    if (alone(item.sequence)) rotate(member, layer, item.first_row, item.kv_head);
  }

  // A key-value head's queries and keys turned to the row's position; its key and value into the cache.
  void rotate(int member, int layer, int row, int kv_head) {
    const std::vector<float>&q_norm = d_.layers[layer].q_norm, &k_norm = d_.layers[layer].k_norm;
    const int size = s_.head_size, position = position_[row];
    bf16* rounded = d_.scratch[member].as<bf16>();
    std::vector<float> own;
    float* k = query(row, 0) + q_tiles_ * kTile + kv_head * size;
    const float* v = k + kv_tiles_ * kTile;
    const float* cos_sin = d_.rope.data() + std::ptrdiff_t{position} * size;
    const float* row_q_norm = altered_.norm(row, layer, kQNorm, q_norm, own);
    for (int head = kv_head * group(); head < (kv_head + 1) * group(); ++head) {
      if (!q_norm.empty()) k_.rms_norm_(query(row, head), row_q_norm, size, s_.rms_norm_eps);
      k_.rope(query(row, head), cos_sin, size);
    }
    const int page = page_of(sequence_[row], position / kPageTokens), token = position % kPageTokens;
    bf16* keys = d_.page(layer, page, kv_head);
    bf16* values = keys + kPageTokens * size;
    if (!k_norm.empty()) k_.rms_norm_(k, altered_.norm(row, layer, kKNorm, k_norm, own), size, s_.rms_norm_eps);
    k_.rope(k, cos_sin, size);
    k_.round(k, size, rounded);
    for (int i = 0; i < size; i += 2) std::memcpy(keys + i * kPageTokens + 2 * token, &rounded[i], 2 * sizeof(bf16));
    k_.round(v, size, rounded);
    put_value(values, token, rounded);
    if (!opens_page(row)) return;
    std::fill_n(rounded, size, 0);
    for (int rest = token + 1; rest < kPageTokens; ++rest) put_value(values, rest, rounded);
  }

  void put_value(bf16* values, int token, const bf16* value) const {
    bf16* column = values + token / 2 * 2 * s_.head_size + token % 2;
    for (int i = 0; i < s_.head_size; ++i) column[2 * i] = value[i];
  }

  // The row is the sequence's last one, in a page that this step begins. What a former holder left behind the row may
  // be NaN, and NaN times a weight of zero is NaN: it is cleared.
  bool opens_page(int row) const {
    const int s = sequence_[row], first = step_.context_lens[s] - (step_.row_starts[s + 1] - step_.row_starts[s]);
    return row + 1 == step_.row_starts[s + 1] && position_[row] / kPageTokens * kPageTokens >= first;
  }

  void attend(int member, int layer) {
    const int size = s_.head_size, window = d_.layers[layer].window;
    const std::vector<Item>& items = items_[member];
    const float* q[kMaxQueries];
    void* out[kMaxQueries];
    Span seen[kMaxQueries];
    std::vector<const bf16*> pages;
    for (const Item& item : items) add_pages(item, layer, pages);
    const bf16 *const *own = pages.data(), *const *end = own + pages.size();
    k_.enter_attention();
    if (!items.empty()) rotate_alone(member, layer, items[0]);
    for (std::size_t i = 0; i < items.size(); ++i) {
      // One item ahead: a register cannot be loaded from stores that are on their way.
      if (i + 1 < items.size()) rotate_alone(member, layer, items[i + 1]);
      const Item& item = items[i];
      const int first = first_page(item, layer);
      int count = 0;
      for (int row = item.first_row; row < item.first_row + item.rows; ++row) {
        for (int head = item.kv_head * group(); head < (item.kv_head + 1) * group(); ++head) {
          q[count] = query(row, head);
          out[count] = attended_.from(row).at + std::ptrdiff_t{head} * size * k_.input_bytes;
          const int until = position_[row] + 1 - first * kPageTokens;
          seen[count++] = {std::max(0, until - window), until};
        }
      }
      const int next = last_page(item) + 1 - first;
      k_.attention(q, out, seen, count, own, static_cast<int>(end - own) - next, size, s_.attention_scale,
                   s_.attention_soft_cap, d_.scratch[member].as<char>());
      own += next;
    }
    k_.enter();
  }

  int first_page(const Item& item, int layer) const {
    return std::max(0, position_[item.first_row] + 1 - d_.layers[layer].window) / kPageTokens;
  }

  int last_page(const Item& item) const { return position_[item.first_row + item.rows - 1] / kPageTokens; }

  void add_pages(const Item& item, int layer, std::vector<const bf16*>& pages) const {
    const bf16* first = d_.page(layer, 0, item.kv_head);
    const std::ptrdiff_t each = d_.page(layer, 1, item.kv_head) - first;
    for (int page = first_page(item, layer), last = last_page(item); page <= last; ++page)
      pages.push_back(first + page_of(item.sequence, page) * each);
  }

  void norm_outputs(int member) {
    std::vector<float> own;
    const auto mine = d_.team.share(step_.outputs, member);
    for (int i = mine.begin; i < mine.end; ++i) {
      k_.rms_norm(residual_ + std::ptrdiff_t{step_.output_rows[i]} * residual_stride_,
                  altered_outputs_.norm(i, kHead, kAttentionNorm, d_.norm, own), s_.hidden_size, s_.rms_norm_eps,
                  outputs_.row(i));
      if (d_.head.integers()) quantise_row(d_.head, outputs_, i);
    }
    if (!adapted_outputs_.any()) return;
    d_.team.barrier();
    adapted_outputs_.shrink(member, kHead, 0, outputs_, s_.hidden_size);
  }

  void predict(int member) {
    Best* best = best_.data() + std::ptrdiff_t{member} * step_.outputs;
    alignas(64) float capped[kTile];
    const Product logits{.linear = d_.head,
                         .rows = step_.outputs,
                         .x = outputs_,
                         .planes = planes(d_.head),
                         .adapted = adapted_outputs_,
                         .altered = altered_outputs_,
                         .layer = kHead,
                         .part = 0};
    multiply(d_, member, logits, [&](int unit, int first, int count, const float* out) {
      const int column = unit * kTile, columns = std::min(kTile, s_.vocab_size - column);
      for (int row = 0; row < count; ++row) {
        const float* logits = out + row * kTile;
        if (s_.logit_soft_cap) {
          std::copy(logits, logits + kTile, capped);
          k_.soft_cap_(capped, kTile, s_.logit_soft_cap);
          logits = capped;
        }
        best[first + row].take(k_, logits, column, columns);
        if (logits_)
          std::memcpy(logits_ + std::ptrdiff_t{first + row} * s_.vocab_size + column, logits, sizeof(float) * columns);
      }
    });
  }

  // ---- after them ---------------------------------------------------------------------------------------------------

  struct Best {
    float value;
    int token;
    bool finite;

    void take(const Kernels& kernels, const float* logits, int column, int columns) {
      alignas(64) float shorter[kTile];
      if (columns < kTile) {  // the vocabulary's end: repeat what is there
        std::fill(std::copy(logits, logits + columns, shorter), shorter + kTile, logits[0]);
        logits = shorter;
      }
      // Of equals the lowest token is wanted, in whatever order tiles come.
      const float most = column < token ? std::nextafter(value, -INFINITY) : value;
      float found = most;
      int index;
      finite = kernels.largest(logits, kTile, &found, &index) && finite;
      if (found > most) *this = {found, column + index, finite};
    }
  };

  void choose() {
    for (int i = 0; i < step_.outputs; ++i) {
      Best all{-INFINITY, -1, true};
      for (int member = 0; member < d_.team.size(); ++member) {
        const Best& one = best_[std::ptrdiff_t{member} * step_.outputs + i];
        all.finite &= one.finite;
        if (one.value > all.value || (one.value == all.value && one.token < all.token))
          all = {one.value, one.token, all.finite};
      }
      step_.chosen[i] = all.finite ? all.token : -1;
    }
  }

  void draw(int member) {
    const auto mine = d_.team.share(step_.outputs, member);
    for (int i = mine.begin; i < mine.end; ++i) {
      if (step_.temperature[i] == 0 || step_.chosen[i] < 0) continue;
      const Sampling sampling{step_.temperature[i], step_.top_p[i], step_.top_k[i],
                              static_cast<std::uint64_t>(step_.seed[i]), static_cast<std::uint32_t>(step_.position[i])};
      step_.chosen[i] = sample(k_, logits_ + std::ptrdiff_t{i} * s_.vocab_size, s_.vocab_size, sampling);
    }
  }

  bool alone(int sequence) const { return step_.row_starts[sequence + 1] - step_.row_starts[sequence] == 1; }
  int group() const { return s_.heads / s_.kv_heads; }
  int page_of(int sequence, int index) const { return step_.pages[step_.page_starts[sequence] + index]; }
  float* query(int row, int head) const {
    return projected_ + std::ptrdiff_t{row} * projected_stride_ + head * s_.head_size;
  }

  Decoder& d_;
  const Shape& s_;
  const Kernels& k_;
  const Step& step_;
  const int rows_;
  const std::vector<int> sequence_, output_sequence_;
  std::vector<int> position_;
  const AdaptedRows adapted_, adapted_outputs_;
  const AlteredRows altered_, altered_outputs_;
  std::vector<std::vector<Item>> items_;  // by member
  int residual_stride_, projected_stride_, q_tiles_, kv_tiles_;
  std::uint8_t *high_plane_ = nullptr, *low_plane_ = nullptr;  // of what the next layer multiplies
  float *input_scales_ = nullptr, *input_sums_ = nullptr;
  float *residual_, *added_ = nullptr, *projected_, *logits_;
  Inputs normed_, attended_, activated_, outputs_;
  std::vector<Best> best_;
};

}  // namespace

void Decoder::step(const Step& step) { Pass(*this, step).run(); }

}  // namespace openlora
