#include "shim.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define CKR_OK 0UL
#define CKR_GENERAL_ERROR 5UL
#define CKR_FUNCTION_NOT_SUPPORTED 0x54UL
#define CKU_SO 0UL
#define CKU_USER 1UL
#define CKF_OS_LOCKING_OK 2UL
#define CKM_AES_ECB 0x1081UL
#define CKM_ECDH1_DERIVE 0x1050UL
#define CKD_NULL 1UL
#define CKZ_DATA_SPECIFIED 1UL
#define CKO_SECRET_KEY 4UL
#define CKK_GENERIC_SECRET 0x10UL
#define CKK_AES 0x1fUL
#define CKA_CLASS 0UL
#define CKA_TOKEN 1UL
#define CKA_PRIVATE 2UL
#define CKA_VALUE 0x11UL
#define CKA_KEY_TYPE 0x100UL
#define CKA_SENSITIVE 0x103UL
#define CKA_ENCRYPT 0x104UL
#define CKA_DECRYPT 0x105UL
#define CKA_WRAP 0x106UL
#define CKA_UNWRAP 0x107UL
#define CKA_SIGN 0x108UL
#define CKA_VERIFY 0x10aUL
#define CKA_DERIVE 0x10cUL
#define CKA_VALUE_LEN 0x161UL
#define CKA_EXTRACTABLE 0x162UL

typedef struct {
	unsigned long mechanism;
	void *parameter;
	unsigned long parameter_len;
} ck_mechanism;

typedef struct {
	unsigned long type;
	void *value;
	unsigned long value_len;
} ck_attribute;

// Parameters of mechanisms: PKCS#11 3.0 §2.1.7, §2.1.10, §2.3.10, §2.3.16.
typedef struct {
	unsigned long hash, mgf, salt_len;
} ck_pss_params;

typedef struct {
	unsigned long hash, mgf, source;
	const void *label;
	unsigned long label_len;
} ck_oaep_params;

typedef struct {
	unsigned char prehash;
	unsigned long context_len;
	const unsigned char *context;
} ck_eddsa_params;

typedef struct {
	unsigned long kdf, shared_len;
	const unsigned char *shared;
	unsigned long public_len;
	const unsigned char *public;
} ck_ecdh1_params;

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
	void *functions_19[1];
	unsigned long (*C_CreateObject)(unsigned long, ck_attribute *, unsigned long, unsigned long *);
	void *functions_21[1];
	unsigned long (*C_DestroyObject)(unsigned long, unsigned long);
	void *functions_23[1];
	unsigned long (*C_GetAttributeValue)(unsigned long, unsigned long, ck_attribute *, unsigned long);
	void *functions_25_to_28[4];
	unsigned long (*C_EncryptInit)(unsigned long, ck_mechanism *, unsigned long);
	unsigned long (*C_Encrypt)(unsigned long, const unsigned char *, unsigned long, unsigned char *, unsigned long *);
	unsigned long (*C_EncryptUpdate)(unsigned long, const unsigned char *, unsigned long, unsigned char *, unsigned long *);
	unsigned long (*C_EncryptFinal)(unsigned long, unsigned char *, unsigned long *);
	unsigned long (*C_DecryptInit)(unsigned long, ck_mechanism *, unsigned long);
	unsigned long (*C_Decrypt)(unsigned long, const unsigned char *, unsigned long, unsigned char *, unsigned long *);
	void *functions_35_to_41[7];
	unsigned long (*C_SignInit)(unsigned long, ck_mechanism *, unsigned long);
	unsigned long (*C_Sign)(unsigned long, const unsigned char *, unsigned long, unsigned char *, unsigned long *);
	void *functions_44_to_59[16];
	unsigned long (*C_WrapKey)(unsigned long, ck_mechanism *, unsigned long, unsigned long, unsigned char *, unsigned long *);
	void *functions_61[1];
	unsigned long (*C_DeriveKey)(unsigned long, ck_mechanism *, unsigned long, ck_attribute *, unsigned long, unsigned long *);
	void *functions_63[1];
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

unsigned long kp_login(kp_functions *f, unsigned long session, int officer, const unsigned char *pin, unsigned long pin_len)
{
	return f->C_Login(session, officer ? CKU_SO : CKU_USER, pin, pin_len);
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

kp_result kp_end(kp_functions *f, unsigned long session)
{
	unsigned char rest[16];
	unsigned long len = sizeof rest;
	kp_result r = {f->C_EncryptFinal(session, rest, &len), KP_ENCRYPT_FINAL};
	if (r.rv == CKR_OK && len != 0) {
		r.rv = CKR_GENERAL_ERROR;
		r.phase = KP_LENGTH;
	}
	return r;
}

// derive makes the shared secret a session object, because C_DeriveKey has no other place for it, reads and destroys it.
static kp_used derive(kp_functions *f, unsigned long session, unsigned long key, const unsigned char *in, unsigned long in_len, unsigned char *out,
                      unsigned long n)
{
	kp_used r = {CKR_FUNCTION_NOT_SUPPORTED, KP_DERIVE_KEY, 0};
	if (!f->C_DeriveKey || !f->C_GetAttributeValue || !f->C_DestroyObject) {
		return r;
	}
	ck_ecdh1_params p;
	memset(&p, 0, sizeof p);
	p.kdf = CKD_NULL;
	p.public = in;
	p.public_len = in_len;
	ck_mechanism m = {CKM_ECDH1_DERIVE, &p, sizeof p};
	unsigned long class = CKO_SECRET_KEY, type = CKK_GENERIC_SECRET, secret = 0;
	unsigned char yes = 1, no = 0;
	ck_attribute template[] = {
		{CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type},  {CKA_VALUE_LEN, &n, sizeof n},    {CKA_TOKEN, &no, sizeof no},
		{CKA_PRIVATE, &yes, sizeof yes},   {CKA_SENSITIVE, &no, sizeof no}, {CKA_EXTRACTABLE, &yes, sizeof yes},
	};
	r.rv = f->C_DeriveKey(session, &m, key, template, sizeof template / sizeof template[0], &secret);
	if (r.rv != CKR_OK) {
		return r;
	}
	ck_attribute value = {CKA_VALUE, out, n};
	r.rv = f->C_GetAttributeValue(session, secret, &value, 1);
	r.phase = KP_GET_VALUE;
	r.n = value.value_len;
	unsigned long rv = f->C_DestroyObject(session, secret);
	if (r.rv == CKR_OK && rv != CKR_OK) {
		r.rv = rv;
		r.phase = KP_DESTROY;
	}
	return r;
}

kp_used kp_use(kp_functions *f, unsigned long session, unsigned long key, kp_operation op, const unsigned char *in, unsigned long in_len,
               unsigned char *out, unsigned long out_len)
{
	kp_used r = {CKR_FUNCTION_NOT_SUPPORTED, KP_DONE, out_len};
	ck_pss_params pss = {op.hash, op.mgf, op.salt_len};
	ck_oaep_params oaep = {op.hash, op.mgf, CKZ_DATA_SPECIFIED, NULL, 0};
	ck_eddsa_params eddsa;
	memset(&eddsa, 0, sizeof eddsa);
	eddsa.prehash = 1;
	ck_mechanism m = {op.mechanism, NULL, 0};
	switch (op.parameter) {
	case KP_PSS:
		m.parameter = &pss;
		m.parameter_len = sizeof pss;
		break;
	case KP_OAEP:
		m.parameter = &oaep;
		m.parameter_len = sizeof oaep;
		break;
	case KP_PREHASH:
		m.parameter = &eddsa;
		m.parameter_len = sizeof eddsa;
		break;
	}
	if (in == NULL) {
		in = (const unsigned char *)""; // no module takes NULL for data, even where its length is 0
	}
	switch (op.how) {
	case KP_SIGNS:
		r.phase = KP_SIGN_INIT;
		if (f->C_SignInit && f->C_Sign) {
			r.rv = f->C_SignInit(session, &m, key);
		}
		if (r.rv == CKR_OK) {
			r.rv = f->C_Sign(session, in, in_len, out, &r.n);
			r.phase = KP_SIGN;
		}
		break;
	case KP_DECRYPTS:
		r.phase = KP_DECRYPT_INIT;
		if (f->C_DecryptInit && f->C_Decrypt) {
			r.rv = f->C_DecryptInit(session, &m, key);
		}
		if (r.rv == CKR_OK) {
			r.rv = f->C_Decrypt(session, in, in_len, out, &r.n);
			r.phase = KP_DECRYPT;
		}
		break;
	case KP_DERIVES:
		r = derive(f, session, key, in, in_len, out, op.n);
		break;
	case KP_ENCRYPTS:
		r.rv = f->C_EncryptInit(session, &m, key);
		r.phase = KP_ENCRYPT_INIT;
		if (r.rv == CKR_OK) {
			r.rv = f->C_Encrypt(session, in, in_len, out, &r.n);
			r.phase = KP_ENCRYPT;
		}
		break;
	}
	if (r.rv == CKR_OK && op.how == KP_DERIVES && r.n > 0 && r.n < op.n && op.n <= out_len) {
		// A module that strips leading zeros: which points make them, whoever asks can choose. Nothing at all is no secret.
		memmove(out + (op.n - r.n), out, r.n);
		memset(out, 0, op.n - r.n);
		r.n = op.n;
	}
	if (r.rv == CKR_OK && (r.n > out_len || (op.n != 0 && r.n != op.n))) {
		r.rv = CKR_GENERAL_ERROR;
		r.phase = KP_LENGTH;
	}
	if (r.rv != CKR_OK) {
		wipe(out, 0, out_len);
	}
	return r;
}

kp_used kp_create_kek(kp_functions *f, unsigned long session, const unsigned char *value, unsigned long value_len)
{
	kp_used r = {CKR_FUNCTION_NOT_SUPPORTED, KP_CREATE, 0};
	unsigned long class = CKO_SECRET_KEY, type = CKK_AES;
	unsigned char yes = 1, no = 0;
	ck_attribute template[] = {
		{CKA_CLASS, &class, sizeof class},     {CKA_KEY_TYPE, &type, sizeof type},      {CKA_TOKEN, &no, sizeof no},
		{CKA_PRIVATE, &yes, sizeof yes},       {CKA_SENSITIVE, &yes, sizeof yes},       {CKA_EXTRACTABLE, &no, sizeof no},
		{CKA_ENCRYPT, &no, sizeof no},         {CKA_DECRYPT, &no, sizeof no},           {CKA_WRAP, &no, sizeof no},
		{CKA_UNWRAP, &yes, sizeof yes},        {CKA_SIGN, &no, sizeof no},              {CKA_VERIFY, &no, sizeof no},
		{CKA_DERIVE, &no, sizeof no},          {CKA_VALUE, (void *)value, value_len},
	};
	if (f->C_CreateObject) {
		r.rv = f->C_CreateObject(session, template, sizeof template / sizeof template[0], &r.n);
	}
	return r;
}

kp_used kp_value_len(kp_functions *f, unsigned long session, unsigned long object)
{
	kp_used r = {CKR_FUNCTION_NOT_SUPPORTED, KP_GET_VALUE, 0};
	ck_attribute value = {CKA_VALUE, NULL, 0};
	if (f->C_GetAttributeValue) {
		r.rv = f->C_GetAttributeValue(session, object, &value, 1);
		r.n = value.value_len;
	}
	return r;
}

kp_used kp_wrap(kp_functions *f, unsigned long session, unsigned long mechanism, unsigned long hash, unsigned long mgf, unsigned long root,
                unsigned long key, unsigned char *out, unsigned long out_len)
{
	kp_used r = {CKR_FUNCTION_NOT_SUPPORTED, KP_WRAP_KEY, out_len};
	ck_mechanism m = {mechanism, NULL, 0};
	ck_oaep_params oaep = {hash, mgf, CKZ_DATA_SPECIFIED, NULL, 0};
	if (hash != 0) {
		m.parameter = &oaep;
		m.parameter_len = sizeof oaep;
	}
	if (f->C_WrapKey) {
		r.rv = f->C_WrapKey(session, &m, root, key, out, &r.n);
	}
	if (r.rv == CKR_OK && r.n > out_len) {
		r.rv = CKR_GENERAL_ERROR;
		r.phase = KP_LENGTH;
	}
	return r;
}

int kp_streams(kp_functions *f)
{
	return f->C_EncryptUpdate != NULL && f->C_EncryptFinal != NULL;
}
