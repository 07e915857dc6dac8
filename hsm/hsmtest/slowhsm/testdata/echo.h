// What driver.c and echo.c agree on.
#ifndef KEYPLANE_SLOWHSM_ECHO_H
#define KEYPLANE_SLOWHSM_ECHO_H

typedef unsigned long word;

#define VENDOR 0x80000000UL // CKR_VENDOR_DEFINED: the answer of function i to a handle we never gave is this plus i
enum { COUNT = 68, HANDLES = 65536, MADE_UP = 0x5AFFFF }; // MADE_UP: of the arguments of "forward" none is higher

struct list {
	unsigned char version[2];
	word (*f[COUNT])(word, word, word, word, word, word, word, word);
};

struct echo {
	int function;
	unsigned long calls;
	word args[8];
};

word C_GetFunctionList(struct list **out);
const struct echo *echo_last(void); // this thread's

#endif
