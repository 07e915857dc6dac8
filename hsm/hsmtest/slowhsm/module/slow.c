// A PKCS#11 2.40 module in front of another one: it forwards every call and makes it as slow, as serial and as fallible as a call to an
// HSM at the far end of a network. Package slowhsm builds it, and its doc.go is the manual. Declarations are ours, after PKCS#11 2.40 §2
// and §5.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned char ck_byte;   // CK_BBOOL, CK_BYTE, CK_UTF8CHAR
typedef unsigned long ck_ulong;  // CK_ULONG, CK_FLAGS, CK_RV and every handle

#define CKR_OK 0x000UL
#define CKR_HOST_MEMORY 0x002UL
#define CKR_GENERAL_ERROR 0x005UL
#define CKR_ARGUMENTS_BAD 0x007UL
#define CKR_DEVICE_REMOVED 0x032UL
#define CKR_FUNCTION_NOT_SUPPORTED 0x054UL
#define CKR_SESSION_HANDLE_INVALID 0x0B3UL
#define CKR_TOKEN_NOT_PRESENT 0x0E0UL
#define CKR_CRYPTOKI_NOT_INITIALIZED 0x190UL

#define CKO_PRIVATE_KEY 0x3UL
#define CKO_SECRET_KEY 0x4UL
#define CKA_CLASS 0x000UL
#define CKA_TOKEN 0x001UL
#define CKA_VALUE 0x011UL
#define CKA_SENSITIVE 0x103UL
#define CKA_PRIVATE_EXPONENT 0x123UL // the five after it are the primes and what is made of them
#define CKA_EXTRACTABLE 0x162UL

struct attribute { // CK_ATTRIBUTE
	ck_ulong type;
	void *value;
	ck_ulong n;
};

// What a call costs.
enum kind {
	LIBRARY, // nothing, even while the device is down: the client library answers
	LOCAL,   // nothing: the client library knows the answer as long as there is a device
	STAGE,   // nothing, unless "init" is set: the client library sends it along with the call that follows
	DEVICE,  // one round trip
};

// Every function in the order of CK_FUNCTION_LIST. OWN ones are written out below; PLAIN ones have no session, ON_SLOT ones a slot as their
// first argument. All others have the session there: SESSION ones are forwarded, WATCHED ones have a BEFORE_ and an AFTER_ of their own, and
// OUTPUT ones give *n bytes at out, which a fault can spoil.
#define FUNCTIONS(OWN, PLAIN, ON_SLOT, SESSION, WATCHED, OUTPUT) \
	OWN(C_Initialize, LIBRARY, (void *args), (args)) \
	OWN(C_Finalize, LIBRARY, (void *reserved), (reserved)) \
	PLAIN(C_GetInfo, LIBRARY, (void *info), (info)) \
	OWN(C_GetFunctionList, LIBRARY, (struct functions **list), (list)) \
	OWN(C_GetSlotList, LIBRARY, (ck_byte present, ck_ulong *slots, ck_ulong *n), (present, slots, n)) \
	ON_SLOT(C_GetSlotInfo, LOCAL, (ck_ulong slot, void *info), (slot, info)) \
	ON_SLOT(C_GetTokenInfo, DEVICE, (ck_ulong slot, void *info), (slot, info)) \
	ON_SLOT(C_GetMechanismList, LOCAL, (ck_ulong slot, ck_ulong *types, ck_ulong *n), (slot, types, n)) \
	ON_SLOT(C_GetMechanismInfo, LOCAL, (ck_ulong slot, ck_ulong type, void *info), (slot, type, info)) \
	ON_SLOT(C_InitToken, DEVICE, (ck_ulong slot, ck_byte *pin, ck_ulong n, ck_byte *label), (slot, pin, n, label)) \
	SESSION(C_InitPIN, DEVICE, (ck_ulong session, ck_byte *pin, ck_ulong n), (session, pin, n)) \
	SESSION(C_SetPIN, DEVICE, (ck_ulong session, ck_byte *old, ck_ulong old_n, ck_byte *pin, ck_ulong n), (session, old, old_n, pin, n)) \
	OWN(C_OpenSession, DEVICE, (ck_ulong slot, ck_ulong flags, void *application, void *notify, ck_ulong *session), \
	    (slot, flags, application, notify, session)) \
	OWN(C_CloseSession, DEVICE, (ck_ulong session), (session)) \
	OWN(C_CloseAllSessions, DEVICE, (ck_ulong slot), (slot)) \
	SESSION(C_GetSessionInfo, LOCAL, (ck_ulong session, void *info), (session, info)) \
	SESSION(C_GetOperationState, DEVICE, (ck_ulong session, ck_byte *state, ck_ulong *n), (session, state, n)) \
	SESSION(C_SetOperationState, DEVICE, (ck_ulong session, ck_byte *state, ck_ulong n, ck_ulong cipher, ck_ulong mac), \
	        (session, state, n, cipher, mac)) \
	WATCHED(C_Login, DEVICE, (ck_ulong session, ck_ulong user, ck_byte *pin, ck_ulong n), (session, user, pin, n)) \
	WATCHED(C_Logout, DEVICE, (ck_ulong session), (session)) \
	WATCHED(C_CreateObject, DEVICE, (ck_ulong session, void *template, ck_ulong n, ck_ulong *object), (session, template, n, object)) \
	WATCHED(C_CopyObject, DEVICE, (ck_ulong session, ck_ulong object, void *template, ck_ulong n, ck_ulong *copy), \
	        (session, object, template, n, copy)) \
	WATCHED(C_DestroyObject, DEVICE, (ck_ulong session, ck_ulong object), (session, object)) \
	WATCHED(C_GetObjectSize, DEVICE, (ck_ulong session, ck_ulong object, ck_ulong *size), (session, object, size)) \
	WATCHED(C_GetAttributeValue, DEVICE, (ck_ulong session, ck_ulong object, void *template, ck_ulong n), (session, object, template, n)) \
	WATCHED(C_SetAttributeValue, DEVICE, (ck_ulong session, ck_ulong object, void *template, ck_ulong n), (session, object, template, n)) \
	SESSION(C_FindObjectsInit, STAGE, (ck_ulong session, void *template, ck_ulong n), (session, template, n)) \
	WATCHED(C_FindObjects, DEVICE, (ck_ulong session, ck_ulong *objects, ck_ulong max, ck_ulong *n), (session, objects, max, n)) \
	SESSION(C_FindObjectsFinal, LOCAL, (ck_ulong session), (session)) \
	WATCHED(C_EncryptInit, STAGE, (ck_ulong session, void *mechanism, ck_ulong key), (session, mechanism, key)) \
	OUTPUT(C_Encrypt, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), (session, in, in_n, out, n)) \
	OUTPUT(C_EncryptUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), \
	        (session, in, in_n, out, n)) \
	OUTPUT(C_EncryptFinal, DEVICE, (ck_ulong session, ck_byte *out, ck_ulong *n), (session, out, n)) \
	WATCHED(C_DecryptInit, STAGE, (ck_ulong session, void *mechanism, ck_ulong key), (session, mechanism, key)) \
	OUTPUT(C_Decrypt, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), (session, in, in_n, out, n)) \
	OUTPUT(C_DecryptUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), \
	        (session, in, in_n, out, n)) \
	OUTPUT(C_DecryptFinal, DEVICE, (ck_ulong session, ck_byte *out, ck_ulong *n), (session, out, n)) \
	SESSION(C_DigestInit, STAGE, (ck_ulong session, void *mechanism), (session, mechanism)) \
	OUTPUT(C_Digest, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), (session, in, in_n, out, n)) \
	SESSION(C_DigestUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n), (session, in, in_n)) \
	WATCHED(C_DigestKey, DEVICE, (ck_ulong session, ck_ulong key), (session, key)) \
	OUTPUT(C_DigestFinal, DEVICE, (ck_ulong session, ck_byte *out, ck_ulong *n), (session, out, n)) \
	WATCHED(C_SignInit, STAGE, (ck_ulong session, void *mechanism, ck_ulong key), (session, mechanism, key)) \
	OUTPUT(C_Sign, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), (session, in, in_n, out, n)) \
	SESSION(C_SignUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n), (session, in, in_n)) \
	OUTPUT(C_SignFinal, DEVICE, (ck_ulong session, ck_byte *out, ck_ulong *n), (session, out, n)) \
	WATCHED(C_SignRecoverInit, STAGE, (ck_ulong session, void *mechanism, ck_ulong key), (session, mechanism, key)) \
	OUTPUT(C_SignRecover, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), \
	        (session, in, in_n, out, n)) \
	WATCHED(C_VerifyInit, STAGE, (ck_ulong session, void *mechanism, ck_ulong key), (session, mechanism, key)) \
	SESSION(C_Verify, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *signature, ck_ulong n), \
	        (session, in, in_n, signature, n)) \
	SESSION(C_VerifyUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n), (session, in, in_n)) \
	SESSION(C_VerifyFinal, DEVICE, (ck_ulong session, ck_byte *signature, ck_ulong n), (session, signature, n)) \
	WATCHED(C_VerifyRecoverInit, STAGE, (ck_ulong session, void *mechanism, ck_ulong key), (session, mechanism, key)) \
	OUTPUT(C_VerifyRecover, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), \
	        (session, in, in_n, out, n)) \
	OUTPUT(C_DigestEncryptUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), \
	        (session, in, in_n, out, n)) \
	OUTPUT(C_DecryptDigestUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), \
	        (session, in, in_n, out, n)) \
	OUTPUT(C_SignEncryptUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), \
	        (session, in, in_n, out, n)) \
	OUTPUT(C_DecryptVerifyUpdate, DEVICE, (ck_ulong session, ck_byte *in, ck_ulong in_n, ck_byte *out, ck_ulong *n), \
	        (session, in, in_n, out, n)) \
	WATCHED(C_GenerateKey, DEVICE, (ck_ulong session, void *mechanism, void *template, ck_ulong n, ck_ulong *key), \
	        (session, mechanism, template, n, key)) \
	WATCHED(C_GenerateKeyPair, DEVICE, \
	        (ck_ulong session, void *mechanism, void *public, ck_ulong public_n, void *private, ck_ulong private_n, \
	         ck_ulong *public_key, ck_ulong *private_key), \
	        (session, mechanism, public, public_n, private, private_n, public_key, private_key)) \
	OUTPUT(C_WrapKey, DEVICE, (ck_ulong session, void *mechanism, ck_ulong wrapping, ck_ulong key, ck_byte *out, ck_ulong *n), \
	        (session, mechanism, wrapping, key, out, n)) \
	WATCHED(C_UnwrapKey, DEVICE, \
	        (ck_ulong session, void *mechanism, ck_ulong unwrapping, ck_byte *in, ck_ulong in_n, void *template, ck_ulong n, \
	         ck_ulong *key), \
	        (session, mechanism, unwrapping, in, in_n, template, n, key)) \
	WATCHED(C_DeriveKey, DEVICE, (ck_ulong session, void *mechanism, ck_ulong base, void *template, ck_ulong n, ck_ulong *key), \
	        (session, mechanism, base, template, n, key)) \
	SESSION(C_SeedRandom, DEVICE, (ck_ulong session, ck_byte *seed, ck_ulong n), (session, seed, n)) \
	WATCHED(C_GenerateRandom, DEVICE, (ck_ulong session, ck_byte *random, ck_ulong n), (session, random, n)) \
	SESSION(C_GetFunctionStatus, LOCAL, (ck_ulong session), (session)) \
	SESSION(C_CancelFunction, LOCAL, (ck_ulong session), (session)) \
	OWN(C_WaitForSlotEvent, LOCAL, (ck_ulong flags, ck_ulong *slot, void *reserved), (flags, slot, reserved))

#define MEMBER(name, kind, params, args) ck_ulong(*name) params;
struct functions {
	ck_byte version[2];
	FUNCTIONS(MEMBER, MEMBER, MEMBER, MEMBER, MEMBER, MEMBER)
};

__attribute__((visibility("default"))) ck_ulong C_GetFunctionList(struct functions **list); // the only symbol exported

#define ID(name, kind, params, args) FN_##name,
enum function { FUNCTIONS(ID, ID, ID, ID, ID, ID) FUNCTION_COUNT };
_Static_assert(FUNCTION_COUNT == 68, "CK_FUNCTION_LIST 2.40 has 68 functions");

#define KIND(name, kind, params, args) kind,
static const enum kind kinds[] = {FUNCTIONS(KIND, KIND, KIND, KIND, KIND, KIND)};

// What a fault can do to a function besides its answer and its time: something to its session, and something to its output.
#define WITHOUT(name, kind, params, args) 0,
#define WITH(name, kind, params, args) 1,
static const char on_session[] = {FUNCTIONS(WITHOUT, WITHOUT, WITHOUT, WITH, WITH, WITH)};
static const char gives_output[] = {FUNCTIONS(WITHOUT, WITHOUT, WITHOUT, WITHOUT, WITHOUT, WITH)};

// What the report counts, after the calls of each function. PEAK is the most calls that were in flight at once.
enum event {
	CONCURRENT,
	USE_AFTER_CLOSE,
	UNKNOWN_SESSION,
	FINALIZE_IN_FLIGHT,
	CONTROL_REFUSED,
	FAULTS,
	PEAK,
	STALE_HANDLE,
	SECRET_IN_TEMPLATE,
	EVENT_COUNT,
};

#define COUNTER(name, kind, params, args) {#name, 0},
struct counter {
	char name[24]; // zero-padded
	uint64_t value;
};
static struct report {
	struct counter calls[FUNCTION_COUNT];
	struct counter events[EVENT_COUNT];
} unmapped = {
	{FUNCTIONS(COUNTER, COUNTER, COUNTER, COUNTER, COUNTER, COUNTER)},
	{{"concurrent", 0}, {"use-after-close", 0}, {"unknown-session", 0}, {"finalize-in-flight", 0}, {"control-refused", 0}, {"faults", 0},
	 {"peak", 0}, {"stale-handle", 0}, {"secret-in-template", 0}},
};

// A file mapped and shared where a report is wanted: it is right at any moment, and stays so whatever becomes of the process. A process
// in Go ends without running exit handlers.
static struct report *report = &unmapped;

static void count(uint64_t *value) { __atomic_fetch_add(value, 1, __ATOMIC_RELAXED); }
static void event(enum event e) { count(&report->events[e].value); }

// Limits of the settings.
enum { FAULT_MAX = 64, CONTROL_MAX = 65536, CLOSED_MAX = 1024, BUCKETS = 256 };
#define MICROS_MAX 60000000UL    // a minute
#define HANG_MAX 3600000000UL    // an hour, in microseconds
#define NTH_MAX 1000000000UL
#define MOVED_MAX 1000000000UL

// What a fault does that is neither an answer nor a time.
enum act {
	NOTHING,
	STALL,   // the call waits until other settings are read
	FLIP,    // one bit of every 16 bytes of the output is another
	NICK,    // one bit of the first byte is
	SHORT,   // the output lacks its last byte
	LONG,    // the output is said to be a byte longer than it is
	SWAP,    // the output is that of the call before, and this one's the next one's
	REPEAT,  // the output is that of the call before
	LOGOUT,  // the user is logged out before the call
	KILL,    // the session is gone
	KILLALL, // all sessions of the slot are gone
	ABORT,   // the process ends
	ACT_COUNT,
};
static const char *const acts[ACT_COUNT] = {NULL, "stall", "flip", "nick", "short", "long", "swap", "repeat", "logout", "kill", "killall", "abort"};

enum { EVERY_FUNCTION = -1, KEPT_MAX = 65536 };

struct fault {
	int fn;             // EVERY_FUNCTION: all that do not end in the library
	ck_ulong nth, seen; // seen counts calls of fn since the fault was read
	int onwards;        // strikes the later calls too
	int every;          // strikes each nth call
	ck_ulong rv;        // CKR_OK where the call goes on
	ck_ulong hang;      // microseconds
	enum act act;
	ck_ulong lasts; // microseconds from when it was read; 0: as long as the settings
};

struct settings {
	ck_ulong micros;
	ck_ulong init, down, gone; // 0 or 1
	ck_ulong moved;
	struct timespec read;
	size_t n;
	struct fault faults[FAULT_MAX];
};

struct session {
	LIST_ENTRY(session) chain;
	TAILQ_ENTRY(session) age; // in closed, while it is
	ck_ulong handle, slot; // the slot by the real module's number
	uint64_t generation;   // of the slot when it was opened
	int closed;
	int dead;             // the fault that killed it: the application has to be told, and to close it
	unsigned users;       // calls on it now, waiting ones included
	pthread_mutex_t turn; // held for a whole call, its latency included: that is how one session's calls serialise
};

// lock guards everything below, and is never held over a sleep or over a call of the real module.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t idle = PTHREAD_COND_INITIALIZER; // in_flight became 0
static struct functions *real;                         // set once, before anybody has our function list
static int live;                                       // initialised and not finalised
static uint64_t in_flight;
static struct settings settings;
static const char *control; // path, or NULL
static struct stat seen;    // of the control file when it was last read
static LIST_HEAD(, session) table[BUCKETS];
static TAILQ_HEAD(, session) closed = TAILQ_HEAD_INITIALIZER(closed); // oldest first: how use after close is told from a made-up handle
static size_t closed_n;
static uint64_t version;                                             // of the settings: how often some were read
static struct slot {
	ck_ulong slot;
	uint64_t generation; // counts what ends object handles: a login, a logout, the end of all sessions, C_Finalize; 0: no entry
} slots[64];
static struct object {
	ck_ulong slot, handle;
	uint64_t generation; // when the handle was given out last; 0: no entry
} objects[65536]; // by handle; a handle that another one has displaced is not watched any more

// Outputs that swap and repeat give to later calls, by function. Only what such a fault has asked for is kept.
static struct kept {
	ck_byte *bytes;
	ck_ulong n;
} kept[FUNCTION_COUNT];

// --- Settings ---

// number reads an unsigned number, decimal or 0x. It moves *text past it and fails on signs, spaces and anything above max.
static int number(char **text, ck_ulong max, ck_ulong *value)
{
	if (**text < '0' || **text > '9') {
		return 0;
	}
	errno = 0;
	*value = strtoul(*text, text, (*text)[0] == '0' && (*text)[1] == 'x' ? 16 : 10);
	return errno == 0 && *value <= max;
}

static int function_named(const char *name, int *fn)
{
	if (strcmp(name, "*") == 0) {
		*fn = EVERY_FUNCTION;
		return 1;
	}
	for (int i = 0; i < FUNCTION_COUNT; i++) {
		if (strcmp(name, unmapped.calls[i].name) == 0) {
			*fn = i;
			return 1;
		}
	}
	return 0;
}

// parse_time reads a time to the end of the text.
static int parse_time(char *p, ck_ulong *micros)
{
	if (!number(&p, HANG_MAX, micros)) {
		return 0;
	}
	ck_ulong unit = strcmp(p, "us") == 0 ? 1 : strcmp(p, "ms") == 0 ? 1000 : strcmp(p, "s") == 0 ? 1000000 : 0;
	if (unit == 0 || *micros > HANG_MAX / unit) {
		return 0;
	}
	*micros *= unit;
	return *micros > 0;
}

// can says whether there is something for the act to happen to.
static int can(int fn, enum act act)
{
	int session = fn == EVERY_FUNCTION || on_session[fn], random = fn == FN_C_GenerateRandom;
	switch (act) {
	case FLIP:
	case NICK:
		return fn >= 0 && (gives_output[fn] || random || fn == FN_C_GetAttributeValue);
	case SWAP:
	case REPEAT:
		return fn >= 0 && (gives_output[fn] || random);
	case SHORT:
	case LONG:
		return fn >= 0 && gives_output[fn];
	case LOGOUT:
	case KILL:
	case KILLALL:
		return session;
	default:
		return 1;
	}
}

// parse_fault reads NAME:NTH:WHAT, and :for=TIME where it ends by itself. WHAT is a CKR, hang=TIME or the name of an act. A plus after NTH
// means that call and all later ones, a star each NTH call.
static int parse_fault(char *text, struct fault *f)
{
	memset(f, 0, sizeof *f);
	char *p = strchr(text, ':');
	if (p == NULL) {
		return 0;
	}
	*p++ = 0;
	if (!function_named(text, &f->fn) || !number(&p, NTH_MAX, &f->nth) || f->nth == 0) {
		return 0;
	}
	if (*p == '+' || *p == '*') {
		f->onwards = *p == '+';
		f->every = *p == '*';
		p++;
	}
	if (*p++ != ':') {
		return 0;
	}
	char *end = strchr(p, ':');
	if (end != NULL) {
		*end++ = 0;
		if (strncmp(end, "for=", 4) != 0 || !parse_time(end + 4, &f->lasts)) {
			return 0;
		}
	}
	if (strncmp(p, "hang=", 5) == 0) {
		return parse_time(p + 5, &f->hang);
	}
	for (int act = 1; act < ACT_COUNT; act++) {
		if (strcmp(p, acts[act]) == 0) {
			f->act = (enum act)act;
			return can(f->fn, f->act);
		}
	}
	return number(&p, 0xFFFFFFFFUL, &f->rv) && *p == 0 && f->rv != CKR_OK;
}

// set assigns one setting; the text is spoilt. The names are those of the environment in lower case.
static int set(struct settings *s, const char *name, char *text)
{
	if (strcmp(name, "faults") == 0) {
		s->n = 0;
		if (*text == 0) {
			return 1;
		}
		for (char *item; (item = strsep(&text, ",")) != NULL; s->n++) {
			if (s->n == FAULT_MAX || !parse_fault(item, &s->faults[s->n])) {
				return 0;
			}
		}
		return 1;
	}
	ck_ulong *value = NULL, max = 1;
	if (strcmp(name, "micros") == 0) {
		value = &s->micros;
		max = MICROS_MAX;
	} else if (strcmp(name, "init") == 0) {
		value = &s->init;
	} else if (strcmp(name, "down") == 0) {
		value = &s->down;
	} else if (strcmp(name, "gone") == 0) {
		value = &s->gone;
	} else if (strcmp(name, "moved") == 0) {
		value = &s->moved;
		max = MOVED_MAX;
	}
	return value != NULL && number(&text, max, value) && *text == 0;
}

static void kill_all(int every, ck_ulong slot);

// read_control replaces all settings by those of the control file, or none of them if it has a fault.
static int read_control(void)
{
	static char text[CONTROL_MAX + 1];
	int fd = open(control, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &seen) != 0) {
		if (fd >= 0) {
			close(fd);
		}
		return 0;
	}
	size_t n = 0;
	ssize_t got;
	while (n < sizeof text && ((got = read(fd, text + n, sizeof text - n)) > 0 || (got < 0 && errno == EINTR))) {
		n += got > 0 ? (size_t)got : 0;
	}
	close(fd);
	if (n > CONTROL_MAX || memchr(text, 0, n) != NULL) {
		return 0;
	}
	text[n] = 0;
	static struct settings next;
	memset(&next, 0, sizeof next);
	for (char *rest = text, *line; (line = strsep(&rest, "\n")) != NULL;) {
		char *value = strchr(line, '=');
		if (*line == 0) {
			continue;
		}
		if (value == NULL) {
			return 0;
		}
		*value++ = 0;
		if (!set(&next, line, value)) {
			return 0;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &next.read);
	if ((next.gone && !settings.gone) || next.moved != settings.moved) {
		kill_all(1, 0);
	}
	for (int i = 0; i < FUNCTION_COUNT; i++) {
		kept[i].n = 0;
	}
	settings = next;
	version++;
	return 1;
}

// look reads the control file if it is another one than last time. It is looked at on every call, so that a change counts from the next.
static int look(void)
{
	struct stat st;
	if (control == NULL || stat(control, &st) != 0) {
		return 1;
	}
	if (st.st_ino == seen.st_ino && st.st_size == seen.st_size && st.st_mtim.tv_sec == seen.st_mtim.tv_sec &&
	    st.st_mtim.tv_nsec == seen.st_mtim.tv_nsec) {
		return 1;
	}
	seen = st; // in case it cannot be opened
	if (read_control()) {
		return 1;
	}
	event(CONTROL_REFUSED);
	fprintf(stderr, "slow module: control file %s refused\n", control);
	return 0;
}

static int from_environment(const char *variable, const char *name)
{
	const char *value = getenv(variable);
	if (value == NULL) {
		return 1;
	}
	char *copy = strdup(value);
	int ok = copy != NULL && set(&settings, name, copy);
	free(copy);
	if (!ok) {
		fprintf(stderr, "slow module: %s=%s refused\n", variable, value);
	}
	return ok;
}

static int map_report(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct stat st;
	// Never cut: another process may have the file mapped, and the counts of all add up.
	int ok = fd >= 0 && fstat(fd, &st) == 0 && (st.st_size >= (off_t)sizeof *report || ftruncate(fd, sizeof *report) == 0);
	void *p = ok ? mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
	if (p == MAP_FAILED) {
		fprintf(stderr, "slow module: report %s: %s\n", path, strerror(errno));
	} else {
		report = p;
		for (int i = 0; i < FUNCTION_COUNT; i++) {
			memcpy(report->calls[i].name, unmapped.calls[i].name, sizeof unmapped.calls[i].name);
		}
		for (int i = 0; i < EVENT_COUNT; i++) {
			memcpy(report->events[i].name, unmapped.events[i].name, sizeof unmapped.events[i].name);
		}
	}
	if (fd >= 0) {
		close(fd);
	}
	return p != MAP_FAILED;
}

// load finds the real module. It is done once; the environment counts as it is then.
static int load(void)
{
	const char *path = getenv("KEYPLANE_SLOW_MODULE"), *file = getenv("KEYPLANE_SLOW_REPORT");
	if (path == NULL) {
		fprintf(stderr, "slow module: KEYPLANE_SLOW_MODULE is not set\n");
		return 0;
	}
	if (control == NULL && getenv("KEYPLANE_SLOW_CONTROL") != NULL) {
		control = strdup(getenv("KEYPLANE_SLOW_CONTROL"));
	}
	if (!from_environment("KEYPLANE_SLOW_MICROS", "micros") || !from_environment("KEYPLANE_SLOW_INIT", "init") ||
	    !from_environment("KEYPLANE_SLOW_FAULTS", "faults") || (file != NULL && !map_report(file)) || !look()) {
		return 0;
	}
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL); // stays loaded: modules do not survive dlclose well
	if (library == NULL) {
		fprintf(stderr, "slow module: %s\n", dlerror());
		return 0;
	}
	clock_gettime(CLOCK_MONOTONIC, &settings.read);
	ck_ulong (*get)(struct functions **);
	*(void **)&get = dlsym(library, "C_GetFunctionList");
	struct functions *list = NULL;
	if (get == NULL || get == C_GetFunctionList || get(&list) != CKR_OK || list == NULL || list->C_Initialize == NULL ||
	    list->C_Finalize == NULL) {
		fprintf(stderr, "slow module: %s is not a PKCS#11 module, or this very one\n", path);
		return 0;
	}
	real = list;
	return 1;
}

// --- Sessions; these functions need lock ---

static struct session *find(ck_ulong handle)
{
	struct session *s;
	LIST_FOREACH(s, &table[handle % BUCKETS], chain)
	{
		if (s->handle == handle) {
			return s;
		}
	}
	return NULL;
}

// generation_of is the slot's; beyond 64 slots they share one.
static uint64_t *generation_of(ck_ulong slot)
{
	size_t i = 0;
	while (i < sizeof slots / sizeof slots[0] - 1 && slots[i].generation != 0 && slots[i].slot != slot) {
		i++;
	}
	if (slots[i].generation == 0) {
		slots[i] = (struct slot){slot, 1};
	}
	return &slots[i].generation;
}

// opened enters a session. A module may give a closed session's number to a new one.
static int opened(ck_ulong handle, ck_ulong slot)
{
	struct session *s = find(handle);
	if (s == NULL) {
		s = calloc(1, sizeof *s);
		if (s == NULL || pthread_mutex_init(&s->turn, NULL) != 0) {
			free(s);
			return 0;
		}
		s->handle = handle;
		LIST_INSERT_HEAD(&table[handle % BUCKETS], s, chain);
	} else if (s->closed) {
		TAILQ_REMOVE(&closed, s, age);
		closed_n--;
		s->closed = 0;
	}
	s->dead = 0;
	s->slot = slot;
	s->generation = *generation_of(slot);
	return 1;
}

static int any_open(ck_ulong slot)
{
	struct session *s;
	for (int i = 0; i < BUCKETS; i++) {
		LIST_FOREACH(s, &table[i], chain)
		{
			if (!s->closed && s->slot == slot) {
				return 1;
			}
		}
	}
	return 0;
}

// kill_all is what a token that is taken away does to the sessions on it. The real module's stay open until the application closes them.
static void kill_all(int every, ck_ulong slot)
{
	struct session *s;
	for (int i = 0; i < BUCKETS; i++) {
		LIST_FOREACH(s, &table[i], chain)
		{
			if (!s->closed && (every || s->slot == slot)) {
				s->dead = 1;
			}
		}
	}
}

static void has_closed(struct session *s)
{
	if (s->closed) {
		return;
	}
	s->closed = 1;
	if (!any_open(s->slot)) {
		++*generation_of(s->slot);
	}
	TAILQ_INSERT_TAIL(&closed, s, age);
	closed_n++;
	struct session *oldest = TAILQ_FIRST(&closed);
	if (closed_n > CLOSED_MAX && oldest->users == 0) {
		TAILQ_REMOVE(&closed, oldest, age);
		closed_n--;
		LIST_REMOVE(oldest, chain);
		pthread_mutex_destroy(&oldest->turn);
		free(oldest);
	}
}

// all_closed closes the slot's sessions, or everybody's.
static void all_closed(int every, ck_ulong slot)
{
	for (int i = 0; i < BUCKETS; i++) {
		for (struct session *s = LIST_FIRST(&table[i]); s != NULL;) {
			if (s->closed || !(every || s->slot == slot)) {
				s = LIST_NEXT(s, chain);
			} else {
				has_closed(s);
				s = LIST_FIRST(&table[i]); // has_closed may have freed the next one
			}
		}
	}
}

// --- Objects ---

// gave notes that the module has given out a handle on the session, in its slot's present generation.
static void gave(struct session *s, ck_ulong handle)
{
	if (s == NULL) {
		return;
	}
	pthread_mutex_lock(&lock);
	objects[handle % (sizeof objects / sizeof objects[0])] = (struct object){s->slot, handle, *generation_of(s->slot)};
	pthread_mutex_unlock(&lock);
}

static void gave_one(struct session *s, const ck_ulong *handle)
{
	if (handle != NULL) {
		gave(s, *handle);
	}
}

// uses counts a handle that is older than the session on which it is used: something between the two ended all handles, and the application
// has had its new session since.
static void uses(const struct session *s, ck_ulong handle)
{
	if (s == NULL) {
		return;
	}
	pthread_mutex_lock(&lock);
	const struct object *o = &objects[handle % (sizeof objects / sizeof objects[0])];
	if (o->generation != 0 && o->handle == handle && o->slot == s->slot && o->generation < s->generation) {
		event(STALE_HANDLE);
	}
	pthread_mutex_unlock(&lock);
}

static void forgets(const struct session *s, ck_ulong handle)
{
	if (s == NULL) {
		return;
	}
	pthread_mutex_lock(&lock);
	struct object *o = &objects[handle % (sizeof objects / sizeof objects[0])];
	if (o->handle == handle && o->slot == s->slot) {
		o->generation = 0;
	}
	pthread_mutex_unlock(&lock);
}

static void new_generation(const struct session *s)
{
	if (s == NULL) {
		return;
	}
	pthread_mutex_lock(&lock);
	++*generation_of(s->slot);
	pthread_mutex_unlock(&lock);
}

// holds looks through a template that makes or changes an object for secrets that do not belong there: the value of a secret or private key
// that stays in the token or could leave it again, and a key that is made so that it can be read. One that is brought, for as long as the session,
// may be: how else would its length be known.
static void holds(const struct session *s, const struct attribute *template, ck_ulong n, int brought)
{
	if (s == NULL || template == NULL) {
		return;
	}
	int key = 0, value = 0, stays = 0, sensitive = -1, extractable = -1;
	for (ck_ulong i = 0; i < n; i++) {
		const struct attribute *a = &template[i];
		if (a->value == NULL || a->n == 0) {
			continue;
		}
		int first = *(const ck_byte *)a->value;
		if (a->type == CKA_CLASS && a->n == sizeof(ck_ulong)) {
			ck_ulong class;
			memcpy(&class, a->value, sizeof class);
			key = class == CKO_SECRET_KEY || class == CKO_PRIVATE_KEY;
		} else if (a->type == CKA_VALUE) {
			value = 1;
		} else if (a->type >= CKA_PRIVATE_EXPONENT && a->type <= CKA_PRIVATE_EXPONENT + 5) {
			key = value = 1;
		} else if (a->type == CKA_TOKEN) {
			stays = first;
		} else if (a->type == CKA_SENSITIVE) {
			sensitive = first;
		} else if (a->type == CKA_EXTRACTABLE) {
			extractable = first;
		}
	}
	if ((key && value && (stays || sensitive != 1 || extractable != 0)) || (sensitive == 0 && (stays || !brought))) {
		event(SECRET_IN_TEMPLATE);
	}
}

// --- Calls ---

struct call {
	struct session *session; // NULL where the call has none, or one we do not know
	enum function fn;
	ck_ulong rv;
	int counted;
	enum act act;
};

static int over(const struct fault *f)
{
	if (f->lasts == 0) {
		return 0;
	}
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	int64_t micros = (int64_t)(now.tv_sec - settings.read.tv_sec) * 1000000 + (now.tv_nsec - settings.read.tv_nsec) / 1000;
	return micros >= (int64_t)f->lasts;
}

// strike is what the script has for a call of fn: how long it takes, what happens to it, and the answer that replaces the module's, or CKR_OK.
// Needs lock.
static ck_ulong strike(enum function fn, ck_ulong *micros, enum act *act)
{
	enum kind kind = kinds[fn];
	*micros = kind == DEVICE || (kind == STAGE && settings.init) ? settings.micros : 0;
	*act = NOTHING;
	struct fault *hit = NULL;
	for (size_t i = 0; i < settings.n; i++) {
		struct fault *f = &settings.faults[i];
		if (f->fn == (int)fn || (f->fn == EVERY_FUNCTION && kind != LIBRARY && can((int)fn, f->act))) {
			f->seen++;
			int strikes = f->every ? f->seen % f->nth == 0 : f->seen == f->nth || (f->onwards && f->seen > f->nth);
			if (hit == NULL && strikes && !over(f)) {
				hit = f;
			}
		}
	}
	if (settings.down && kind != LIBRARY) {
		return CKR_DEVICE_REMOVED;
	}
	if (hit == NULL) {
		return CKR_OK;
	}
	event(FAULTS);
	*micros += hit->hang;
	*act = hit->act;
	return hit->rv;
}

// stall waits until other settings than those of the version are read.
static void stall(uint64_t since)
{
	struct timespec moment = {0, 2000000};
	for (int same = 1; same;) {
		nanosleep(&moment, NULL);
		pthread_mutex_lock(&lock);
		look();
		same = version == since;
		pthread_mutex_unlock(&lock);
	}
}

// spend sleeps without the 50 us that the kernel may add to every sleep of a thread; the thread is the application's, and gets them back.
static void spend(ck_ulong micros)
{
	if (micros == 0) {
		return;
	}
	int slack = prctl(PR_GET_TIMERSLACK);
	prctl(PR_SET_TIMERSLACK, 1UL);
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)(micros / 1000000);
	until.tv_nsec += (long)(micros % 1000000) * 1000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
	}
	if (slack > 0) {
		prctl(PR_SET_TIMERSLACK, (unsigned long)slack);
	}
}

#define CALL(name, args) (real->name != NULL ? real->name args : CKR_FUNCTION_NOT_SUPPORTED)

// befall does what happens to the session before a call, and gives the answer where that is the end of it. The session's turn is ours.
static ck_ulong befall(struct call *c)
{
	if (c->act == LOGOUT) {
		CALL(C_Logout, (c->session->handle));
	}
	pthread_mutex_lock(&lock);
	if (c->act == KILL && !c->session->closed) {
		c->session->dead = 1;
	} else if (c->act == KILLALL) {
		kill_all(0, c->session->slot);
	}
	ck_ulong rv = CKR_OK;
	if (settings.gone && !c->session->closed && c->fn != FN_C_CloseSession) {
		rv = CKR_DEVICE_REMOVED;
	} else if (c->session->dead && !c->session->closed) {
		rv = CKR_SESSION_HANDLE_INVALID;
	}
	pthread_mutex_unlock(&lock);
	return rv;
}

// spoil changes the output of a call that succeeded, if that is its fault. Where room is NULL the length cannot be another.
static void spoil(struct call *c, ck_byte *out, ck_ulong n, ck_ulong *room)
{
	if (c->rv != CKR_OK || c->act == NOTHING || out == NULL || n == 0) {
		return;
	}
	struct kept *k = &kept[c->fn];
	switch (c->act) {
	case FLIP:
		for (ck_ulong i = 0; i < n; i += 16) {
			out[i] ^= 1;
		}
		break;
	case NICK:
		out[0] ^= 1;
		break;
	case SHORT:
		*room = n - 1;
		break;
	case LONG:
		*room = n + 1;
		break;
	case SWAP:
	case REPEAT:
		pthread_mutex_lock(&lock);
		if (k->bytes == NULL) {
			k->bytes = malloc(KEPT_MAX);
		}
		if (k->bytes != NULL && n <= KEPT_MAX) {
			ck_ulong both = k->n < n ? k->n : n;
			for (ck_ulong i = 0; i < both; i++) {
				ck_byte b = out[i];
				out[i] = k->bytes[i];
				if (c->act == SWAP) {
					k->bytes[i] = b;
				}
			}
			if (k->n < n) {
				memcpy(k->bytes + k->n, out + k->n, n - k->n);
				k->n = n;
			}
		}
		pthread_mutex_unlock(&lock);
		break;
	default:
		break;
	}
}

static void spoil_attributes(struct call *c, struct attribute *template, ck_ulong n)
{
	if (c->rv != CKR_OK || (c->act != FLIP && c->act != NICK) || template == NULL) {
		return;
	}
	for (ck_ulong i = 0; i < n; i++) {
		if (template[i].n != (ck_ulong)-1) {
			spoil(c, template[i].value, template[i].n, NULL);
		}
	}
}

// suffer is what a call has to go through before it reaches the module.
static void suffer(ck_ulong micros, enum act act, uint64_t since)
{
	spend(micros);
	if (act == STALL) {
		stall(since);
	} else if (act == ABORT) {
		abort();
	}
}

// enter begins a call: it waits for the session's turn and spends the latency. False means that c->rv is the answer. Every enter is
// followed by one leave.
static int enter(struct call *c, enum function fn, const ck_ulong *handle)
{
	memset(c, 0, sizeof *c);
	c->fn = fn;
	c->rv = CKR_CRYPTOKI_NOT_INITIALIZED;
	count(&report->calls[fn].value);
	pthread_mutex_lock(&lock);
	if (handle != NULL) {
		c->session = find(*handle);
		if (c->session == NULL) {
			event(UNKNOWN_SESSION);
		} else {
			if (c->session->closed) {
				event(USE_AFTER_CLOSE);
			} else if (c->session->users > 0) {
				event(CONCURRENT);
			}
			c->session->users++;
		}
	}
	if (!live) {
		if (c->session != NULL) {
			c->session->users--;
			c->session = NULL;
		}
		pthread_mutex_unlock(&lock);
		return 0;
	}
	c->counted = 1;
	in_flight++;
	uint64_t peak = __atomic_load_n(&report->events[PEAK].value, __ATOMIC_RELAXED);
	while (in_flight > peak &&
	       !__atomic_compare_exchange_n(&report->events[PEAK].value, &peak, in_flight, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
	}
	look();
	ck_ulong micros;
	c->rv = strike(fn, &micros, &c->act);
	uint64_t since = version;
	pthread_mutex_unlock(&lock);
	if (c->session != NULL) {
		pthread_mutex_lock(&c->session->turn);
	}
	suffer(micros, c->act, since);
	if (c->session != NULL && c->rv == CKR_OK) {
		c->rv = befall(c);
	}
	return c->rv == CKR_OK;
}

static ck_ulong leave(struct call *c)
{
	if (c->session != NULL) {
		pthread_mutex_unlock(&c->session->turn);
	}
	pthread_mutex_lock(&lock);
	if (c->session != NULL) {
		c->session->users--;
	}
	if (c->counted && --in_flight == 0) {
		pthread_cond_broadcast(&idle);
	}
	pthread_mutex_unlock(&lock);
	return c->rv;
}


#define FORWARD_PLAIN(name, kind, params, args) \
	static ck_ulong slow_##name params \
	{ \
		struct call c; \
		if (enter(&c, FN_##name, NULL)) { \
			c.rv = CALL(name, args); \
		} \
		return leave(&c); \
	}
#define FORWARD_SESSION(name, kind, params, args) \
	static ck_ulong slow_##name params \
	{ \
		struct call c; \
		if (enter(&c, FN_##name, &session)) { \
			c.rv = CALL(name, args); \
		} \
		return leave(&c); \
	}
#define FORWARD_ON_SLOT(name, kind, params, args) \
	static ck_ulong slow_##name params \
	{ \
		struct call c; \
		if (enter(&c, FN_##name, NULL) && on_slot(&c, &slot)) { \
			c.rv = CALL(name, args); \
		} \
		return leave(&c); \
	}
#define FORWARD_WATCHED(name, kind, params, args) \
	static ck_ulong slow_##name params \
	{ \
		struct call c; \
		if (enter(&c, FN_##name, &session)) { \
			BEFORE_##name; \
			c.rv = CALL(name, args); \
			if (c.rv == CKR_OK) { \
				AFTER_##name; \
			} \
		} \
		return leave(&c); \
	}
#define FORWARD_OUTPUT(name, kind, params, args) \
	static ck_ulong slow_##name params \
	{ \
		struct call c; \
		if (enter(&c, FN_##name, &session)) { \
			c.rv = CALL(name, args); \
			if (c.rv == CKR_OK && c.act != NOTHING && n != NULL) { \
				spoil(&c, out, *n, n); \
			} \
		} \
		return leave(&c); \
	}

#define BEFORE_C_Login
#define AFTER_C_Login new_generation(c.session)
#define BEFORE_C_Logout
#define AFTER_C_Logout new_generation(c.session)
#define BEFORE_C_CreateObject holds(c.session, template, n, 0)
#define AFTER_C_CreateObject gave_one(c.session, object)
#define BEFORE_C_CopyObject uses(c.session, object), holds(c.session, template, n, 0)
#define AFTER_C_CopyObject gave_one(c.session, copy)
#define BEFORE_C_DestroyObject uses(c.session, object)
#define AFTER_C_DestroyObject forgets(c.session, object)
#define BEFORE_C_GetObjectSize uses(c.session, object)
#define AFTER_C_GetObjectSize
#define BEFORE_C_GetAttributeValue uses(c.session, object)
#define AFTER_C_GetAttributeValue spoil_attributes(&c, template, n)
#define BEFORE_C_SetAttributeValue uses(c.session, object), holds(c.session, template, n, 0)
#define AFTER_C_SetAttributeValue
#define BEFORE_C_FindObjects
#define AFTER_C_FindObjects \
	for (ck_ulong i = 0; objects != NULL && n != NULL && i < *n; i++) { \
		gave(c.session, objects[i]); \
	}
#define BEFORE_C_EncryptInit uses(c.session, key)
#define AFTER_C_EncryptInit
#define BEFORE_C_DecryptInit uses(c.session, key)
#define AFTER_C_DecryptInit
#define BEFORE_C_SignInit uses(c.session, key)
#define AFTER_C_SignInit
#define BEFORE_C_VerifyInit uses(c.session, key)
#define AFTER_C_VerifyInit
#define BEFORE_C_SignRecoverInit uses(c.session, key)
#define AFTER_C_SignRecoverInit
#define BEFORE_C_VerifyRecoverInit uses(c.session, key)
#define AFTER_C_VerifyRecoverInit
#define BEFORE_C_DigestKey uses(c.session, key)
#define AFTER_C_DigestKey
#define BEFORE_C_GenerateKey holds(c.session, template, n, 0)
#define AFTER_C_GenerateKey gave_one(c.session, key)
#define BEFORE_C_GenerateKeyPair holds(c.session, private, private_n, 0)
#define AFTER_C_GenerateKeyPair gave_one(c.session, public_key), gave_one(c.session, private_key)
#define BEFORE_C_UnwrapKey uses(c.session, unwrapping), holds(c.session, template, n, 1)
#define AFTER_C_UnwrapKey gave_one(c.session, key)
#define BEFORE_C_DeriveKey uses(c.session, base) // what is derived may be read: an agreed secret is for the caller
#define AFTER_C_DeriveKey gave_one(c.session, key)
#define BEFORE_C_GenerateRandom
#define AFTER_C_GenerateRandom spoil(&c, random, n, NULL)

// on_slot turns the number of a slot into the real module's.
static int on_slot(struct call *c, ck_ulong *slot)
{
	pthread_mutex_lock(&lock);
	*slot -= settings.moved;
	if (settings.gone) {
		c->rv = CKR_TOKEN_NOT_PRESENT;
	}
	pthread_mutex_unlock(&lock);
	return c->rv == CKR_OK;
}

#define DECLARE(name, kind, params, args) static ck_ulong slow_##name params;
FUNCTIONS(DECLARE, FORWARD_PLAIN, FORWARD_ON_SLOT, FORWARD_SESSION, FORWARD_WATCHED, FORWARD_OUTPUT)

// C_GetSlotList has no slots while the token is gone.
static ck_ulong slow_C_GetSlotList(ck_byte present, ck_ulong *slots, ck_ulong *n)
{
	struct call c;
	if (enter(&c, FN_C_GetSlotList, NULL)) {
		pthread_mutex_lock(&lock);
		ck_ulong moved = settings.moved, gone = settings.gone;
		pthread_mutex_unlock(&lock);
		c.rv = CALL(C_GetSlotList, (present, slots, n));
		if (c.rv == CKR_OK && gone && n != NULL) {
			*n = 0;
		}
		for (ck_ulong i = 0; c.rv == CKR_OK && moved != 0 && slots != NULL && n != NULL && i < *n; i++) {
			slots[i] += moved;
		}
	}
	return leave(&c);
}

// Closing is carried out even where a fault is the answer, as a library forgets the sessions of a device that is gone: else every closed
// session of a test with faults would stay open in the real module.

static ck_ulong slow_C_Initialize(void *args)
{
	count(&report->calls[FN_C_Initialize].value);
	pthread_mutex_lock(&lock);
	look();
	enum act act;
	ck_ulong micros, rv = strike(FN_C_Initialize, &micros, &act);
	uint64_t since = version;
	pthread_mutex_unlock(&lock);
	suffer(micros, act, since);
	if (rv == CKR_OK && (rv = real->C_Initialize(args)) == CKR_OK) {
		pthread_mutex_lock(&lock);
		live = 1;
		pthread_mutex_unlock(&lock);
	}
	return rv;
}

// C_Finalize with calls in flight is undefined in PKCS#11 and crashes modules: it is counted, and waits for them.
static ck_ulong slow_C_Finalize(void *reserved)
{
	count(&report->calls[FN_C_Finalize].value);
	pthread_mutex_lock(&lock);
	if (!live) {
		pthread_mutex_unlock(&lock);
		return CKR_CRYPTOKI_NOT_INITIALIZED;
	}
	look();
	enum act act;
	ck_ulong micros, answer = strike(FN_C_Finalize, &micros, &act);
	uint64_t since = version;
	if (in_flight > 0) {
		event(FINALIZE_IN_FLIGHT);
	}
	live = 0;
	while (in_flight > 0) {
		pthread_cond_wait(&idle, &lock);
	}
	pthread_mutex_unlock(&lock);
	suffer(micros, act, since);
	ck_ulong rv = real->C_Finalize(reserved);
	pthread_mutex_lock(&lock);
	if (rv == CKR_OK) {
		for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
			slots[i].generation += slots[i].generation != 0;
		}
		all_closed(1, 0);
	} else {
		live = 1;
	}
	pthread_mutex_unlock(&lock);
	return answer != CKR_OK ? answer : rv;
}

static ck_ulong slow_C_OpenSession(ck_ulong slot, ck_ulong flags, void *application, void *notify, ck_ulong *session)
{
	struct call c;
	if (enter(&c, FN_C_OpenSession, NULL) && on_slot(&c, &slot)) {
		c.rv = CALL(C_OpenSession, (slot, flags, application, notify, session));
		if (c.rv == CKR_OK) {
			pthread_mutex_lock(&lock);
			int ok = opened(*session, slot);
			pthread_mutex_unlock(&lock);
			if (!ok) {
				CALL(C_CloseSession, (*session));
				c.rv = CKR_HOST_MEMORY;
			}
		}
	}
	return leave(&c);
}

static ck_ulong slow_C_CloseSession(ck_ulong session)
{
	struct call c;
	int go = enter(&c, FN_C_CloseSession, &session);
	if (c.counted) {
		ck_ulong rv = CALL(C_CloseSession, (session));
		if (c.session != NULL && (rv == CKR_OK || rv == CKR_SESSION_HANDLE_INVALID)) {
			pthread_mutex_lock(&lock);
			c.session->dead = 0;
			has_closed(c.session);
			pthread_mutex_unlock(&lock);
		}
		if (go) {
			c.rv = rv;
		}
	}
	return leave(&c);
}

static ck_ulong slow_C_CloseAllSessions(ck_ulong slot)
{
	struct call c;
	int go = enter(&c, FN_C_CloseAllSessions, NULL);
	if (c.counted) {
		pthread_mutex_lock(&lock);
		slot -= settings.moved;
		for (int i = 0; i < BUCKETS; i++) {
			struct session *s;
			LIST_FOREACH(s, &table[i], chain)
			{
				if (!s->closed && s->slot == slot && s->users > 0) {
					event(CONCURRENT);
				}
			}
		}
		pthread_mutex_unlock(&lock);
		ck_ulong rv = CALL(C_CloseAllSessions, (slot));
		if (rv == CKR_OK) {
			pthread_mutex_lock(&lock);
			all_closed(0, slot);
			pthread_mutex_unlock(&lock);
		}
		if (go) {
			c.rv = rv;
		}
	}
	return leave(&c);
}

// C_WaitForSlotEvent may block until C_Finalize, which must not wait for it: it is never in flight.
static ck_ulong slow_C_WaitForSlotEvent(ck_ulong flags, ck_ulong *slot, void *reserved)
{
	struct call c;
	int go = enter(&c, FN_C_WaitForSlotEvent, NULL);
	ck_ulong rv = leave(&c);
	return go ? CALL(C_WaitForSlotEvent, (flags, slot, reserved)) : rv;
}

#define ENTRY(name, kind, params, args) slow_##name,
static struct functions functions = {{2, 40}, FUNCTIONS(ENTRY, ENTRY, ENTRY, ENTRY, ENTRY, ENTRY)};

static ck_ulong slow_C_GetFunctionList(struct functions **list)
{
	if (list == NULL) {
		return CKR_ARGUMENTS_BAD;
	}
	pthread_mutex_lock(&lock);
	int ok = real != NULL || load();
	pthread_mutex_unlock(&lock);
	if (!ok) {
		return CKR_GENERAL_ERROR;
	}
	count(&report->calls[FN_C_GetFunctionList].value);
	*list = &functions;
	return CKR_OK;
}

ck_ulong C_GetFunctionList(struct functions **list) { return slow_C_GetFunctionList(list); }
