// A thread's working memory.

#pragma once

#include <cstdint>
#include <cstdlib>

namespace {

constexpr int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// One block of memory, cut into aligned parts: laid out once to know its size, and once more for the addresses.
class Arena {
    char *memory = nullptr;
    int64_t used = 0;

  public:
    template <class T> void take(T *&part, int64_t count) {
        part = reinterpret_cast<T *>(memory + used);
        used += up(count * static_cast<int64_t>(sizeof(T)), 64);
    }
    bool allocate() {
        memory = static_cast<char *>(std::aligned_alloc(64, used ? up(used, 64) : 64));  // of nothing it may give null
        used = 0;
        return memory;
    }
    Arena() = default;
    ~Arena() { std::free(memory); }
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
};

}  // namespace
