// A real module for tests of slow.c: it remembers the last call of each thread, hands out sessions, and aborts when two calls meet on one
// session, or one comes before C_Initialize or after C_Finalize. It knows the functions by their place in CK_FUNCTION_LIST only and takes every argument as a machine word, so that it shares no
// table with slow.c. Calling it through other prototypes works wherever integers and pointers are passed alike (System V, AAPCS64).
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "echo.h"

enum {
	INITIALIZE = 0,
	FINALIZE = 1,
	GET_SLOT_LIST = 4,
	OPEN_SESSION = 12,
	CLOSE_ALL_SESSIONS = 14,
	GENERATE_KEY = 58,
	ENCRYPT = 30,
	GENERATE_RANDOM = 64,
	WAIT_FOR_SLOT_EVENT = 67
};

static _Thread_local struct echo last;
static _Atomic word next_session;
static atomic_int live;
static _Atomic char busy[HANDLES];
static _Atomic unsigned char outputs;
static _Atomic word keys;

const struct echo *echo_last(void) { return &last; }

static int on_session(int i)
{
	return i > 9 && i != OPEN_SESSION && i != CLOSE_ALL_SESSIONS && i != WAIT_FOR_SLOT_EVENT;
}

static word answer(int i, word a0, word a1, word a2, word a3, word a4, word a5, word a6, word a7)
{
	word args[] = {a0, a1, a2, a3, a4, a5, a6, a7};
	last.function = i;
	last.calls++;
	memcpy(last.args, args, sizeof args);
	if (i == INITIALIZE) {
		atomic_store(&next_session, 0);
	}
	if (i == INITIALIZE || i == FINALIZE) {
		atomic_store(&live, i == INITIALIZE);
	} else if (!atomic_load(&live)) {
		fprintf(stderr, "echo: function %d while not initialised\n", i);
		abort();
	}
	if (i == OPEN_SESSION) {
		*(word *)a4 = atomic_fetch_add(&next_session, 1) + 1;
	}
	if (i == INITIALIZE || i == FINALIZE || i == OPEN_SESSION) {
		return 0;
	}
	if (a0 >= HANDLES) {
		return VENDOR + (word)i;
	}
	if (on_session(i)) {
		if (atomic_exchange(&busy[a0], 1)) {
			fprintf(stderr, "echo: two calls on session %lu at once\n", a0);
			abort();
		}
		atomic_store(&busy[a0], 0);
	}
	// Outputs are N bytes of value V, one more with each, slots are 1, and keys count up.
	if (i == ENCRYPT && a3 != 0) {
		memset((void *)a3, atomic_fetch_add(&outputs, 1), *(word *)a4);
	} else if (i == GENERATE_RANDOM && a1 != 0) {
		memset((void *)a1, atomic_fetch_add(&outputs, 1), a2);
	} else if (i == GENERATE_KEY && a4 != 0) {
		*(word *)a4 = atomic_fetch_add(&keys, 1) + 1;
	} else if (i == GET_SLOT_LIST && a2 > MADE_UP) {
		*(word *)a2 = 1;
		if (a1 != 0) {
			*(word *)a1 = 1;
		}
	}
	return 0;
}

#define F(i) \
	static word echo_##i(word a, word b, word c, word d, word e, word f, word g, word h) { return answer(i, a, b, c, d, e, f, g, h); }
#define N(i) echo_##i,
#define ALL(X) \
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) \
	X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31) X(32) X(33) X(34) X(35) X(36) X(37) X(38) X(39) X(40) X(41) X(42) X(43) X(44) X(45) \
	X(46) X(47) X(48) X(49) X(50) X(51) X(52) X(53) X(54) X(55) X(56) X(57) X(58) X(59) X(60) X(61) X(62) X(63) X(64) X(65) X(66) X(67)
ALL(F)
static struct list list = {{2, 40}, {ALL(N)}};

word C_GetFunctionList(struct list **out)
{
	*out = &list;
	return 0;
}
