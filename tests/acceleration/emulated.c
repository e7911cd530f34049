// Calls one function of a library with arguments from a file, and writes its buffers to another: emulated LIBRARY FUNCTION IN OUT.
// The file has the number of arguments; for each of them its kind and a number: 0 and a value, or the bytes that follow it.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char** names) {
  if (count != 5) return 2;
  void* library = dlopen(names[1], RTLD_NOW);
  void (*function)() = library ? (void (*)())dlsym(library, names[2]) : 0;
  FILE* in = fopen(names[3], "rb");
  FILE* out = fopen(names[4], "wb");
  if (!function || !in || !out) return 2;
  int64_t number = 0, a[24] = {0}, sizes[24] = {0};
  if (fread(&number, 8, 1, in) != 1 || number > 24) return 2;
  for (int i = 0; i < number; i++) {
    int64_t head[2];
    if (fread(head, 8, 2, in) != 2) return 2;
    a[i] = head[1];
    if (head[0]) {
      sizes[i] = head[1];
      a[i] = (int64_t)aligned_alloc(64, (sizes[i] + 127) / 64 * 64);
      if (fread((void*)a[i], 1, sizes[i], in) != (size_t)sizes[i]) return 2;
    }
  }
  function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17],
           a[18], a[19], a[20], a[21], a[22], a[23]);
  for (int i = 0; i < number; i++) fwrite((void*)a[i], 1, sizes[i], out);
  return fclose(out);
}
