#include "shim.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define CKR_OK 0UL
#define CKR_GENERAL_ERROR 5UL
#define CKU_USER 1UL
#define CKF_OS_LOCKING_OK 2UL
#define CKM_AES_ECB 0x1081UL

typedef struct {
	unsigned long mechanism;
	void *parameter;
	unsigned long parameter_len;
} ck_mechanism;

// CK_C_INITIALIZE_ARGS. NSS calls the reserved member LibraryParameters and reads one more pointer after it, which must be NULL.
typedef struct {
	void *create_mutex, *destroy_mutex, *lock_mutex, *unlock_mutex;
	unsigned long flags;
	const char *reserved;
	void *nss_reserved;
} ck_initialize_args;

// CK_FUNCTION_LIST: functions in the order of pkcs11f.h, 0 to 67.
struct kp_functions {
	unsigned char version[2];
	unsigned long (*C_Initialize)(void *);
	unsigned long (*C_Finalize)(void *);
	void *functions_2_to_17[16];
	unsigned long (*C_Login)(unsigned long, unsigned long, const unsigned char *, unsigned long);
	void *functions_19_to_28[10];
	unsigned long (*C_EncryptInit)(unsigned long, ck_mechanism *, unsigned long);
	unsigned long (*C_Encrypt)(unsigned long, const unsigned char *, unsigned long, unsigned char *, unsigned long *);
	unsigned long (*C_EncryptUpdate)(unsigned long, const unsigned char *, unsigned long, unsigned char *, unsigned long *);
	unsigned long (*C_EncryptFinal)(unsigned long, unsigned char *, unsigned long *);
	void *functions_33_to_63[31];
	unsigned long (*C_GenerateRandom)(unsigned long, unsigned char *, unsigned long);
	void *functions_65_to_67[3];
};

kp_functions *kp_load(const char *path, char *err, size_t err_len)
{
	// The library stays loaded for the life of the process: modules do not survive dlclose well.
	void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	if (library == NULL) {
		snprintf(err, err_len, "%s", dlerror());
		return NULL;
	}
	unsigned long (*get)(kp_functions **);
	*(void **)&get = dlsym(library, "C_GetFunctionList");
	if (get == NULL) {
		snprintf(err, err_len, "not a PKCS#11 module: no C_GetFunctionList");
		dlclose(library);
		return NULL;
	}
	kp_functions *f = NULL;
	unsigned long rv = get(&f);
	if (rv != CKR_OK || f == NULL) {
		snprintf(err, err_len, "C_GetFunctionList returned 0x%lx", rv);
		dlclose(library);
		return NULL;
	}
	if (!f->C_Initialize || !f->C_Finalize || !f->C_Login || !f->C_EncryptInit || !f->C_Encrypt || !f->C_GenerateRandom) {
		snprintf(err, err_len, "the function list has gaps");
		dlclose(library);
		return NULL;
	}
	return f;
}

unsigned long kp_initialize(kp_functions *f, const char *args)
{
	ck_initialize_args a;
	memset(&a, 0, sizeof a);
	a.flags = CKF_OS_LOCKING_OK;
	a.reserved = args;
	return f->C_Initialize(&a);
}

unsigned long kp_finalize(kp_functions *f)
{
	return f->C_Finalize(NULL);
}

unsigned long kp_login(kp_functions *f, unsigned long session, const unsigned char *pin, unsigned long pin_len)
{
	return f->C_Login(session, CKU_USER, pin, pin_len);
}

// A call through a volatile pointer is not optimised away.
static void *(*const volatile wipe)(void *, int, size_t) = memset;

// encrypt is the half of kp_round that encrypts. It returns where it ended.
static kp_result encrypt(kp_functions *f, unsigned long session, unsigned long key, unsigned long mode, const unsigned char *in, unsigned char *out,
                         unsigned long n)
{
	kp_result r = {CKR_OK, KP_DONE};
	if (mode == KP_RENEW) {
		unsigned char rest[16];
		unsigned long len = sizeof rest;
		r.rv = f->C_EncryptFinal(session, rest, &len);
		r.phase = KP_ENCRYPT_FINAL;
		if (r.rv == CKR_OK && len != 0) {
			r.rv = CKR_GENERAL_ERROR;
			r.phase = KP_LENGTH;
		}
	}
	if (r.rv == CKR_OK && mode != KP_NEXT) {
		ck_mechanism ecb = {CKM_AES_ECB, NULL, 0};
		r.rv = f->C_EncryptInit(session, &ecb, key);
		r.phase = KP_ENCRYPT_INIT;
	}
	if (r.rv != CKR_OK) {
		return r;
	}
	unsigned long len = n;
	if (mode == KP_SINGLE) {
		r.rv = f->C_Encrypt(session, in, n, out, &len);
		r.phase = KP_ENCRYPT;
	} else {
		r.rv = f->C_EncryptUpdate(session, in, n, out, &len);
		r.phase = KP_ENCRYPT_UPDATE;
	}
	if (r.rv == CKR_OK && len != n) {
		r.rv = CKR_GENERAL_ERROR;
		r.phase = KP_LENGTH;
	}
	return r;
}

kp_result kp_round(kp_functions *f, unsigned long session, unsigned long key, unsigned long mode, const unsigned char *in, unsigned char *out,
                   unsigned long n, unsigned char *random, unsigned long random_len)
{
	kp_result r = {CKR_OK, KP_DONE};
	if (random_len > 0) {
		r.rv = f->C_GenerateRandom(session, random, random_len);
		r.phase = KP_RANDOM;
	}
	if (r.rv == CKR_OK && n > 0) {
		r = encrypt(f, session, key, mode, in, out, n);
	}
	if (r.rv == CKR_OK) {
		r.phase = KP_DONE;
		return r;
	}
	if (random_len > 0) {
		wipe(random, 0, random_len);
	}
	if (n > 0) {
		wipe(out, 0, n);
	}
	return r;
}

int kp_streams(kp_functions *f)
{
	return f->C_EncryptUpdate != NULL && f->C_EncryptFinal != NULL;
}
