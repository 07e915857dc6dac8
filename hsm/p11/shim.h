// The few PKCS#11 calls that must not go through Go's or miekg's copies. Declarations are ours, after PKCS#11 2.40 §2 and §5.
#ifndef KEYPLANE_P11_SHIM_H
#define KEYPLANE_P11_SHIM_H

#include <stddef.h>

typedef struct kp_functions kp_functions;

// Where a round ended.
enum kp_phase { KP_DONE, KP_RANDOM, KP_ENCRYPT_INIT, KP_ENCRYPT, KP_ENCRYPT_UPDATE, KP_ENCRYPT_FINAL, KP_LENGTH };

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

// kp_login logs the user in. pin need not end in a zero byte; it is not copied.
unsigned long kp_login(kp_functions *f, unsigned long session, const unsigned char *pin, unsigned long pin_len);

// kp_round fills random, then encrypts n bytes of in, whole blocks, to out with CKM_AES_ECB. A length of 0 leaves that half out. On any
// failure both outputs are wiped.
kp_result kp_round(kp_functions *f, unsigned long session, unsigned long key, unsigned long mode, const unsigned char *in, unsigned char *out,
                   unsigned long n, unsigned char *random, unsigned long random_len);

// kp_streams says whether the module has the functions of the modes besides KP_SINGLE.
int kp_streams(kp_functions *f);

#endif
