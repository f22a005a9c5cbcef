/* Host names for one process, from a file with a line "name address" for each; read anew at every look-up. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int resolve(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  resolve *real = (resolve *)dlsym(RTLD_NEXT, "getaddrinfo");
  const char *path = getenv("SANDBOX_HOST_NAMES");
  char name[256], address[64];
  FILE *file = node && path ? fopen(path, "r") : NULL;
  int known = 0;
  if (!real) return EAI_SYSTEM;
  while (file && !known && fscanf(file, "%255s %63s", name, address) == 2) known = strcmp(name, node) == 0;
  if (file) fclose(file);
  return real(known ? address : node, service, hints, found);
}
