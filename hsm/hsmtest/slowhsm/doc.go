// Package slowhsm builds a PKCS#11 module that stands in for an HSM at the far end of a network. It loads a real module, forwards all 68
// functions of PKCS#11 2.40 to it, and makes the calls slow, serial within a session, and fallible on a script. The module is one C file,
// module/slow.c, compiled with the C compiler of the machine; this package is pure Go, opens no module, and knows nothing of shards or
// rounds. It starts no goroutine, and the module no thread.
//
// # Latency
//
// Every call that reaches the device takes one round trip longer. Free are the calls that a client library answers by itself (C_GetInfo,
// C_GetSlotList, C_GetSessionInfo, mechanism lists, …), and C_EncryptInit, C_FindObjectsInit and the like, which a library sends along
// with the call that follows; Init makes those cost a round trip too. A call that only asks for a length costs as much as any other. The
// table FUNCTIONS in slow.c says it of each function. Calls on different sessions overlap. Calls on one session take turns, their
// latency included. A sleep ends a little late, by what the machine takes to wake a thread: some 50 µs on a virtual one.
//
// # Settings
//
// The module reads the environment when it is loaded:
//
//	KEYPLANE_SLOW_MODULE   path of the real module
//	KEYPLANE_SLOW_MICROS   latency in microseconds, 0 to 60000000
//	KEYPLANE_SLOW_INIT     1 to make C_…Init cost a round trip
//	KEYPLANE_SLOW_FAULTS   "C_Encrypt:3:0x30,C_GenerateRandom:1:hang=500ms": function, which call of it, and what happens
//	KEYPLANE_SLOW_CONTROL  path of the control file
//	KEYPLANE_SLOW_REPORT   path of the report
//
// The control file has the lines micros=, init=, down=, gone=, moved= and faults= in any order, with at most 64 faults. It is looked at on every
// call; a new one replaces everything, what it does not mention is zero, and its faults count calls from when it was read. A file with a mistake
// changes nothing and is counted. At the start the file's settings stand above the environment's. New puts the control file, "control", and the
// report, "report", beside the module; Open steers the module of a running process from another one by that directory.
//
// # Faults
//
// A fault is FUNCTION:WHICH:WHAT, or FUNCTION:WHICH:WHAT:for=TIME where it ends by itself. The function "*" is every one that a client library
// does not answer by itself. WHICH is the number of a call ("3"), of it and all later ones ("3+"), or each third ("3*"). WHAT is a return value,
// hang=TIME, or an Act: stall, flip, nick, short, long, swap, repeat, logout, kill, killall, abort.
//
// A return value is the answer in the module's place, so that an operation that C_EncryptInit began stays active, as on real modules; all else lets
// the call go on. While the device is down every call that names a slot or a session is answered CKR_DEVICE_REMOVED, after the latency. While it
// is gone there are no slots, a call that names one is answered CKR_TOKEN_NOT_PRESENT, and one on a session CKR_DEVICE_REMOVED; when it comes back, or
// the slots are moved, the sessions of before have ended, and old slot numbers are none. Logins outlive both, as the real module's sessions end only
// when the application closes them. C_CloseSession, C_CloseAllSessions and C_Finalize are carried out whatever they answer.
//
// # Report
//
// The report is a file of counters that the module maps, and so is right at every moment and after a crash: calls of each function, and
// violations of what PKCS#11 asks of an application. Processes that share a report add up.
package slowhsm
