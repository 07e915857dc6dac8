//go:build cgo && unix

// AES-256-GCM by BearSSL's portable constant-time code: br_aes_ct64_ctr (bitsliced AES) and br_ghash_ctmul64 (GHASH by integer
// multiplication), named here explicitly, so that BearSSL's own choice by CPU is out of play. The library is loaded at run time and its
// prototypes are declared here; it keeps its contexts in memory of the caller, which is the stack of the call.

#include "bearssl.h"

#include <dlfcn.h>
#include <string.h>

#define TAG_LEN 16

// Room for br_aes_ct64_ctr_keys (976 bytes on 64-bit platforms) and br_gcm_context (112), generously.
#define AES_ROOM 1280
#define GCM_ROOM 512

typedef void (*ghash_t)(void *y, const void *h, const void *data, size_t len);

static struct {
	void (*aes_init)(void *ctx, const void *key, size_t len);
	ghash_t ghash;
	void (*init)(void *ctx, void *block_ctx, ghash_t ghash);
	void (*reset)(void *ctx, const void *iv, size_t len);
	void (*aad)(void *ctx, const void *data, size_t len);
	void (*flip)(void *ctx);
	void (*run)(void *ctx, int encrypt, void *data, size_t len);
	void (*get_tag)(void *ctx, void *tag);
	uint32_t (*check_tag)(void *ctx, const void *tag);
} lib;

#define SYMBOL(field, name) (*(void **)(&lib.field) = dlsym(handle, name), lib.field != NULL)

int keyplane_bearssl_load(const char *soname) {
	void *handle = dlopen(soname, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL) {
		return 0;
	}
	if (!(SYMBOL(aes_init, "br_aes_ct64_ctr_init") && SYMBOL(ghash, "br_ghash_ctmul64") && SYMBOL(init, "br_gcm_init") && SYMBOL(reset, "br_gcm_reset") &&
	      SYMBOL(aad, "br_gcm_aad_inject") && SYMBOL(flip, "br_gcm_flip") && SYMBOL(run, "br_gcm_run") && SYMBOL(get_tag, "br_gcm_get_tag") &&
	      SYMBOL(check_tag, "br_gcm_check_tag"))) {
		dlclose(handle);
		return 0;
	}
	return 1;
}

// wipe clears memory that the compiler may believe dead.
static void wipe(void *p, size_t n) {
	memset(p, 0, n);
	__asm__ __volatile__("" : : "r"(p) : "memory");
}

typedef struct {
	_Alignas(16) unsigned char aes[AES_ROOM];
	_Alignas(16) unsigned char gcm[GCM_ROOM];
} ctx_t;

static void start(ctx_t *ctx, const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len) {
	lib.aes_init(ctx->aes, key, 32);
	lib.init(ctx->gcm, ctx->aes, lib.ghash);
	lib.reset(ctx->gcm, nonce, 12);
	if (aad_len > 0) {
		lib.aad(ctx->gcm, aad, aad_len);
	}
	lib.flip(ctx->gcm);
}

void keyplane_bearssl_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *in, size_t n, const uint8_t *aad, size_t aad_len, uint8_t *out) {
	ctx_t ctx;
	start(&ctx, key, nonce, aad, aad_len);
	if (n > 0) {
		memmove(out, in, n); // br_gcm_run works in place
		lib.run(ctx.gcm, 1, out, n);
	}
	lib.get_tag(ctx.gcm, out + n);
	wipe(&ctx, sizeof ctx);
}

int keyplane_bearssl_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *in, size_t n, const uint8_t *aad, size_t aad_len, uint8_t *out) {
	ctx_t ctx;
	uint8_t tag[TAG_LEN];
	memcpy(tag, in + n, TAG_LEN);
	start(&ctx, key, nonce, aad, aad_len);
	if (n > 0) {
		memmove(out, in, n);
		lib.run(ctx.gcm, 0, out, n);
	}
	int ok = lib.check_tag(ctx.gcm, tag) == 1;
	wipe(&ctx, sizeof ctx);
	if (!ok && n > 0) {
		wipe(out, n);
	}
	return ok;
}
