// Event-driven simulation of the exact Markov chain of a cluster, one GPU at a time ([Lin26] sections 2 and 4).
//
// Nothing is lumped and nothing is shared with jaxq: every GPU keeps its own running prefill and its own decodes, so
// that this program is both the speed to beat and an oracle for the law.
//
// Every event costs O(number of classes), whatever the number of GPUs. A running prefill or decode is a GPU's number
// in the list of its class; it only ever leaves when it is the one drawn, so removal is "move the last into the gap"
// and needs no back pointers. A mode switch changes two totals a class and no list: decodes are drawn at their faster
// rate, and one on a GPU in the slower mode is let through with the ratio of the rates (thinning, which is exact).
//
// Compiled once for each number of classes, with -DN_CLASSES=...; -DCHECK_INVARIANTS recomputes the whole state
// from the GPUs after every event and counts what disagrees.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#ifndef N_CLASSES
#define N_CLASSES 2
#endif

namespace {

constexpr int kClasses = N_CLASSES;
constexpr int kNoClass = -1;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kTie = 1e-6;  // relative difference up to which two values of X_i / x*_i are tied

using Index = std::uint32_t;
using Rates = std::array<double, kClasses>;
using Counts = std::array<std::int32_t, kClasses>;

enum class Gate { occupancy, score, proportional };
enum class Router { solo_first, randomised, immediate, prefill_first, packing };

struct Policy {
  bool partition;
  Gate gate;
  Router router;
};

// In the order of POLICIES in __init__.py.
constexpr Policy kPolicies[] = {
    {true, Gate::occupancy, Router::solo_first},      // gate_and_route
    {true, Gate::occupancy, Router::randomised},      // sli_gate_and_route
    {true, Gate::score, Router::solo_first},          // prioritize_and_route
    {false, Gate::proportional, Router::immediate},   // sarathi
    {false, Gate::occupancy, Router::immediate},      // gate_immediate
    {false, Gate::occupancy, Router::prefill_first},  // gate_fcfs
    {true, Gate::proportional, Router::solo_first},   // fcfs_route
    {false, Gate::score, Router::packing},            // price_and_pack
};

// What __init__.py passes; the fields and their order are repeated there.
struct Parameters {
  Rates arrival_rate;      // of the cluster, n lambda_i, 1/s
  Rates patience_rate;     // theta_i, 1/s
  Rates mu_prefill;        // 1/s
  Rates mu_mixed;          // 1/s
  Rates mu_solo;           // 1/s
  Rates plan_prefills;     // x*_i, per GPU
  Rates plan_waiting;      // n q*_p,i
  Rates score;             // of the static gates: the class with the largest starts
  Rates solo_probability;  // of the randomised router, p_s,i
  Rates solo_weight;       // of a class in the buffer of the solo group, when `weighted`
  Rates mixed_weight;      // likewise, of the mixed group
  double horizon;          // s
  double warmup;           // s
  std::int64_t n_gpus;
  std::int64_t batch_size;
  std::int64_t mixed_gpus;  // M, GPUs 0 to M - 1 form the mixed group of a partition
  std::int64_t policy;      // index into kPolicies
  std::int64_t weighted;    // whether freed slots of the randomised router draw by weight, not in proportion to counts
};

// One row a replication; the fields and their order are repeated in __init__.py.
struct Result {
  Rates arrivals, prefill_completions, completions, abandonments_prefill, abandonments_decode;  // after the warm-up
  Rates x, y_mixed, y_solo, q_prefill, q_decode;                                                 // time averages
  Rates start_x, start_y, start_q_prefill, start_q_decode;                                       // when it ends
  Rates end_x, end_y, end_q_prefill, end_q_decode;                                               // at the horizon
  double events, faults;                                                                         // of the whole run
};

std::uint64_t split_mix(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// xoshiro256++ (Blackman and Vigna, 2019), seeded by splitmix64.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream) {
    std::uint64_t state = seed;
    state = split_mix(state) + stream;
    state = split_mix(state);
    for (auto& word : state_) word = split_mix(state);
  }

  // On [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  // With mean 1.
  double exponential() { return -std::log(static_cast<double>((next() >> 11) + 1) * 0x1p-53); }

  // 0, ..., size - 1, each with the same probability to 2^-64 size.
  Index below(Index size) { return static_cast<Index>((static_cast<unsigned __int128>(next()) * size) >> 64); }

 private:
  static std::uint64_t rotate(std::uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

  std::uint64_t next() {
    const std::uint64_t result = rotate(state_[0] + state_[3], 23) + state_[0];
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = rotate(state_[3], 45);
    return result;
  }

  std::array<std::uint64_t, 4> state_;
};

// A set of GPUs with a uniform draw.
class Pool {
 public:
  explicit Pool(Index n_gpus) : position_(n_gpus, kAbsent) { members_.reserve(n_gpus); }

  bool empty() const { return members_.empty(); }
  bool contains(Index gpu) const { return position_[gpu] != kAbsent; }
  Index draw(Random& random) const { return members_[random.below(static_cast<Index>(members_.size()))]; }

  void set(Index gpu, bool member) {
    if (member == contains(gpu)) return;
    if (member) {
      position_[gpu] = static_cast<Index>(members_.size());
      members_.push_back(gpu);
    } else {
      const Index last = members_.back();
      members_[position_[gpu]] = last;
      position_[last] = position_[gpu];
      position_[gpu] = kAbsent;
      members_.pop_back();
    }
  }

 private:
  static constexpr Index kAbsent = std::numeric_limits<Index>::max();
  std::vector<Index> members_, position_;
};

// Counts by class whose time integrals are wanted. A change by d at time s adds d (T - s) to the integral up to T, so
// only the changes are summed, weighted by their times.
class Level {
 public:
  const Counts& counts() const { return counts_; }
  std::int32_t operator[](int i) const { return counts_[i]; }

  void add(int i, std::int32_t change, double time) {
    counts_[i] += change;
    moment_[i] += change * time;
  }

  void restart(double time) {
    for (int i = 0; i < kClasses; ++i) moment_[i] = counts_[i] * time;
  }

  double integral(int i, double time) const { return counts_[i] * time - moment_[i]; }

 private:
  Counts counts_{};
  Rates moment_{};
};

struct Gpu {
  std::array<std::int16_t, kClasses> decodes{};
  std::int16_t n_decodes = 0;
  std::int16_t prefill = kNoClass;
};

double total_rate(const Rates& rates, const Counts& counts) {
  double total = 0;
  for (int i = 0; i < kClasses; ++i) total += rates[i] * counts[i];
  return total;
}

// The class in which `level` falls when rates[i] * counts[i] are laid end to end; `level` becomes the rest within it.
int locate(const Rates& rates, const Counts& counts, double& level) {
  int i = 0;
  for (; i + 1 < kClasses; ++i) {
    const double width = rates[i] * counts[i];
    if (level < width) break;
    level -= width;
  }
  return i;
}

template <int kId>
class Chain {
 public:
  Chain(const Parameters& parameters, std::uint64_t seed, std::uint64_t replication)
      : p_(parameters),
        n_gpus_(static_cast<Index>(p_.n_gpus)),
        n_mixed_(static_cast<Index>(p_.mixed_gpus)),
        batch_(static_cast<int>(p_.batch_size)),
        random_(seed, replication),
        gpus_(n_gpus_),
        startable_(n_gpus_),
        room_solo_(kPolicy.partition ? n_gpus_ : 0),
        room_mixed_(n_gpus_) {
    for (int i = 0; i < kClasses; ++i) {
      total_arrival_rate_ += p_.arrival_rate[i];
      fast_decode_[i] = std::max(p_.mu_mixed[i], p_.mu_solo[i]);
      mixed_acceptance_[i] = p_.mu_mixed[i] / fast_decode_[i];
      solo_acceptance_[i] = p_.mu_solo[i] / fast_decode_[i];
      prefill_time_[i] = 1 / p_.mu_prefill[i];
      fast_decode_time_[i] = 1 / fast_decode_[i];
      inverse_plan_[i] = p_.plan_prefills[i] > 0 ? 1 / p_.plan_prefills[i] : kInfinity;
      decodes_[i].reserve(n_gpus_ * 16);
      prefills_[i].reserve(n_gpus_);
    }
    for (Index gpu = 0; gpu < n_gpus_; ++gpu) update_pools(gpu);
  }

  Result run() {
    while (advance(p_.warmup)) {
    }
    start_measuring();
    while (advance(p_.horizon)) {
    }
    return finish();
  }

 private:
  static constexpr Policy kPolicy = kPolicies[kId];
  static constexpr bool kHasBuffer = kPolicy.router != Router::immediate && kPolicy.router != Router::packing;
  static constexpr bool kTwoBuffers = kPolicy.router == Router::randomised;
  static constexpr int kMixedBuffer = kTwoBuffers ? 1 : 0;

  // ---- time and events

  // One event (or none, by thinning) before `end`; false when the next would come later. Its time is kept for the
  // next call, so that stopping for the warm-up draws nothing twice.
  bool advance(double end) {
    if (next_ < 0) next_ = time_ + random_.exponential() / rate();
    if (next_ >= end) return false;
    time_ = next_;
    next_ = -1;
    event(random_.uniform() * rate_);
    return true;
  }

  double rate() {
    decode_rate_ = total_rate(fast_decode_, n_decodes_);
    prefill_rate_ = total_rate(p_.mu_prefill, x_.counts());
    abandonment_rate_ = total_rate(p_.patience_rate, waiting_.counts());
    rate_ = total_arrival_rate_ + decode_rate_ + prefill_rate_ + abandonment_rate_;
    if constexpr (kHasBuffer) rate_ += total_rate(p_.patience_rate, buffer_[0].counts());
    if constexpr (kTwoBuffers) rate_ += total_rate(p_.patience_rate, buffer_[1].counts());
    return rate_;
  }

  // `level` is uniform on [0, rate_): it chooses the kind of event, the class, the one of that class and the thinning.
  void event(double level) {
    if (level < decode_rate_) return decode_event(level);
    level -= decode_rate_;
    if (level < total_arrival_rate_) return arrive(level);
    level -= total_arrival_rate_;
    if (level < prefill_rate_) return prefill_event(level);
    level -= prefill_rate_;
    if (level < abandonment_rate_) return abandon(waiting_, n_waiting_, abandoned_prefill_, level);
    level -= abandonment_rate_;
    if constexpr (kTwoBuffers) {
      const double first = total_rate(p_.patience_rate, buffer_[0].counts());
      if (level >= first) return abandon(buffer_[1], n_buffered_[1], abandoned_decode_, level - first);
    }
    if constexpr (kHasBuffer) abandon(buffer_[0], n_buffered_[0], abandoned_decode_, level);
  }

  void decode_event(double level) {
    const int i = locate(fast_decode_, n_decodes_, level);
    level *= fast_decode_time_[i];
    auto& list = decodes_[i];
    const Index which = static_cast<Index>(level);
    if (which >= list.size()) return;  // rounding at the upper end
    const Index gpu = list[which];
    const double acceptance = is_mixed(gpu) ? mixed_acceptance_[i] : solo_acceptance_[i];
    if (level - which >= acceptance) return;
    list[which] = list.back();
    list.pop_back();
    count_decode(gpu, i, -1);
    --n_decodes_[i];
    ++completed_[i];
    after_decode(gpu);
    counted();
  }

  void arrive(double level) {
    int i = 0;
    for (; i + 1 < kClasses && level >= p_.arrival_rate[i]; ++i) level -= p_.arrival_rate[i];
    ++arrived_[i];
    if (startable_.empty()) {
      waiting_.add(i, 1, time_);
      ++n_waiting_;
    } else {  // then nobody else waits: every GPU that can start a prefill was offered to the gate
      start(startable_.draw(random_), i);
    }
    counted();
  }

  void prefill_event(double level) {
    const int i = locate(p_.mu_prefill, x_.counts(), level);
    auto& list = prefills_[i];
    const Index which = static_cast<Index>(level * prefill_time_[i]);
    if (which >= list.size()) return;  // rounding at the upper end
    const Index gpu = list[which];
    list[which] = list.back();
    list.pop_back();
    x_.add(i, -1, time_);
    ++prefilled_[i];
    after_prefill(gpu, i);
    counted();
  }

  void abandon(Level& queue, std::int32_t& length, Counts& abandoned, double level) {
    const int i = locate(p_.patience_rate, queue.counts(), level);
    if (queue[i] == 0) return;  // rounding at the upper end
    queue.add(i, -1, time_);
    --length;
    ++abandoned[i];
    counted();
  }

  // ---- the order of decisions

  // The class-i prefill on `gpu` is done but `gpu` still counts as mixed, until the gate has had its say: a GPU that
  // goes on with the next prefill does not switch modes.
  void after_prefill(Index gpu, int i) {
    if constexpr (kPolicy.router == Router::immediate) {
      place(gpu, i);
      continue_or_stop(gpu);
      update_pools(gpu);
    } else if constexpr (kPolicy.router == Router::packing) {
      become_solo(gpu);
      update_pools(gpu);
      put(room_mixed_.empty() ? startable_.draw(random_) : room_mixed_.draw(random_), i);
      offer(gpu);
    } else {
      continue_or_stop(gpu);
      update_pools(gpu);
      route(i);
      if constexpr (kPolicy.router == Router::prefill_first) {
        if (n_buffered_[0] > 0 && startable_.contains(gpu)) put(gpu, draw_buffered(0));
      }
    }
  }

  void after_decode(Index gpu) {
    if constexpr (!kHasBuffer) {
      if (!is_mixed(gpu) && n_waiting_ > 0) return start(gpu, take_next());
    } else if constexpr (kPolicy.router == Router::prefill_first) {
      if (!is_mixed(gpu) && n_waiting_ > 0) return start(gpu, take_next());
      if (n_buffered_[0] > 0) return place(gpu, draw_buffered(0));
    } else {
      const int buffer = gpu < n_mixed_ ? kMixedBuffer : 0;
      if (n_buffered_[buffer] > 0) return place(gpu, draw_buffered(buffer));
    }
    update_pools(gpu);
  }

  // After a prefill: the gate's next class takes over the slot, or `gpu` becomes solo.
  void continue_or_stop(Index gpu) {
    const bool has_slot = kPolicy.partition || gpus_[gpu].n_decodes < batch_;
    if (n_waiting_ > 0 && has_slot) {
      run_prefill(gpu, take_next());
    } else {
      become_solo(gpu);
    }
  }

  void offer(Index gpu) {
    if (n_waiting_ > 0 && startable_.contains(gpu)) start(gpu, take_next());
  }

  // ---- the gate

  int take_next() {
    const int i = choose();
    waiting_.add(i, -1, time_);
    --n_waiting_;
    return i;
  }

  int choose() {
    if constexpr (kPolicy.gate == Gate::occupancy) return least_occupied();
    if constexpr (kPolicy.gate == Gate::score) return highest_score();
    return in_proportion(waiting_.counts(), n_waiting_);
  }

  int least_occupied() const {
    Rates occupancy;
    double least = kInfinity;
    for (int i = 0; i < kClasses; ++i) {
      occupancy[i] = inverse_plan_[i] < kInfinity ? x_[i] * inverse_plan_[i] : kInfinity;
      if (waiting_[i] > 0) least = std::min(least, occupancy[i]);
    }
    int best = kNoClass;
    double most = -kInfinity;
    for (int i = 0; i < kClasses; ++i) {
      const double excess = waiting_[i] - p_.plan_waiting[i];
      if (waiting_[i] > 0 && occupancy[i] <= least * (1 + kTie) && excess > most) {
        best = i;
        most = excess;
      }
    }
    return best;
  }

  int highest_score() const {
    int best = kNoClass;
    for (int i = 0; i < kClasses; ++i) {
      if (waiting_[i] > 0 && (best == kNoClass || p_.score[i] > p_.score[best])) best = i;
    }
    return best;
  }

  // A class of one of `total` requests, all equally likely.
  int in_proportion(const Counts& counts, std::int32_t total) {
    auto rest = static_cast<std::int32_t>(random_.below(static_cast<Index>(total)));
    int i = 0;
    for (; rest >= counts[i]; ++i) rest -= counts[i];
    return i;
  }

  // ---- the router

  void route(int i) {
    if constexpr (kTwoBuffers) {
      const bool prefers_solo = random_.uniform() < p_.solo_probability[i];
      const bool solo = n_mixed_ == 0 || (n_mixed_ < n_gpus_ && prefers_solo);
      Pool& room = solo ? room_solo_ : room_mixed_;
      room.empty() ? hold(solo ? 0 : kMixedBuffer, i) : put(room.draw(random_), i);
    } else {
      Pool& solo = kPolicy.partition ? room_solo_ : startable_;
      if (!solo.empty()) return put(solo.draw(random_), i);
      room_mixed_.empty() ? hold(0, i) : put(room_mixed_.draw(random_), i);
    }
  }

  void hold(int buffer, int i) {
    buffer_[buffer].add(i, 1, time_);
    ++n_buffered_[buffer];
  }

  int draw_buffered(int buffer) {
    const Counts& counts = buffer_[buffer].counts();
    int i = kNoClass;
    if constexpr (kTwoBuffers) {
      if (p_.weighted) i = by_weight(counts, buffer == kMixedBuffer ? p_.mixed_weight : p_.solo_weight);
    }
    if (i == kNoClass) i = in_proportion(counts, n_buffered_[buffer]);
    buffer_[buffer].add(i, -1, time_);
    --n_buffered_[buffer];
    return i;
  }

  // One of the classes that wait, with the given weights; none when the weights of all that wait are 0.
  int by_weight(const Counts& counts, const Rates& weights) {
    double total = 0;
    for (int i = 0; i < kClasses; ++i) total += counts[i] > 0 ? weights[i] : 0;
    double level = random_.uniform() * total;
    int last = kNoClass;
    for (int i = 0; i < kClasses; ++i) {
      if (counts[i] == 0 || weights[i] <= 0) continue;
      last = i;
      if (level < weights[i]) break;
      level -= weights[i];
    }
    return last;
  }

  // ---- GPUs

  bool is_mixed(Index gpu) const { return gpus_[gpu].prefill != kNoClass; }

  void count_decode(Index gpu, int i, int change) {
    gpus_[gpu].decodes[i] = static_cast<std::int16_t>(gpus_[gpu].decodes[i] + change);
    gpus_[gpu].n_decodes = static_cast<std::int16_t>(gpus_[gpu].n_decodes + change);
    (is_mixed(gpu) ? y_mixed_ : y_solo_).add(i, change, time_);
  }

  // A class-i decode starts on `gpu`.
  void place(Index gpu, int i) {
    decodes_[i].push_back(gpu);
    ++n_decodes_[i];
    count_decode(gpu, i, 1);
  }

  void put(Index gpu, int i) {
    place(gpu, i);
    update_pools(gpu);
  }

  // A class-i prefill takes the prefill slot of a GPU that counts as mixed.
  void run_prefill(Index gpu, int i) {
    gpus_[gpu].prefill = static_cast<std::int16_t>(i);
    prefills_[i].push_back(gpu);
    x_.add(i, 1, time_);
  }

  void start(Index gpu, int i) {
    move_decodes(gpu, y_solo_, y_mixed_);
    run_prefill(gpu, i);
    update_pools(gpu);
  }

  void become_solo(Index gpu) {
    gpus_[gpu].prefill = kNoClass;
    move_decodes(gpu, y_mixed_, y_solo_);
  }

  void move_decodes(Index gpu, Level& from, Level& to) {
    for (int i = 0; i < kClasses; ++i) {
      const int count = gpus_[gpu].decodes[i];
      from.add(i, -count, time_);
      to.add(i, count, time_);
    }
  }

  void update_pools(Index gpu) {
    const int n_decodes = gpus_[gpu].n_decodes;
    if constexpr (kPolicy.partition) {
      if (gpu < n_mixed_) {
        startable_.set(gpu, !is_mixed(gpu));
        room_mixed_.set(gpu, n_decodes < batch_ - 1);
      } else {
        room_solo_.set(gpu, n_decodes < batch_);
      }
    } else {
      startable_.set(gpu, !is_mixed(gpu) && n_decodes < batch_);
      if constexpr (kPolicy.router != Router::immediate) {
        room_mixed_.set(gpu, is_mixed(gpu) && n_decodes < batch_ - 1);
      }
    }
  }

  // ---- measurement

  void counted() {
    ++events_;
#ifdef CHECK_INVARIANTS
    faults_ += !is_consistent();
#endif
  }

  void start_measuring() {
    for (Level* level : {&x_, &y_mixed_, &y_solo_, &waiting_, &buffer_[0], &buffer_[1]}) level->restart(p_.warmup);
    arrived_ = prefilled_ = completed_ = abandoned_prefill_ = abandoned_decode_ = Counts{};
    for (int i = 0; i < kClasses; ++i) {
      result_.start_x[i] = x_[i];
      result_.start_y[i] = y_mixed_[i] + y_solo_[i];
      result_.start_q_prefill[i] = waiting_[i];
      result_.start_q_decode[i] = buffer_[0][i] + buffer_[1][i];
    }
  }

  Result finish() {
    const double scale = 1 / ((p_.horizon - p_.warmup) * n_gpus_);
    const auto average = [&](const Level& level, int i) { return scale * level.integral(i, p_.horizon); };
    for (int i = 0; i < kClasses; ++i) {
      result_.arrivals[i] = arrived_[i];
      result_.prefill_completions[i] = prefilled_[i];
      result_.completions[i] = completed_[i];
      result_.abandonments_prefill[i] = abandoned_prefill_[i];
      result_.abandonments_decode[i] = abandoned_decode_[i];
      result_.x[i] = average(x_, i);
      result_.y_mixed[i] = average(y_mixed_, i);
      result_.y_solo[i] = average(y_solo_, i);
      result_.q_prefill[i] = average(waiting_, i);
      result_.q_decode[i] = average(buffer_[0], i) + average(buffer_[1], i);
      result_.end_x[i] = x_[i];
      result_.end_y[i] = y_mixed_[i] + y_solo_[i];
      result_.end_q_prefill[i] = waiting_[i];
      result_.end_q_decode[i] = buffer_[0][i] + buffer_[1][i];
    }
    result_.events = static_cast<double>(events_);
    result_.faults = static_cast<double>(faults_);
    return result_;
  }

#ifdef CHECK_INVARIANTS
  // Totals, lists and pools as the GPUs alone would have them, every GPU within its capacity, and no request waiting
  // beside a slot that it may take.
  bool is_consistent() const {
    Counts x{}, y_mixed{}, y_solo{};
    bool good = true, has_startable = false;
    bool has_room[2] = {false, false};
    for (Index g = 0; g < n_gpus_; ++g) {
      const Gpu& gpu = gpus_[g];
      const bool mixed = gpu.prefill != kNoClass;
      const bool in_mixed_group = kPolicy.partition && g < n_mixed_;
      const int slots = in_mixed_group || (mixed && !kPolicy.partition) ? batch_ - 1 : batch_;
      int n_decodes = 0;
      for (int i = 0; i < kClasses; ++i) {
        n_decodes += gpu.decodes[i];
        (mixed ? y_mixed : y_solo)[i] += gpu.decodes[i];
        good = good && gpu.decodes[i] >= 0 && std::count(decodes_[i].begin(), decodes_[i].end(), g) == gpu.decodes[i];
      }
      if (mixed) ++x[gpu.prefill];
      good = good && n_decodes == gpu.n_decodes && n_decodes <= slots && (!kPolicy.partition || !mixed || in_mixed_group);
      const bool startable = !mixed && (kPolicy.partition ? in_mixed_group : n_decodes < batch_);
      good = good && startable == startable_.contains(g);
      has_startable = has_startable || startable;
      if (n_decodes < slots) has_room[kTwoBuffers && in_mixed_group] = true;
    }
    good = good && x == x_.counts() && y_mixed == y_mixed_.counts() && y_solo == y_solo_.counts();
    good = good && !(has_startable && n_waiting_ > 0);
    for (int buffer = 0; buffer < 2; ++buffer) {
      good = good && n_buffered_[buffer] >= 0 && !(has_room[buffer] && n_buffered_[buffer] > 0);
    }
    return good && n_waiting_ >= 0;
  }
#endif

  const Parameters& p_;
  const Index n_gpus_, n_mixed_;
  const int batch_;
  Random random_;

  Rates fast_decode_{}, fast_decode_time_{}, mixed_acceptance_{}, solo_acceptance_{}, prefill_time_{}, inverse_plan_{};
  double total_arrival_rate_ = 0;
  double rate_ = 0, decode_rate_ = 0, prefill_rate_ = 0, abandonment_rate_ = 0;
  double time_ = 0, next_ = -1;

  std::vector<Gpu> gpus_;
  std::array<std::vector<Index>, kClasses> prefills_, decodes_;  // the GPU of every prefill and decode of a class
  Counts n_decodes_{};
  Level x_, y_mixed_, y_solo_, waiting_, buffer_[2];
  std::int32_t n_waiting_ = 0, n_buffered_[2] = {0, 0};

  Pool startable_;   // GPUs that can start a prefill
  Pool room_solo_;   // GPUs of the solo group with a free slot (without a partition: `startable_`)
  Pool room_mixed_;  // GPUs with fewer than B - 1 decodes, of the mixed group or, without a partition, beside a prefill

  Counts arrived_{}, prefilled_{}, completed_{}, abandoned_prefill_{}, abandoned_decode_{};
  std::int64_t events_ = 0, faults_ = 0;
  Result result_{};
};

template <int kId>
Result run_policy(const Parameters& parameters, std::uint64_t seed, std::uint64_t replication) {
  if (parameters.policy != kId) {
    if constexpr (kId > 0) return run_policy<kId - 1>(parameters, seed, replication);
  }
  return Chain<kId>(parameters, seed, replication).run();
}

}  // namespace

extern "C" void run_replication(const Parameters* parameters, std::uint64_t seed, std::uint64_t replication,
                                Result* result) {
  *result = run_policy<static_cast<int>(std::size(kPolicies)) - 1>(*parameters, seed, replication);
}
