#include <stdint.h>

/* The checksum of all sources, given by the build: library.py refuses a library built from other sources. */
#ifndef MADE_FROM
#define MADE_FROM 0u
#endif
const uint32_t made_from = MADE_FROM;
