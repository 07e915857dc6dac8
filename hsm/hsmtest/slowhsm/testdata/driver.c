// Drives a slow module for tests, one command per line of standard input, one line of answer each:
//
//	load                 C_GetFunctionList
//	call NAME            the function on the current session: return value and microseconds
//	open                 C_OpenSession; the new session is the current one
//	output NAME N        C_Encrypt or C_GenerateRandom for N bytes on the current session: return value, length, and the bytes in hexadecimal
//	slots                C_GetSlotList: return value, number, and the first one
//	slot N               C_GetTokenInfo and C_OpenSession of slot N, the latter closed again: the two return values
//	key SENSITIVE        C_GenerateKey with that attribute: return value and handle
//	use N                C_EncryptInit with key N
//	session N            N is the current session, whether it exists or not
//	forward ECHO         every function with arguments of its own must arrive at the echo module as it was sent
//	together T NAME      T threads make one call each, all on the current session: microseconds from the first start to the last end
//	apart T NAME         T threads make one call each, each on a session of its own: the slowest thread's microseconds
//	hammer T N           T threads open, use and close sessions N times
//	during NAME OTHER    the other function while a thread is in the first, both on the current session: the two return values
//
// usage: driver MODULE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "echo.h"

// CK_FUNCTION_LIST with the number of arguments of each function, after PKCS#11 2.40 §5.
static const struct {
	const char *name;
	int args;
} functions[COUNT] = {
	{"C_Initialize", 1}, {"C_Finalize", 1}, {"C_GetInfo", 1}, {"C_GetFunctionList", 1}, {"C_GetSlotList", 3}, {"C_GetSlotInfo", 2},
	{"C_GetTokenInfo", 2}, {"C_GetMechanismList", 3}, {"C_GetMechanismInfo", 3}, {"C_InitToken", 4}, {"C_InitPIN", 3}, {"C_SetPIN", 5},
	{"C_OpenSession", 5}, {"C_CloseSession", 1}, {"C_CloseAllSessions", 1}, {"C_GetSessionInfo", 2}, {"C_GetOperationState", 3},
	{"C_SetOperationState", 5}, {"C_Login", 4}, {"C_Logout", 1}, {"C_CreateObject", 4}, {"C_CopyObject", 5}, {"C_DestroyObject", 2},
	{"C_GetObjectSize", 3}, {"C_GetAttributeValue", 4}, {"C_SetAttributeValue", 4}, {"C_FindObjectsInit", 3}, {"C_FindObjects", 4},
	{"C_FindObjectsFinal", 1}, {"C_EncryptInit", 3}, {"C_Encrypt", 5}, {"C_EncryptUpdate", 5}, {"C_EncryptFinal", 3}, {"C_DecryptInit", 3},
	{"C_Decrypt", 5}, {"C_DecryptUpdate", 5}, {"C_DecryptFinal", 3}, {"C_DigestInit", 2}, {"C_Digest", 5}, {"C_DigestUpdate", 3},
	{"C_DigestKey", 2}, {"C_DigestFinal", 3}, {"C_SignInit", 3}, {"C_Sign", 5}, {"C_SignUpdate", 3}, {"C_SignFinal", 3},
	{"C_SignRecoverInit", 3}, {"C_SignRecover", 5}, {"C_VerifyInit", 3}, {"C_Verify", 5}, {"C_VerifyUpdate", 3}, {"C_VerifyFinal", 3},
	{"C_VerifyRecoverInit", 3}, {"C_VerifyRecover", 5}, {"C_DigestEncryptUpdate", 5}, {"C_DecryptDigestUpdate", 5},
	{"C_SignEncryptUpdate", 5}, {"C_DecryptVerifyUpdate", 5}, {"C_GenerateKey", 5}, {"C_GenerateKeyPair", 8}, {"C_WrapKey", 6},
	{"C_UnwrapKey", 8}, {"C_DeriveKey", 6}, {"C_SeedRandom", 3}, {"C_GenerateRandom", 3}, {"C_GetFunctionStatus", 1},
	{"C_CancelFunction", 1}, {"C_WaitForSlotEvent", 3},
};

enum {
	FINALIZE = 1,
	GET_FUNCTION_LIST = 3,
	GET_SLOT_LIST = 4,
	GET_TOKEN_INFO = 6,
	OPEN_SESSION = 12,
	CLOSE_SESSION = 13,
	ENCRYPT_INIT = 29,
	ENCRYPT = 30,
	GENERATE_KEY = 58,
	GENERATE_RANDOM = 64,
	THREADS_MAX = 64
};

static struct list *list;
static word current; // session

static void fail(const char *what, const char *detail)
{
	fprintf(stderr, "driver: %s: %s\n", what, detail);
	exit(2);
}

static int named(const char *name)
{
	for (int i = 0; i < COUNT; i++) {
		if (strcmp(functions[i].name, name) == 0) {
			return i;
		}
	}
	fail("unknown function", name);
	return -1;
}

static long micros(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static word call(int f, word a0) { return list->f[f](a0, 0, 0, 0, 0, 0, 0, 0); }

static word open_session(word *session) { return list->f[OPEN_SESSION](1, 4, 0, 0, (word)session, 0, 0, 0); }

static void forward(const char *path)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
	if (library == NULL) {
		fail("echo is not what the slow module has loaded", path);
	}
	const struct echo *(*get)(void);
	*(void **)&get = dlsym(library, "echo_last");
	const struct echo *last = get();
	int done = 0;
	for (int i = 0; i < COUNT; i++) {
		word args[8], session = 0;
		for (int k = 0; k < 8; k++) {
			args[k] = 0x5A0000UL + (word)(0x100 * i + k);
		}
		if (i <= FINALIZE || i == GET_FUNCTION_LIST) { // the module's own; C_GetFunctionList never reaches the real one again
			continue;
		}
		if (i == GET_SLOT_LIST) {
			args[0] = 1; // CK_BBOOL
		}
		if (i == OPEN_SESSION) {
			args[4] = (word)&session;
		}
		unsigned long before = last->calls;
		word rv = list->f[i](args[0], args[1], args[2], args[3], args[4], args[5], args[6], args[7]);
		word want = i == OPEN_SESSION || i == GET_SLOT_LIST ? 0 : VENDOR + (word)i;
		if (last->function != i || last->calls != before + 1 || rv != want) {
			fail("another function, not once, or another answer", functions[i].name);
		}
		for (int k = 0; k < functions[i].args; k++) {
			if (last->args[k] != args[k]) {
				fail("another argument", functions[i].name);
			}
		}
		if (i == OPEN_SESSION && call(CLOSE_SESSION, session) != 0) {
			fail("session not closed", functions[i].name);
		}
		done++;
	}
	printf("%d\n", done);
}

struct task {
	pthread_t thread;
	pthread_barrier_t *start;
	int function, rounds;
	word session, rv;
	long from, to; // microseconds
};

static void *one_call(void *p)
{
	struct task *t = p;
	pthread_barrier_wait(t->start);
	t->from = micros();
	t->rv = call(t->function, t->session);
	t->to = micros();
	return NULL;
}

static void *churn(void *p)
{
	struct task *t = p;
	pthread_barrier_wait(t->start);
	for (int i = 0; i < t->rounds; i++) {
		word session;
		if (open_session(&session) != 0) {
			fail("hammer", "open");
		}
		for (int k = 0; k < 4; k++) {
			t->rv |= call(ENCRYPT, session);
		}
		t->rv |= call(CLOSE_SESSION, session);
	}
	return NULL;
}

// run starts n tasks at the same moment. It returns the longest time of one and in *all that from the first one's start, which on a busy machine is
// before the others', to the last one's end.
static long run(struct task *tasks, int n, void *(*f)(void *), long *all)
{
	pthread_barrier_t start;
	pthread_barrier_init(&start, NULL, (unsigned)n);
	for (int i = 0; i < n; i++) {
		tasks[i].start = &start;
		if (pthread_create(&tasks[i].thread, NULL, f, &tasks[i]) != 0) {
			fail("threads", "pthread_create");
		}
	}
	long longest = 0, first = 0, last = 0;
	for (int i = 0; i < n; i++) {
		struct task *t = &tasks[i];
		pthread_join(t->thread, NULL);
		longest = t->to - t->from > longest ? t->to - t->from : longest;
		first = i == 0 || t->from < first ? t->from : first;
		last = t->to > last ? t->to : last;
	}
	pthread_barrier_destroy(&start);
	*all = last - first;
	return longest;
}

static void threads(const char *how, int n, const char *what)
{
	static struct task tasks[THREADS_MAX];
	if (n < 1 || n > THREADS_MAX) {
		fail("threads", "too many");
	}
	memset(tasks, 0, sizeof tasks);
	int hammer = strcmp(how, "hammer") == 0, apart = strcmp(how, "apart") == 0;
	for (int i = 0; i < n; i++) {
		tasks[i].session = current;
		if (apart && open_session(&tasks[i].session) != 0) {
			fail("threads", "open");
		}
		if (hammer) {
			tasks[i].rounds = atoi(what);
		} else {
			tasks[i].function = named(what);
		}
	}
	long all;
	long longest = run(tasks, n, hammer ? churn : one_call, &all);
	word rv = 0;
	for (int i = 0; i < n; i++) {
		rv |= tasks[i].rv;
		if (apart) {
			call(CLOSE_SESSION, tasks[i].session);
		}
	}
	printf("0x%lx %ld\n", rv, apart ? longest : all);
}

// during calls the other function 200 ms into a call, which should last ten times as long: threads start late on a busy machine.
static void during(const char *what, const char *other)
{
	struct task t = {.function = named(what), .session = current};
	pthread_barrier_t start;
	pthread_barrier_init(&start, NULL, 2);
	t.start = &start;
	if (pthread_create(&t.thread, NULL, one_call, &t) != 0) {
		fail("threads", "pthread_create");
	}
	pthread_barrier_wait(&start);
	struct timespec moment = {0, 200000000};
	nanosleep(&moment, NULL);
	int f = named(other);
	word rv = call(f, f == FINALIZE ? 0 : current);
	pthread_join(t.thread, NULL);
	pthread_barrier_destroy(&start);
	printf("0x%lx 0x%lx\n", rv, t.rv);
}

static void output(const char *what, word n)
{
	unsigned char out[256];
	memset(out, 0xEE, sizeof out);
	int f = named(what);
	if (n > sizeof out - 1 || (f != ENCRYPT && f != GENERATE_RANDOM)) {
		fail("output", what);
	}
	word rv = f == ENCRYPT ? list->f[f](current, 0, 0, (word)out, (word)&n, 0, 0, 0) : list->f[f](current, (word)out, n, 0, 0, 0, 0, 0);
	printf("0x%lx %lu ", rv, n);
	for (word i = 0; i < n; i++) {
		printf("%02x", out[i]);
	}
	printf("\n");
}

static void slots(void)
{
	word n = 8, ids[8] = {0}, rv = list->f[GET_SLOT_LIST](1, (word)ids, (word)&n, 0, 0, 0, 0, 0);
	printf("0x%lx %lu %lu\n", rv, n, ids[0]);
}

static void on_slot(word slot)
{
	word session = 0, info = list->f[GET_TOKEN_INFO](slot, 0, 0, 0, 0, 0, 0, 0);
	word rv = list->f[OPEN_SESSION](slot, 4, 0, 0, (word)&session, 0, 0, 0);
	if (rv == 0 && call(CLOSE_SESSION, session) != 0) {
		fail("session not closed", "slot");
	}
	printf("0x%lx 0x%lx\n", info, rv);
}

static void key(unsigned char sensitive)
{
	struct {
		word type;
		void *value;
		word n;
	} template = {0x103, &sensitive, 1};
	word handle = 0, rv = list->f[GENERATE_KEY](current, 0, (word)&template, 1, (word)&handle, 0, 0, 0);
	printf("0x%lx %lu\n", rv, handle);
}

int main(int argc, char **argv)
{
	void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
	if (library == NULL) {
		fail("usage: driver MODULE", dlerror());
	}
	word (*get)(struct list **);
	*(void **)&get = dlsym(library, "C_GetFunctionList");
	setvbuf(stdout, NULL, _IOLBF, 0);
	char line[256], command[32], a[200], b[32];
	while (fgets(line, sizeof line, stdin) != NULL) {
		a[0] = b[0] = 0;
		if (sscanf(line, "%31s %199s %31s", command, a, b) < 1) {
			fail("no command", line);
		}
		if (strcmp(command, "load") == 0) {
			printf("0x%lx\n", get(&list));
		} else if (list == NULL) {
			fail("not loaded", command);
		} else if (strcmp(command, "call") == 0) {
			int f = named(a);
			word arg = f <= 2 ? 0 : current;
			long start = micros();
			word rv = call(f, arg);
			printf("0x%lx %ld\n", rv, micros() - start);
		} else if (strcmp(command, "open") == 0) {
			word session = 0, rv = open_session(&session);
			if (rv == 0) {
				current = session;
			}
			printf("0x%lx\n", rv);
		} else if (strcmp(command, "session") == 0) {
			current = strtoul(a, NULL, 0);
			printf("0x%lx\n", current);
		} else if (strcmp(command, "output") == 0) {
			output(a, strtoul(b, NULL, 0));
		} else if (strcmp(command, "slots") == 0) {
			slots();
		} else if (strcmp(command, "slot") == 0) {
			on_slot(strtoul(a, NULL, 0));
		} else if (strcmp(command, "key") == 0) {
			key((unsigned char)atoi(a));
		} else if (strcmp(command, "use") == 0) {
			printf("0x%lx\n", list->f[ENCRYPT_INIT](current, 0, strtoul(a, NULL, 0), 0, 0, 0, 0, 0));
		} else if (strcmp(command, "forward") == 0) {
			forward(a);
		} else if (strcmp(command, "during") == 0) {
			during(a, b);
		} else {
			threads(command, atoi(a), b);
		}
	}
	return 0;
}
