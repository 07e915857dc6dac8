#ifndef KEYPLANE_BEARSSL_H
#define KEYPLANE_BEARSSL_H

#include <stddef.h>
#include <stdint.h>

// Loads the library and returns whether it can be used.
int keyplane_bearssl_load(const char *soname);

// out holds n + 16 bytes and is in, or does not overlap it.
void keyplane_bearssl_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *in, size_t n, const uint8_t *aad, size_t aad_len, uint8_t *out);

// in holds n + 16 bytes, out n. Returns whether the tag matches; where it does not, out is zero.
int keyplane_bearssl_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *in, size_t n, const uint8_t *aad, size_t aad_len, uint8_t *out);

#endif
