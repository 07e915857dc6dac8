// The few PKCS#11 calls that must not go through Go's or miekg's copies. Declarations are ours, after PKCS#11 2.40 §2 and §5.
#ifndef KEYPLANE_P11_SHIM_H
#define KEYPLANE_P11_SHIM_H

#include <stddef.h>

typedef struct kp_functions kp_functions;

// Where a round or a use ended.
enum kp_phase {
	KP_DONE, KP_RANDOM, KP_ENCRYPT_INIT, KP_ENCRYPT, KP_ENCRYPT_UPDATE, KP_ENCRYPT_FINAL, KP_LENGTH,
	KP_SIGN_INIT, KP_SIGN, KP_DECRYPT_INIT, KP_DECRYPT, KP_DERIVE_KEY, KP_GET_VALUE, KP_DESTROY, KP_WRAP_KEY,
	KP_CREATE
};

// How a round encrypts: C_EncryptInit and C_Encrypt; or one operation that stays active over many rounds, which KP_BEGIN starts, KP_NEXT goes
// on with and KP_RENEW ends and starts again, by C_EncryptInit, C_EncryptUpdate and C_EncryptFinal.
enum kp_mode { KP_SINGLE, KP_BEGIN, KP_NEXT, KP_RENEW };

typedef struct {
	unsigned long rv; // CK_RV
	unsigned long phase;
} kp_result;

// kp_load loads the module, or finds it loaded, and asks for its function list. NULL on failure, with the reason in err.
kp_functions *kp_load(const char *path, char *err, size_t err_len);

// kp_initialize calls C_Initialize with CKF_OS_LOCKING_OK and args, which may be NULL, as the reserved parameter.
unsigned long kp_initialize(kp_functions *f, const char *args);
unsigned long kp_finalize(kp_functions *f);

// kp_login logs the user in, or the Security Officer. pin need not end in a zero byte; it is not copied.
unsigned long kp_login(kp_functions *f, unsigned long session, int officer, const unsigned char *pin, unsigned long pin_len);

// kp_round fills random, then encrypts n bytes of in, whole blocks, to out with CKM_AES_ECB. A length of 0 leaves that half out. On any
// failure both outputs are wiped.
kp_result kp_round(kp_functions *f, unsigned long session, unsigned long key, unsigned long mode, const unsigned char *in, unsigned char *out,
                   unsigned long n, unsigned char *random, unsigned long random_len);

// kp_end ends the encryption that KP_BEGIN began: a session does one thing at a time.
kp_result kp_end(kp_functions *f, unsigned long session);

// What kp_use does: C_SignInit and C_Sign; C_DecryptInit and C_Decrypt; C_DeriveKey with CKM_ECDH1_DERIVE, C_GetAttributeValue and C_DestroyObject;
// C_EncryptInit and C_Encrypt.
enum kp_how { KP_SIGNS, KP_DECRYPTS, KP_DERIVES, KP_ENCRYPTS };

// The parameter of its mechanism: none, CK_RSA_PKCS_PSS_PARAMS, CK_RSA_PKCS_OAEP_PARAMS without a label, CK_EDDSA_PARAMS with phFlag.
enum kp_parameter { KP_NONE, KP_PSS, KP_OAEP, KP_PREHASH };

typedef struct {
	unsigned long how, mechanism, parameter;
	unsigned long hash, mgf, salt_len; // where the parameter has them
	unsigned long n;                   // bytes of the result; 0: any number
} kp_operation;

typedef struct {
	unsigned long rv; // CK_RV
	unsigned long phase;
	unsigned long n; // bytes of the result
} kp_used;

// kp_use does one operation with a private or secret key. in may be NULL where in_len is 0. On any failure out is wiped.
kp_used kp_use(kp_functions *f, unsigned long session, unsigned long key, kp_operation op, const unsigned char *in, unsigned long in_len,
               unsigned char *out, unsigned long out_len);

// kp_wrap wraps a key into out in one call: NSS answers the question for the length with too few bytes. hash and mgf are those of
// CKM_RSA_PKCS_OAEP, and 0 with other mechanisms.
kp_used kp_wrap(kp_functions *f, unsigned long session, unsigned long mechanism, unsigned long hash, unsigned long mgf, unsigned long root,
                unsigned long key, unsigned char *out, unsigned long out_len);

// kp_create_kek makes an AES key that unwraps, and does nothing else, a session object of a value that is not copied. Its handle is in n.
kp_used kp_create_kek(kp_functions *f, unsigned long session, const unsigned char *value, unsigned long value_len);

// kp_value_len asks for the length of CKA_VALUE and not for the value. It is in n.
kp_used kp_value_len(kp_functions *f, unsigned long session, unsigned long object);

// kp_streams says whether the module has the functions of the modes besides KP_SINGLE.
int kp_streams(kp_functions *f);

#endif
