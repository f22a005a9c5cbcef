/* Loaded before libc into a server whose wall clock a test sets: adds the microseconds in a file, which the test may change
   at any time, to the time. The monotonic clock is not touched. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *offset;

__attribute__((constructor)) static void open_offset(void) {
  const char *path = getenv("SANDBOX_CLOCK_OFFSET");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  if (page != MAP_FAILED) offset = page;
  close(file);
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  (void)zone;
  struct timespec real;
  if (syscall(SYS_clock_gettime, CLOCK_REALTIME, &real)) return -1;
  int64_t micros = (int64_t)real.tv_sec * 1000000 + real.tv_nsec / 1000 + (offset ? *offset : 0);
  time->tv_sec = micros / 1000000;
  time->tv_usec = micros % 1000000;
  return 0;
}

time_t time(time_t *into) {
  struct timeval now;
  gettimeofday(&now, NULL);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}
