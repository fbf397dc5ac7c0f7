// The native half of the CXXRTL engine: the clock loop, the streams and the checks.
//
// Compiled once, for all designs: it knows of a design only what mxhw_design() tells, which
// _split.py writes beside the code of Yosys. Python calls in once per run, not once per cycle. The
// behaviour, draw for draw, is that of mxhw/cosim/pysim.py.

#include <cxxrtl/cxxrtl_vcd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

// Makes the design's class; tells where its clock and the clock's last level are, each null if there
// is none, and whether one evaluation may not settle it.
cxxrtl::module *mxhw_design(uint32_t **clock, uint32_t **last_clock, bool *deltas);

namespace {

enum Role { INPUT = 0, OUTPUT = 1, PROBE = 2 };
enum Stop { DONE = 0, LIMIT = 1, VALID_DROPPED = 2, PAYLOAD_CHANGED = 3, ASSERTION = 4 };

struct Item {
  uint32_t *curr = nullptr;  // null: a constant 1, or no bits
  uint32_t *next = nullptr;
  cxxrtl::debug_outline *outline = nullptr;
  size_t chunks = 0;

  bool bit() const { return curr == nullptr || (curr[0] & 1); }
};

struct Stream {
  int role;
  bool check, fixed_valid, fixed_ready;
  Item payload, valid, ready;
  uint64_t state, threshold = uint64_t(1) << 53;
  std::vector<uint32_t> rows;
  std::vector<uint64_t> cycles;
  size_t queued = 0, target = 0, done = 0;
  bool offering = false, holding = false;
  std::vector<uint32_t> held;

  // SplitMix64, as in mxhw/cosim/_random.py.
  bool draw() {
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return ((z ^ (z >> 31)) >> 11) < threshold;
  }
  bool satisfied() const { return done >= (role == INPUT ? queued : target); }
};

struct Performer : cxxrtl::performer {
  bool failed = false;
  std::string message;

  void on_check(cxxrtl::flavor type, bool condition, const cxxrtl::lazy_fmt &formatter,
                const cxxrtl::metadata_map &) override {
    bool checked = type == cxxrtl::flavor::ASSERT || type == cxxrtl::flavor::ASSUME;
    if (!checked || condition || failed) return;
    failed = true;
    message = formatter();
  }
};

struct Simulation {
  uint32_t *clock = nullptr, *last_clock = nullptr;
  bool deltas = false;
  std::unique_ptr<cxxrtl::module> top;
  cxxrtl::debug_items items;
  Performer performer;
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<cxxrtl::debug_outline *> outlines;  // those that streams need in each cycle
  uint64_t cycles = 0;
  int stopped_by = 0;
  std::unique_ptr<cxxrtl::vcd_writer> vcd;
  std::FILE *vcd_file = nullptr;
  uint64_t vcd_begin = 0, vcd_end = 0;

  Simulation() : top(mxhw_design(&clock, &last_clock, &deltas)) {
    top->debug_info(&items, nullptr, "");
    top->step(&performer);
  }
  ~Simulation() { close_vcd(); }

  const cxxrtl::debug_item *find(const char *name) {
    auto found = items.table.find(name);
    return found == items.table.end() || found->second.size() != 1 ? nullptr : &found->second[0];
  }

  Item item(const char *name) {
    Item result;
    const cxxrtl::debug_item *object = name != nullptr ? find(name) : nullptr;
    if (object == nullptr) return result;
    result.curr = object->curr;
    result.next = object->next;
    result.outline = object->outline;
    result.chunks = (object->width + 31) / 32;
    if (result.outline != nullptr) {
      bool known = false;
      for (auto *outline : outlines) known |= outline == result.outline;
      if (!known) outlines.push_back(result.outline);
    }
    return result;
  }

  void drive(Stream &s) {
    if (s.role == INPUT) {
      if (!s.offering && s.done < s.queued) {
        s.offering = s.fixed_valid || s.draw();
        if (s.offering)
          std::copy_n(&s.rows[s.done * s.payload.chunks], s.payload.chunks, s.payload.next);
      }
      if (s.valid.next != nullptr) s.valid.next[0] = s.offering;
    } else if (s.role == OUTPUT) {
      bool ready = s.done < s.target && (s.fixed_ready || s.draw());
      if (s.ready.next != nullptr) s.ready.next[0] = ready;
    }
  }

  int sample(Stream &s) {
    if (s.role == INPUT) {
      if (s.offering && s.ready.bit()) {
        s.offering = false;
        s.done++;
        s.cycles.push_back(cycles);
      }
      return DONE;
    }
    if (!s.valid.bit()) return s.holding ? VALID_DROPPED : DONE;
    const uint32_t *payload = s.payload.curr;
    const size_t chunks = s.payload.chunks;
    if (s.holding && !std::equal(payload, payload + chunks, s.held.begin())) return PAYLOAD_CHANGED;
    if (s.ready.bit()) {
      s.holding = false;
      s.rows.insert(s.rows.end(), payload, payload + chunks);
      s.done++;
      s.cycles.push_back(cycles);
    } else if (s.check && !s.fixed_valid && !s.holding) {
      s.holding = true;
      s.held.assign(payload, payload + chunks);
    }
    return DONE;
  }

  int sample_all() {
    for (auto *outline : outlines) outline->eval();
    for (size_t index = 0; index < streams.size(); index++) {
      int stop = sample(*streams[index]);
      if (stop != DONE) {
        stopped_by = int(index);
        return stop;
      }
    }
    return DONE;
  }

  void set_clock(bool value) {
    if (clock != nullptr) *clock = value;
  }

  // The clock falls, the design settles, everything is sampled, the clock rises, and so on.
  int slow_cycle(bool sampled) {
    bool traced = vcd_file != nullptr && cycles >= vcd_begin;
    set_clock(false);
    top->step(&performer);
    if (traced) write_vcd(cycles * 1000);
    int stop = sampled ? sample_all() : int(DONE);
    if (stop != DONE || performer.failed) return stop;
    set_clock(true);
    top->step(&performer);
    if (traced) {
      top->step(&performer);
      write_vcd(cycles * 1000 + 500);
    }
    return DONE;
  }

  // One evaluation does both: it computes what the design shows before the edge from the present
  // state, and the next state, which commit() then makes the present one.
  int fast_cycle(bool sampled) {
    if (last_clock != nullptr) {
      *clock = 1;
      *last_clock = 0;
    }
    top->eval(&performer);
    int stop = sampled ? sample_all() : int(DONE);
    if (stop != DONE) return stop;
    top->commit();
    return DONE;
  }

  int cycle(bool sampled) {
    bool traced = vcd_file != nullptr && cycles >= vcd_begin;
    int stop = deltas || traced ? slow_cycle(sampled) : fast_cycle(sampled);
    if (performer.failed) return ASSERTION;
    if (stop != DONE) return stop;
    cycles++;
    if (vcd_file != nullptr && cycles >= vcd_end) close_vcd();
    return DONE;
  }

  bool satisfied(const uint32_t *waits, size_t count) {
    for (size_t index = 0; index < count; index++)
      if (!streams[waits[index]]->satisfied()) return false;
    return true;
  }

  int run(uint64_t limit, const uint32_t *waits, size_t count) {
    for (uint64_t index = 0; index < limit; index++) {
      if (count != 0 && satisfied(waits, count)) return DONE;
      for (auto &s : streams) drive(*s);
      int stop = cycle(true);
      if (stop != DONE) return stop;
    }
    return satisfied(waits, count) ? DONE : LIMIT;
  }

  void reset() {
    for (auto &s : streams) {
      s->offering = s->holding = false;
      if (s->role == INPUT) {
        s->queued = s->done;
        s->rows.resize(s->queued * s->payload.chunks);
        if (s->valid.next != nullptr) s->valid.next[0] = 0;
      } else if (s->role == OUTPUT) {
        s->target = s->done;
        if (s->ready.next != nullptr) s->ready.next[0] = 0;
      }
    }
    Item rst = item("rst");
    if (rst.next != nullptr) rst.next[0] = 1;
    cycle(false);
    if (rst.next != nullptr) rst.next[0] = 0;
  }

  bool open_vcd(const char *path, uint64_t begin, uint64_t end) {
    vcd_file = std::fopen(path, "w");
    vcd_begin = begin;
    vcd_end = end;
    return vcd_file != nullptr;
  }

  void write_vcd(uint64_t time) {
    if (vcd == nullptr) {
      vcd.reset(new cxxrtl::vcd_writer);
      vcd->timescale(1, "ns");
      vcd->add_without_memories(items);
    }
    vcd->sample(time);
    std::fwrite(vcd->buffer.data(), 1, vcd->buffer.size(), vcd_file);
    vcd->buffer.clear();
  }

  void close_vcd() {
    if (vcd_file != nullptr) std::fclose(vcd_file);
    vcd_file = nullptr;
    vcd.reset();
  }
};

Simulation *sim(void *handle) { return static_cast<Simulation *>(handle); }
Stream &stream(void *handle, uint32_t number) { return *sim(handle)->streams[number]; }

}  // namespace

extern "C" {

void *mxhw_create() { return new Simulation; }

void mxhw_destroy(void *handle) { delete sim(handle); }

// Names are null where the signature promises the constant 1.
void mxhw_add_stream(void *handle, int role, const char *payload, const char *valid,
                     const char *ready, uint64_t state, int check) {
  std::unique_ptr<Stream> s(new Stream);
  s->role = role;
  s->check = check != 0;
  s->fixed_valid = valid == nullptr;
  s->fixed_ready = ready == nullptr;
  s->payload = sim(handle)->item(payload);
  s->valid = sim(handle)->item(valid);
  s->ready = sim(handle)->item(ready);
  s->state = state;
  sim(handle)->streams.push_back(std::move(s));
}

void mxhw_put(void *handle, uint32_t number, const uint32_t *rows, size_t count) {
  Stream &s = stream(handle, number);
  s.rows.insert(s.rows.end(), rows, rows + count * s.payload.chunks);
  s.queued += count;
}

void mxhw_collect(void *handle, uint32_t number, size_t count) {
  stream(handle, number).target += count;
}

void mxhw_stalls(void *handle, uint32_t number, uint64_t threshold, const uint64_t *state) {
  Stream &s = stream(handle, number);
  s.threshold = threshold;
  if (state != nullptr) s.state = *state;
}

int mxhw_run(void *handle, uint64_t limit, const uint32_t *waits, size_t count) {
  return sim(handle)->run(limit, waits, count);
}

void mxhw_reset(void *handle) { sim(handle)->reset(); }

uint64_t mxhw_cycles(void *handle) { return sim(handle)->cycles; }

int mxhw_stopped_by(void *handle) { return sim(handle)->stopped_by; }

const char *mxhw_message(void *handle) { return sim(handle)->performer.message.c_str(); }

uint64_t mxhw_count(void *handle, uint32_t number) { return stream(handle, number).done; }

void mxhw_fetch(void *handle, uint32_t number, size_t start, size_t count, uint32_t *out) {
  Stream &s = stream(handle, number);
  std::copy_n(s.rows.begin() + start * s.payload.chunks, count * s.payload.chunks, out);
}

void mxhw_fetch_cycles(void *handle, uint32_t number, uint64_t *out) {
  Stream &s = stream(handle, number);
  std::copy(s.cycles.begin(), s.cycles.end(), out);
}

// 0 if there is no such object, otherwise its number of 32-bit chunks plus 1.
size_t mxhw_size(void *handle, const char *name) {
  const cxxrtl::debug_item *object = sim(handle)->find(name);
  return object == nullptr ? 0 : (object->width + 31) / 32 * object->depth + 1;
}

void mxhw_peek(void *handle, const char *name, uint32_t *out) {
  const cxxrtl::debug_item *object = sim(handle)->find(name);
  sim(handle)->top->step(&sim(handle)->performer);
  if (object->outline != nullptr) object->outline->eval();
  std::copy_n(object->curr, (object->width + 31) / 32, out);
}

void mxhw_poke(void *handle, const char *name, const uint32_t *value) {
  const cxxrtl::debug_item *object = sim(handle)->find(name);
  std::copy_n(value, (object->width + 31) / 32, object->next);
}

void mxhw_memory_write(void *handle, const char *name, size_t offset, size_t count,
                       const uint32_t *rows) {
  const cxxrtl::debug_item *object = sim(handle)->find(name);
  const size_t chunks = (object->width + 31) / 32;
  std::copy_n(rows, count * chunks, object->curr + offset * chunks);
}

void mxhw_memory_read(void *handle, const char *name, size_t offset, size_t count,
                      uint32_t *rows) {
  const cxxrtl::debug_item *object = sim(handle)->find(name);
  const size_t chunks = (object->width + 31) / 32;
  std::copy_n(object->curr + offset * chunks, count * chunks, rows);
}

int mxhw_waveform(void *handle, const char *path, uint64_t begin, uint64_t end) {
  return sim(handle)->open_vcd(path, begin, end);
}

}  // extern "C"
