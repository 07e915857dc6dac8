#ifndef KEYPLANE_LIBCRYPTO_H
#define KEYPLANE_LIBCRYPTO_H

#include <stddef.h>
#include <stdint.h>

// Results of the functions below.
enum {
	KEYPLANE_FAILED = -1, // the library refused or has no memory; nothing was sealed or opened
	KEYPLANE_REFUSED = 0, // the tag does not match
	KEYPLANE_DONE = 1
};

int keyplane_libcrypto_load(const char *soname);

// out holds n + 16 bytes and is in, or does not overlap it.
int keyplane_libcrypto_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *in, size_t n, const uint8_t *aad, size_t aad_len, uint8_t *out);

// in holds n + 16 bytes, out n. Unless the result is KEYPLANE_DONE, out is zero.
int keyplane_libcrypto_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *in, size_t n, const uint8_t *aad, size_t aad_len, uint8_t *out);

#endif
