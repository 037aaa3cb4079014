// Work shared by threads: torch's own, so that its threads and ours never compete for the cores.
//
// torch brings an OpenMP runtime, and all of them (libgomp, libomp, libiomp5) start a region by GOMP_parallel. It is looked
// up as the library is loaded and not linked, as a second runtime would bring a second set of threads. Where there is none,
// as in the program that the sanitizers run, threads are made for each call.

#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

extern "C" void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags) __attribute__((weak));

namespace dither {

// ``work(i)`` for i in [0, count), each by one thread, in any order; ``enter()`` and ``leave()`` once in each thread.
template <class Work, class Enter, class Leave>
void shared(int64_t count, int64_t threads, const Work& work, const Enter& enter, const Leave& leave) {
    struct State {
        const Work& work;
        const Enter& enter;
        const Leave& leave;
        int64_t count;
        std::atomic<int64_t> next{0};
        std::atomic<bool> failed{false};
    } state{work, enter, leave, count};
    const auto run = [](void* data) {
        State& s = *static_cast<State*>(data);
        s.enter();
        try {  // nothing may be thrown across the runtime
            for (int64_t i; (i = s.next.fetch_add(1, std::memory_order_relaxed)) < s.count;) s.work(i);
        } catch (...) {
            s.failed = true;
        }
        s.leave();
    };
    if (threads > count) threads = count;
    if (threads <= 1) {
        run(&state);
    } else if (GOMP_parallel != nullptr) {
        GOMP_parallel(run, &state, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> others;
        for (int64_t t = 1; t < threads; ++t) others.emplace_back(run, static_cast<void*>(&state));
        run(&state);
        for (std::thread& t : others) t.join();
    }
    if (state.failed) throw std::bad_alloc();
}

template <class Work>
void shared(int64_t count, int64_t threads, const Work& work) {
    shared(count, threads, work, [] {}, [] {});
}

// Memory that is kept for the next call of the same thread, and begins at a line of the cache.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { ::operator delete(at_, std::align_val_t{64}); }

    template <class T>
    T* of(int64_t count) {
        const size_t bytes = static_cast<size_t>(count) * sizeof(T) + 64;
        if (bytes > size_) {
            ::operator delete(at_, std::align_val_t{64});
            at_ = nullptr;
            size_ = 0;
            at_ = ::operator new(bytes, std::align_val_t{64});
            size_ = bytes;
        }
        return static_cast<T*>(at_);
    }

  private:
    void* at_ = nullptr;
    size_t size_ = 0;
};

}  // namespace dither
