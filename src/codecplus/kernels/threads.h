// Threads that share the turns of a loop. They sleep between loops, and a loop waits only for those that took part.
// OpenMP's would spin at barriers: beside torch's own threads, or another process, that takes the cores from the work.
#pragma once
#include <pthread.h>

#include <atomic>

struct Loop {
  void (*turn)(void*, long);
  void* context;
  long turns;
  std::atomic<long> next;

  void run() {
    for (long i = next++; i < turns; i = next++) turn(context, i);
  }
};

struct Workers {
  pthread_mutex_t in_use;  // by one loop at a time
  pthread_mutex_t lock;    // of all that follows
  pthread_cond_t wake, done;
  Loop* loop;
  int wanted, working, started;
  bool forks_known;
};
static Workers workers = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER,
                          PTHREAD_COND_INITIALIZER};

static void* work(void*) {
  pthread_mutex_lock(&workers.lock);
  for (;;) {
    while (!workers.wanted) pthread_cond_wait(&workers.wake, &workers.lock);
    workers.wanted--;
    workers.working++;
    Loop* loop = workers.loop;
    pthread_mutex_unlock(&workers.lock);
    loop->run();
    pthread_mutex_lock(&workers.lock);
    if (!--workers.working) pthread_cond_signal(&workers.done);
  }
  return nullptr;
}

// A forked child has none of the threads, and the locks as they happened to be.
static void forget_workers() {
  const bool forks_known = workers.forks_known;
  workers = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER};
  workers.forks_known = forks_known;
}

static void start_workers(int count) {
  if (!workers.forks_known) workers.forks_known = !pthread_atfork(nullptr, nullptr, forget_workers);
  while (workers.started < count) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, work, nullptr)) return;  // fewer do the same
    pthread_detach(thread);
    workers.started++;
  }
}

// Runs body(i) for i from 0 to `turns`, in any order, on up to `threads` threads, this one among them.
template <class F>
static void in_turns(long turns, int threads, F body) {
  Loop loop = {[](void* context, long i) { (*(F*)context)(i); }, &body, turns, {0}};
  // Where several threads of a process have loops at once, each of the others runs its own alone.
  if (threads < 2 || turns < 2 || pthread_mutex_trylock(&workers.in_use)) {
    loop.run();
    return;
  }
  const int helpers = (turns < threads ? turns : threads) - 1;
  pthread_mutex_lock(&workers.lock);
  start_workers(helpers);
  workers.loop = &loop;
  workers.wanted = helpers;
  pthread_cond_broadcast(&workers.wake);
  pthread_mutex_unlock(&workers.lock);
  loop.run();
  pthread_mutex_lock(&workers.lock);
  workers.wanted = 0;  // those that did not wake up in time are not waited for
  while (workers.working) pthread_cond_wait(&workers.done, &workers.lock);
  pthread_mutex_unlock(&workers.lock);
  pthread_mutex_unlock(&workers.in_use);
}
