//go:build cgo && unix

// AES-256-GCM by libcrypto's EVP interface. The library is loaded at run time and its prototypes are declared here (they are part of its
// stable ABI since 3.0), so that neither its headers are needed to build nor the library to start.
//
// Every thread has one EVP_CIPHER_CTX, made at its first message and freed by the thread's end. A goroutine cannot leave its thread inside a
// cgo call, so the context needs no lock. Each message sets its own key; at its end the zero key is set, which overwrites key schedule,
// hash key and counter block.

#include "libcrypto.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>

// From OpenSSL's evp.h.
#define CTRL_AEAD_GET_TAG 0x10
#define CTRL_AEAD_SET_TAG 0x11
#define TAG_LEN 16

typedef struct evp_cipher_st cipher_t;
typedef struct evp_cipher_ctx_st ctx_t;

static struct {
	cipher_t *(*fetch)(void *libctx, const char *algorithm, const char *properties);
	ctx_t *(*ctx_new)(void);
	void (*ctx_free)(ctx_t *);
	int (*init)(ctx_t *, const cipher_t *, void *engine, const unsigned char *key, const unsigned char *iv, int enc);
	int (*update)(ctx_t *, unsigned char *out, int *out_len, const unsigned char *in, int in_len);
	int (*final)(ctx_t *, unsigned char *out, int *out_len);
	int (*ctrl)(ctx_t *, int type, int arg, void *ptr);
	void (*cleanse)(void *, size_t);
	void (*clear_error)(void);
} lib;

static cipher_t *aes_256_gcm;
static pthread_key_t ctx_of_thread;
static _Thread_local ctx_t *thread_ctx;

static const uint8_t zero_key[32], zero_nonce[12];

static void free_ctx(void *ctx) { lib.ctx_free(ctx); }

// ISO C does not let a void * become a function pointer; POSIX does, and this is how it says to write it.
#define SYMBOL(field, name) (*(void **)(&lib.field) = dlsym(handle, name), lib.field != NULL)

int keyplane_libcrypto_load(const char *soname) {
	void *handle = dlopen(soname, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL) {
		return KEYPLANE_FAILED;
	}
	if (!(SYMBOL(fetch, "EVP_CIPHER_fetch") && SYMBOL(ctx_new, "EVP_CIPHER_CTX_new") && SYMBOL(ctx_free, "EVP_CIPHER_CTX_free") &&
	      SYMBOL(init, "EVP_CipherInit_ex") && SYMBOL(update, "EVP_CipherUpdate") && SYMBOL(final, "EVP_CipherFinal_ex") &&
	      SYMBOL(ctrl, "EVP_CIPHER_CTX_ctrl") && SYMBOL(cleanse, "OPENSSL_cleanse") && SYMBOL(clear_error, "ERR_clear_error"))) {
		dlclose(handle);
		return KEYPLANE_FAILED;
	}
	// Fetched once: the lookup takes locks and is the expensive part of an initialisation by name.
	aes_256_gcm = lib.fetch(NULL, "AES-256-GCM", NULL);
	if (aes_256_gcm == NULL || pthread_key_create(&ctx_of_thread, free_ctx) != 0) {
		lib.clear_error();
		return KEYPLANE_FAILED;
	}
	return KEYPLANE_DONE; // the library and the cipher stay for the life of the process
}

static ctx_t *get_ctx(void) {
	if (thread_ctx != NULL) {
		return thread_ctx;
	}
	ctx_t *ctx = lib.ctx_new();
	if (ctx == NULL) {
		return NULL;
	}
	// GCM's default nonce length is the 12 bytes we use.
	if (lib.init(ctx, aes_256_gcm, NULL, zero_key, zero_nonce, 1) != 1 || pthread_setspecific(ctx_of_thread, ctx) != 0) {
		lib.ctx_free(ctx);
		return NULL;
	}
	return thread_ctx = ctx;
}

// forget overwrites what the context knows of the message: setting a key clears the GCM state (hash key, counter block, hash) and replaces
// the key schedule. No nonce is set, which would cost half as much again. A context that cannot be overwritten is freed, which clears it
// too.
static void forget(ctx_t *ctx) {
	if (lib.init(ctx, NULL, NULL, zero_key, NULL, 1) != 1) {
		pthread_setspecific(ctx_of_thread, NULL);
		thread_ctx = NULL;
		lib.ctx_free(ctx);
	}
}

// start sets key and nonce and takes in the additional data.
static int start(ctx_t *ctx, const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len, int enc) {
	int len;
	return lib.init(ctx, NULL, NULL, key, nonce, enc) == 1 && (aad_len == 0 || lib.update(ctx, NULL, &len, aad, (int)aad_len) == 1);
}

int keyplane_libcrypto_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *in, size_t n, const uint8_t *aad, size_t aad_len, uint8_t *out) {
	if (n > INT_MAX || aad_len > INT_MAX) {
		return KEYPLANE_FAILED;
	}
	ctx_t *ctx = get_ctx();
	if (ctx == NULL) {
		lib.clear_error();
		return KEYPLANE_FAILED;
	}
	int len;
	int done = start(ctx, key, nonce, aad, aad_len, 1) && (n == 0 || (lib.update(ctx, out, &len, in, (int)n) == 1 && (size_t)len == n)) &&
		   lib.final(ctx, out + n, &len) == 1 && lib.ctrl(ctx, CTRL_AEAD_GET_TAG, TAG_LEN, out + n) == 1;
	forget(ctx);
	if (!done) {
		lib.clear_error();
		return KEYPLANE_FAILED;
	}
	return KEYPLANE_DONE;
}

int keyplane_libcrypto_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *in, size_t n, const uint8_t *aad, size_t aad_len, uint8_t *out) {
	ctx_t *ctx = NULL;
	int result = KEYPLANE_FAILED;
	int len;
	unsigned char rest[TAG_LEN]; // GCM's final step writes nothing, but is given a place
	if (n <= INT_MAX && aad_len <= INT_MAX) {
		ctx = get_ctx();
	}
	if (ctx != NULL && start(ctx, key, nonce, aad, aad_len, 0) &&
	    (n == 0 || (lib.update(ctx, out, &len, in, (int)n) == 1 && (size_t)len == n)) &&
	    lib.ctrl(ctx, CTRL_AEAD_SET_TAG, TAG_LEN, (void *)(in + n)) == 1) {
		result = lib.final(ctx, rest, &len) == 1 ? KEYPLANE_DONE : KEYPLANE_REFUSED;
	}
	if (ctx != NULL) {
		forget(ctx);
	}
	if (result != KEYPLANE_DONE) {
		if (n > 0) {
			lib.cleanse(out, n);
		}
		lib.clear_error();
	}
	return result;
}
