/* How many packets the guest of `vsock.c` has room for; its floor has as many buffers, and so no better a cache. */
#define SENT 16     /* under way to the host */
#define RECEIVED 64 /* buffers for what comes from it */
