#include <stdint.h>

/* The checksum of all files, which whoever compiles them gives: library.py takes no loops of others. */
#ifndef MADE_FROM
#define MADE_FROM 0u
#endif
const uint32_t made_from = MADE_FROM;
